"""Shuffled batches that a killed run can go on with, from the very next batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import Sampler


class ResumableBatchSampler(Sampler[list[int]]):
    """Batches of indices whose order depends on the seed and the epoch alone, never on a global random state.

    Iterating gives one epoch, and the next iteration the epoch after it. Lightning never skips batches of a resumed
    loader by itself, but continues to count `batch_idx` from the checkpoint. Therefore the first iteration yields the
    rest of the epoch that `start_step` falls into, while `len` remains that of a whole epoch, with which Lightning
    finds an epoch's last batch.

    With several processes each takes its share of every step's `world_size * batch_size` indices. A short last step is
    then filled up from the epoch's beginning, so that all processes make equally many steps. Such a Trainer needs
    `use_distributed_sampler=False`.

    Args:
        size: Number of examples.
        batch_size: Examples in a batch of one process.
        seed: Seed of the order, not negative.
        drop_last: Leave out a last step that is short of examples.
        start_step: Steps done before, over all epochs: where the first iteration begins.
        limit: The trainer's `limit_train_batches`, where it ends epochs early: a number of steps, or a fraction.
        rank: This process, from 0 to `world_size` - 1.
        world_size: Number of processes that share every step.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        drop_last: bool = False,
        start_step: int = 0,
        limit: int | float = 1.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if min(size, batch_size) < 1 or min(seed, start_step) < 0 or not 0 <= rank < world_size:
            given = f"size={size}, batch_size={batch_size}, seed={seed}, start_step={start_step}, rank={rank}"
            raise ValueError(f"size and batch_size start at 1, seed, start_step and rank at 0; got {given}")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        whole, rest = divmod(size, batch_size * world_size)
        self.steps = whole + (rest > 0 and not drop_last)
        if self.steps < 1:
            raise ValueError(f"{size} examples give no batch of {batch_size} for {world_size} processes")
        trained = min(limit, self.steps) if isinstance(limit, int) else int(limit * self.steps)
        self.epoch, self._first_step = divmod(start_step, max(trained, 1))

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of this epoch; without calls, epochs follow one another."""
        self.epoch, self._first_step = epoch, self._first_step if epoch == self.epoch else 0

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        """Return all batches of this process in one epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        step_size = self.batch_size * self.world_size
        if self.world_size > 1:
            order = np.resize(order, self.steps * step_size)
        shares = (order[step * step_size :][self.rank * self.batch_size :] for step in range(self.steps))
        return [share[: self.batch_size].tolist() for share in shares]

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, so that an epoch counts from its first batch on: a loader with workers calls iter() twice an
        # epoch, and so does Lightning where it reloads loaders.
        epoch, first_step = self.epoch, self._first_step
        self.set_epoch(epoch + 1)
        yield from self.epoch_batches(epoch)[first_step:]

    def __len__(self) -> int:
        return self.steps


def steps_done(trainer: pl.Trainer | None) -> int:
    """Return how many training batches a trainer has finished over all epochs; 0 without a trainer.

    Lightning restores this count from the checkpoint before it asks for the training loader, so a loader that begins
    here goes on where the checkpoint was written. It counts batches, not optimizer steps (gradient accumulation).
    """
    if trainer is None:
        return 0
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]
