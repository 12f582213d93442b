"""What the steps of a `Graph` are made of, where torch has no layer for it. All are traced through."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

CONVS = {1: nn.Conv1d, 2: nn.Conv2d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d}
POOLS = {("max", 1): nn.MaxPool1d, ("max", 2): nn.MaxPool2d, ("avg", 1): nn.AvgPool1d, ("avg", 2): nn.AvgPool2d}
ADAPTIVE = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}

ACTIVATIONS = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "leaky_relu": nn.LeakyReLU, "gelu": nn.GELU, "silu": nn.SiLU,
    "hardswish": nn.Hardswish, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "elu": nn.ELU, "prelu": nn.PReLU,
}  # fmt: skip
FUNCTIONS = {
    "F.relu": F.relu, "torch.relu": torch.relu, "Tensor.relu": lambda x: x.relu(), "F.gelu": F.gelu,
    "F.silu": F.silu, "torch.sigmoid": torch.sigmoid, "Tensor.tanh": lambda x: x.tanh(),
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.2), "Tensor.clamp": lambda x: x.clamp(-2, 3),
}  # fmt: skip
INPLACE = {"relu_": lambda x: F.relu(x, inplace=True), "Tensor.relu_": lambda x: x.relu_()}


class Call(nn.Module):
    """An activation that is called, not held."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = {**FUNCTIONS, **INPLACE}[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Join(nn.Module):
    """Two maps as one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        match self.how:
            case "+":
                return a + b
            case "add":
                return torch.add(a, b)
            case "iadd":
                a += b
                return a
            case "-":
                return a - b
            case "*":
                return a * b
        return torch.cat([a, b], 1)


class Pieces(nn.Module):
    """A map cut along its channels, into so many equal pieces or into pieces of these sizes."""

    def __init__(self, cut: int | tuple[int, ...]) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.cut, int):
            pieces = x.chunk(self.cut, dim=1)
            return tuple(pieces[i] for i in range(self.cut))
        pieces = torch.split(x, list(self.cut), dim=1)
        return tuple(pieces[i] for i in range(len(self.cut)))


class Shuffle(nn.Module):
    """ShuffleNet's: channel c of `groups` goes from place (group, i) to place (i, group)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        shape = x.size()
        x = x.view(shape[0], self.groups, shape[1] // self.groups, *(shape[i] for i in range(2, x.dim())))
        x = x.transpose(1, 2).contiguous()
        return x.view(shape[0], shape[1], *(shape[i] for i in range(2, len(shape))))


class ChannelsLast(nn.Module):
    """Something that works on the last dim, done to the channels of a map: a layer norm, linear layers."""

    def __init__(self, inner: nn.Module, dims: int) -> None:
        super().__init__()
        self.inner, self.dims = inner, dims

    def forward(self, x: Tensor) -> Tensor:
        if self.dims == 1:
            return self.inner(x.transpose(1, 2)).transpose(1, 2)
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """A gate a channel, worked out on the mean: by 1x1 convolutions or by linear layers."""

    def __init__(self, channels: int, reduced: int, dims: int, *, linear: bool) -> None:
        super().__init__()
        self.linear, self.dims = linear, dims
        layer = nn.Linear if linear else (lambda a, b: CONVS[dims](a, b, 1))
        self.squeeze, self.excite = layer(channels, reduced), layer(reduced, channels)

    def forward(self, x: Tensor) -> Tensor:
        over = tuple(range(2, 2 + self.dims))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(over, keepdim=not self.linear)))))
        if self.linear:
            gate = gate.unflatten(1, (gate.shape[1], *(1 for _ in over)))
        return x * gate


class SelfAttention(nn.Module):
    """Attention between the positions of a map, with a shortcut: three projections of one, or torch's own layer."""

    def __init__(self, channels: int, heads: int, dims: int, kind: str) -> None:
        super().__init__()
        self.heads, self.kind = heads, kind
        self.norm = nn.LayerNorm(channels)
        if kind == "module":
            self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
            return
        if kind == "qkv":
            self.qkv = nn.Linear(channels, 3 * channels)
        else:
            self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in "qkv")
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mixed = self.mixed(self.norm(tokens))
        return (tokens + mixed).transpose(1, 2).reshape(x.shape)

    def mixed(self, x: Tensor) -> Tensor:
        if self.kind == "module":
            return self.attention(x, x, x, need_weights=False)[0]
        batch, length, channels = x.shape
        if self.kind == "qkv":
            q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
            y = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1) @ v
        return self.proj(y.transpose(1, 2).flatten(2))


class Readout(nn.Module):
    """Maps to a vector: each is pooled or flattened, all are joined, hidden layers follow."""

    def __init__(self, how: str, features: int, hidden: tuple[int, ...], out: int, dims: int) -> None:
        super().__init__()
        self.how, self.over = how, tuple(range(2, 2 + dims))
        self.pool = ADAPTIVE[dims](1) if how == "adaptive" else None
        sizes = (features, *hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, hidden, strict=False))
        self.out = nn.Linear(sizes[-1], out)

    def forward(self, *maps: Tensor) -> Tensor:
        vectors = [self.vector(x) for x in maps]
        x = vectors[0] if len(vectors) == 1 else torch.cat(vectors, 1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.out(x)

    def vector(self, x: Tensor) -> Tensor:
        match self.how:
            case "mean":
                return x.mean(self.over)
            case "max":
                return x.amax(self.over)
            case "adaptive":
                return torch.flatten(self.pool(x), 1)
        return x.flatten(1)
