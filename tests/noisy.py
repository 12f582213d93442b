"""Small images in four classes, and a dataset that augments them."""

import torch


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.arange(count) % 4


class Noisy(torch.utils.data.Dataset):
    """Augments at random, from the global state."""

    def __init__(self, count: int) -> None:
        self.x, self.y = images(count)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int):
        return self.x[index] + 0.1 * torch.randn(3, 8, 8), self.y[index]
