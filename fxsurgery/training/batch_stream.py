"""An endless stream of training batches, in an order that follows from the seed and the epoch alone.

What data sets, samplers and augmentations draw at random comes from a stream of its own: what layers, losses and
hooks draw does not move it. So the batches up to any point can be drawn again, and that is how a training goes on
from a snapshot.

Several processes share each batch. Of data given as tensors or as a data set each process reads its own rows.
Of a user's loader each draws the whole batches, alike, and takes its rows: exact whatever the loader does, but
every process pays for loading all of it.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard
from torch.utils.data import DistributedSampler, Sampler
from typing_extensions import override

from fxsurgery.argument_names import named
from fxsurgery.errors import DataError
from fxsurgery.inputs import tensors_in
from fxsurgery.seeding import mix, reseed
from fxsurgery.training.array_loader import Arrays, Batches
from fxsurgery.training.batches import Loader, epoch_of, set_epoch
from fxsurgery.training.distributed import BatchSharding, Shard
from fxsurgery.training.random_state import (
    generators_kept,
    own_workers,
    random_states,
    seed_generators,
    set_random_states,
)


@dataclass(slots=True)
class Portion:
    """The part of a batch that one process draws."""

    epoch: int
    batch: Any
    samples: int
    """Number of samples of the whole batch."""
    share: Shard
    whole: bool
    """Whether `batch` is the whole batch, from which this process still has to take its rows."""
    number: int = 0
    """Position of the batch in its epoch, from 0."""


class Stream:
    """Draws batches, in a `with` block. `epoch`, the batches `drawn` in it, and all `samples` are its position.

    Generators that a user's loader brings are seeded with each epoch; their states are put back at the end.
    Workers begin anew with each epoch, even those that a loader wants to persist.
    """

    def __init__(
        self, loader: Loader, seed: int, device: torch.device, sharing: BatchSharding, size_of: Callable[[Any], int]
    ) -> None:
        self.epoch, self.drawn, self.samples = -1, 0, 0
        self._seed, self._device, self._sharing, self._size_of = seed, device, sharing, size_of
        self._loader, self._sizes = own_workers(loader), deque[int]()
        self._compared = False
        self._calm = isinstance(loader.dataset, Arrays)
        self._split = sharing.world > 1 and isinstance(loader.batch_sampler, Batches)
        if self._split:
            rows = _Rows(loader.batch_sampler, sharing, self._sizes)  # type: ignore[arg-type]
            vars(self._loader)["batch_sampler"] = rows
        elif sharing.world > 1:
            _refuse_parted(loader)
        self._kept = generators_kept(loader)
        self._batches: Iterator[Portion] = iter(())

    def __enter__(self) -> Self:
        self._generators = self._kept.__enter__()
        self._states = random_states(self._device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batches = iter(())
        self._kept.__exit__(kind, error, trace)

    def draw(self) -> Portion:
        """Return the next batch.

        Raises:
            DataError: there is none, or the processes' loaders differ.
        """
        # Tensors draw nothing once an epoch has begun, and putting states back takes half a millisecond.
        portion = next(self._batches, None) if self._calm and self.drawn else None
        if portion is None:
            portion = self._draw_at_random()
        self.drawn += 1
        self.samples += portion.samples
        return portion

    def _draw_at_random(self) -> Portion:
        outside = random_states(self._device)
        set_random_states(self._states, self._device)
        try:
            while (portion := next(self._batches, None)) is None:
                self._begin(self.epoch + 1)
            self._states = random_states(self._device)
        finally:
            set_random_states(outside, self._device)
        return portion

    def skip_to(self, epoch: int, drawn: int, samples: int) -> None:
        """Fast-forward to a batch position, after `samples` samples in all, by drawing and discarding."""
        self.epoch = epoch - 1
        for _ in range(drawn):
            self.draw()
        self.samples = samples

    def _begin(self, epoch: int) -> None:
        self.epoch, self.drawn = epoch, 0
        fresh = mix(self._seed, epoch)
        # Rows of one's own must not be augmented as another process augments its own.
        reseed(mix(fresh, self._sharing.rank) if self._split and self._sharing.rank else fresh, self._device)
        seed_generators(self._generators, fresh)
        self._batches = self._own_rows(epoch) if self._split else self._whole(epoch)

    def _whole(self, epoch: int) -> Iterator[Portion]:
        for number, drawn in enumerate(epoch_of(self._loader, epoch, "train_data", self._size_of)):
            if not self._compared:
                self._compare(drawn.batch)
            share = self._sharing.share(drawn.samples)
            yield Portion(epoch, drawn.batch, drawn.samples, share, whole=self._sharing.world > 1, number=number)

    def _compare(self, batch: object) -> None:
        """Check, once, that all processes draw the same batch: else rows would be learned twice or never."""
        self._compared = True
        if self._sharing.world > 1:
            sums = [f"{tuple(x.shape)} {x.double().sum().item()}" for _, x in tensors_in(batch)]
            if any(other != sums for other in self._sharing.gathered(sums)):
                raise DataError(
                    f"{named('train_data')} gives each process another batch, where all must draw the same and take "
                    "their rows; seed its generator alike in every process"
                )

    def _own_rows(self, epoch: int) -> Iterator[Portion]:
        self._sizes.clear()
        set_epoch(self._loader, epoch)
        for number, batch in enumerate(self._loader):
            samples = self._sizes.popleft()
            yield Portion(epoch, batch, samples, self._sharing.share(samples), whole=False, number=number)


def _refuse_parted(loader: Loader) -> None:
    if isinstance(loader, DataLoaderShard | DataLoaderDispatcher) or isinstance(loader.sampler, DistributedSampler):
        raise DataError(
            f"{named('train_data')} gives each process its own part already; give the plain DataLoader, neither "
            "prepared by Accelerate nor with a DistributedSampler: each of its batches is shared by the processes"
        )


class _Rows(Sampler[list[int]]):
    """Indices of one process in each batch; the number of samples of each whole batch is added to `sizes`."""

    def __init__(self, whole: Batches, sharing: BatchSharding, sizes: deque[int]) -> None:
        self.whole, self.sharing, self.sizes = whole, sharing, sizes

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the whole batches."""
        self.whole.set_epoch(epoch)

    @override
    def __iter__(self) -> Iterator[list[int]]:
        before = 0
        for indices in self.whole:
            if len(indices) == 1 < before:
                continue  # as `epoch_of` does
            before = len(indices)
            self.sizes.append(before)
            yield indices[self.sharing.share(before).rows]

    def __len__(self) -> int:
        return len(self.whole)
