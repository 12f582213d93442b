"""Torch-Pruning as its README uses it: BasePruner, random importance, output layers ignored, heads given.

It slices a parameter's gradient along with the parameter. So each gradient is filled with the positions of its
entries beforehand (integers, in the bits of the floats), and what survives shows which entries of the original
to zero: the original with them zeroed is what the pruned model must equal, unless a norm runs over what went.
"""

import copy
import math
from collections.abc import Iterator

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree
from torchvision.models import VisionTransformer

from benchmarks.coverage.record import Journal
from fxsurgery.comparison import relative_error
from fxsurgery.inputs import Inputs

RIGHT, WRONG = 1e-4, 1e-3
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")
PROJECTIONS = ("qkv", "q", "query", "q_proj", "q_lin", "to_q")
KEY_VALUE_PROJECTIONS = ("k", "key", "k_proj", "k_lin", "to_k", "v", "value", "v_proj", "v_lin", "to_v")
INCOMPARABLE = ("Std", "Attention", "LSTM", "GRU", "Parametrized", "Softmax")
"""Kinds of module, beside norms over channels, for which a removed channel is not one that is zeroed."""


def run(journal: Journal, model: nn.Module, inputs: Inputs, ratio: float) -> None:
    """Run all stages on `model`; the journal has the verdict, or the error that ended it."""
    row = journal.row
    original = copy.deepcopy(model)
    before = sum(p.numel() for p in model.parameters())
    ignored, heads = output_layers(model, inputs), dict(_heads(model))
    many = [module.num_heads for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    journal.arm()
    with journal.stage("build"):
        pruner = tp.pruner.BasePruner(
            model,
            dict(inputs.kwargs) if inputs.kwargs else inputs.args,
            importance=tp.importance.RandomImportance(),
            pruning_ratio=ratio,
            ignored_layers=ignored,
            # As its own tests do for torch's attention, whose width its heads must divide.
            round_to=math.lcm(*many) if many else None,
            num_heads=heads,
            in_channel_groups={},
            out_channel_groups={},
            output_transform=_with_gradient,
        )
    row.captured = True
    _number(model)
    with journal.stage("prune"):
        pruner.step()
        _refresh_heads(model, pruner.num_heads)
    after = sum(p.numel() for p in model.parameters())
    row.figures |= {"params": before, "params left": after / before}
    if after >= before:
        journal.end("nothing", "no parameter went")
        return
    with journal.stage("forward"):
        got = _outputs(model, inputs)
    status, error = _compared(got, model, original, inputs)
    row.figures["error"] = error
    journal.end(status, f"outputs differ by {error:.1e} from the silenced model" if status == "wrong" else "")


def output_layers(model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """The linear and convolution layers whose outputs reach the model's outputs through no other such layer."""
    made = dict[torch.autograd.graph.Node, nn.Module]()

    def note(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            made[output.grad_fn] = module

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, _ConvNd | nn.Linear)]
    outputs = _with_gradient(model(*inputs.clone().args, **inputs.clone().kwargs))
    for hook in hooks:
        hook.remove()
    found, seen = dict[nn.Module, None](), set[torch.autograd.graph.Node]()
    waiting = [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made:
            found[made[node]] = None
        else:
            waiting += [following for following, _ in node.next_functions]
    return list(found)


def _heads(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    for module in model.modules():
        heads = next((h for name in HEADS if isinstance(h := getattr(module, name, None), int)), None)
        if heads is None:
            continue
        shared = next((h for name in KEY_VALUE_HEADS if isinstance(h := getattr(module, name, None), int)), heads)
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and name in PROJECTIONS:
                yield child, heads
            if isinstance(child, nn.Linear) and name in KEY_VALUE_PROJECTIONS:
                yield child, shared


def _refresh_heads(model: nn.Module, heads: dict[nn.Module, int]) -> None:
    """The sizes that attention modules keep beside their layers, as the README's examples rewrite them."""
    for module in model.modules():
        if isinstance(module, VisionTransformer):
            module.hidden_dim = module.conv_proj.out_channels
        qkv, query = getattr(module, "qkv", None), getattr(module, "query", getattr(module, "q_proj", None))
        if qkv in heads:
            module.num_heads = heads[qkv]
            module.head_dim = qkv.out_features // (3 * heads[qkv])
            module.attn_dim = module.head_dim * module.num_heads
        elif query in heads:
            module.attention_head_size = module.head_dim = query.out_features // heads[query]
            module.all_head_size = query.out_features


def _number(model: nn.Module) -> None:
    for parameter in model.parameters():
        positions = torch.arange(parameter.numel(), dtype=torch.int32).view(torch.float32)
        parameter.grad = positions.reshape(parameter.shape)


def _surviving(model: nn.Module, original: nn.Module) -> dict[str, Tensor]:
    """By parameter of `original`: 1 for what `model` still has, 0 for the rest."""
    masks = dict[str, Tensor]()
    left = dict(model.named_parameters())
    for name, parameter in original.named_parameters():
        numbered = left[name].grad if name in left else None
        if numbered is not None and numbered.dtype == torch.float32:
            mask = torch.zeros(parameter.numel())
            mask[numbered.contiguous().view(torch.int32).flatten().long()] = 1
            masks[name] = mask.reshape(parameter.shape)
    return masks


def _compared(got: list[Tensor], model: nn.Module, original: nn.Module, inputs: Inputs) -> tuple[str, float]:
    """The status, and how far the outputs are from those of the model with the removed entries at 0."""
    masks = _surviving(model, original)
    with torch.no_grad():
        for name, parameter in original.named_parameters():
            parameter.mul_(masks.get(name, torch.ones(())))
    wanted = _outputs(original, inputs)
    if [o.shape for o in got] != [o.shape for o in wanted]:
        return "wrong", math.inf
    error = max(map(relative_error, got, wanted), default=0.0)
    if error <= RIGHT:
        return "right", error
    told = len(masks) == sum(1 for _ in original.parameters())
    return ("wrong" if error > WRONG and told and not _is_incomparable(model) else "unchecked"), error


def _is_incomparable(model: nn.Module) -> bool:
    kinds = {type(module).__name__ for module in model.modules()}
    return any(
        ("Norm" in kind and "BatchNorm" not in kind and "InstanceNorm" not in kind)
        or any(word in kind for word in INCOMPARABLE)
        for kind in kinds
    )


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        output = model(*inputs.clone().args, **inputs.clone().kwargs)
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _with_gradient(output: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
