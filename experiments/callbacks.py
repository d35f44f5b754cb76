"""What makes a killed run end as an undisturbed one would, and what it leaves beside its weights."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from experiments.errors import ExperimentError


class SeedEveryStep(pl.Callback):
    """Seeds the global random state from (seed, step) before every step: a resumed run draws the same numbers."""

    def __init__(self, seed: int):
        """Take the run's seed."""
        self._seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Seed torch on all devices."""
        torch.manual_seed((self._seed * 1_000_003 + trainer.global_step) % 2**63)


class PeriodicCheckpoint(pl.Callback):
    """Saves the whole state every so many seconds and at the end, always to the same file.

    The interval grows to twenty times what saving takes, so that large models don't spend their time on it.
    Never between an epoch's last batch and its end: Lightning resumes such a checkpoint once, but miscounts the epochs
    when the run that went on from it is killed again.
    """

    def __init__(self, path: Path, seconds: float, method_versions: dict[str, int]):
        """Take the file, the interval in seconds, and the versions of the code that trains."""
        self._path, self._seconds, self._due = path, seconds, time.monotonic() + seconds
        self._method_versions = method_versions

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save if the interval is over."""
        if not trainer.is_last_batch:
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if the interval is over."""
        self._save_if_due(trainer)

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        began = time.monotonic()
        if began >= self._due:
            trainer.save_checkpoint(self._path)
            ended = time.monotonic()
            self._due = ended + max(self._seconds, 20 * (ended - began))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the final state."""
        trainer.save_checkpoint(self._path)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Mark the checkpoint, so that newer code does not go on with what older code began."""
        checkpoint["method_versions"] = self._method_versions


class CheckFinite(pl.Callback):
    """Stops a run whose loss or weights are no longer numbers, instead of training on or recording it."""

    def __init__(self, name: str):
        """Take the run's name for the message."""
        self._name = name

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Look at the loss.

        Raises:
            ExperimentError: It is NaN or infinite.
        """
        if not bool(torch.isfinite(outputs["loss"])):
            raise self._error(f"the loss is {float(outputs['loss'])} at step {trainer.global_step}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the weights, which the last step may have spoilt.

        Raises:
            ExperimentError: One is NaN or infinite.
        """
        if not all(bool(torch.isfinite(weight).all()) for weight in pl_module.parameters()):
            raise self._error("a weight is not finite after the last step")

    def _error(self, what: str) -> ExperimentError:
        return ExperimentError(f"run {self._name}: {what}; lower optimizer.lr or set trainer.gradient_clip_norm")


class History(pl.Callback):
    """Keeps the mean of everything `training_step` returns, per epoch, and the seconds spent, across resumptions.

    A checkpoint in the middle of an epoch keeps the sums so far, so that the curves of a resumed run are those of an
    undisturbed one.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.curves: dict[str, list[float]] = {}
        self.seconds_before = 0.0
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._started = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Add this step's values."""
        self._steps += 1
        for key, value in outputs.items():
            self._sums[key] = self._sums.get(key, 0.0) + float(value)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Append this epoch's means."""
        for key, value in self._sums.items():
            self.curves.setdefault(f"train/{key}", []).append(value / self._steps)
        self._sums, self._steps = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        seconds = self.seconds_before + time.monotonic() - self._started
        return {"curves": self.curves, "sums": self._sums, "steps": self._steps, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.curves, self._sums, self._steps = state_dict["curves"], state_dict["sums"], state_dict["steps"]
        self.seconds_before = state_dict["seconds"]
        self._started = time.monotonic()
