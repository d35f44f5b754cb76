from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.callbacks import CheckFinite, History, PeriodicCheckpoint, SeedEveryStep
from experiments.errors import ExperimentError


def drawn(seed: int, step: int) -> list[float]:
    SeedEveryStep(seed).on_train_batch_start(SimpleNamespace(global_step=step))  # type: ignore[arg-type]
    return torch.rand(4).tolist()


def test_every_step_of_every_seed_draws_its_own_numbers_whatever_was_drawn_before() -> None:
    first = drawn(0, 3)
    torch.rand(1000)
    assert drawn(0, 3) == first
    different = [drawn(seed, step) for seed in range(4) for step in range(4)]
    assert len({tuple(numbers) for numbers in different}) == 16


class Saver:
    """A trainer that counts what is saved."""

    def __init__(self) -> None:
        self.saved: list[Path] = []
        self.is_last_batch = False

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append(path)


def test_checkpoints_are_written_when_their_interval_is_over_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("experiments.callbacks.time.monotonic", lambda: clock.now)
    trainer: Any = Saver()
    callback = PeriodicCheckpoint(Path("last.ckpt"), 30.0, {})
    counts = []
    for clock.now in (110.0, 129.9, 130.0, 131.0, 159.9, 161.0, 500.0, 501.0):
        callback.on_train_batch_end(trainer)
        counts.append(len(trainer.saved))
    assert counts == [0, 0, 1, 1, 1, 2, 3, 3]
    callback.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert trainer.saved == [Path("last.ckpt")] * 4


def test_slow_checkpoints_are_written_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("experiments.callbacks.time.monotonic", lambda: clock.now)
    trainer: Any = Saver()

    def save_for_three_seconds(path: Path) -> None:
        trainer.saved.append(path)
        clock.now += 3.0

    trainer.save_checkpoint = save_for_three_seconds
    callback = PeriodicCheckpoint(Path("last.ckpt"), 5.0, {})
    counts = []
    for clock.now in (105.0, 114.0, 167.0, 168.0, 200.0):
        callback.on_train_batch_end(trainer)
        counts.append(len(trainer.saved))
    assert counts == [1, 1, 1, 2, 2]


def test_no_checkpoint_stands_between_an_epoch_s_last_batch_and_its_end() -> None:
    trainer: Any = Saver()
    callback = PeriodicCheckpoint(Path("last.ckpt"), 0.0, {})
    trainer.is_last_batch = True
    callback.on_train_batch_end(trainer)
    assert not trainer.saved
    callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert len(trainer.saved) == 1


def test_a_checkpoint_names_the_versions_of_the_code_that_wrote_it() -> None:
    checkpoint: dict[str, Any] = {}
    callback = PeriodicCheckpoint(Path("last.ckpt"), 30.0, {"reldn.training": 2})
    callback.on_save_checkpoint(None, None, checkpoint)  # type: ignore[arg-type]
    assert checkpoint == {"method_versions": {"reldn.training": 2}}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_at_once(value: float) -> None:
    callback, trainer = CheckFinite("a1b2"), SimpleNamespace(global_step=7)
    callback.on_train_batch_end(trainer, None, {"loss": torch.tensor(1.5)})  # type: ignore[arg-type]
    with pytest.raises(ExperimentError, match=r"run a1b2: the loss is -?(nan|inf) at step 7; lower optimizer\.lr"):
        callback.on_train_batch_end(trainer, None, {"loss": torch.tensor(value)})  # type: ignore[arg-type]


def test_weights_that_the_last_step_spoilt_are_no_result() -> None:
    callback, module = CheckFinite("a1b2"), torch.nn.Linear(2, 2)
    callback.on_train_end(None, module)  # type: ignore[arg-type]
    with torch.no_grad():
        module.bias[1] = float("inf")
    with pytest.raises(ExperimentError, match=r"run a1b2: a weight is not finite .*; lower optimizer\.lr"):
        callback.on_train_end(None, module)  # type: ignore[arg-type]


def feed(history: History, losses: list[float], ends: bool) -> None:
    for loss in losses:
        outputs = {"loss": torch.tensor(loss), "part": torch.tensor(2 * loss)}
        history.on_train_batch_end(None, None, outputs)  # type: ignore[arg-type]
    if ends:
        history.on_train_epoch_end(None, None)  # type: ignore[arg-type]


def test_curves_are_means_over_the_batches_of_each_epoch() -> None:
    history = History()
    feed(history, [1.0, 2.0, 6.0], ends=True)
    feed(history, [5.0], ends=True)
    feed(history, [9.0, 9.0], ends=False)
    assert history.curves == {"train/loss": [3.0, 5.0], "train/part": [6.0, 10.0]}


@pytest.mark.parametrize("done", range(4))
def test_curves_go_on_wherever_the_checkpoint_was_written(done: int) -> None:
    before, after, whole = History(), History(), History()
    losses = [0.1, 0.2, 0.7]
    feed(before, losses[:done], ends=False)
    after.load_state_dict(before.state_dict())
    feed(after, losses[done:], ends=True)
    feed(whole, losses, ends=True)
    assert after.curves == whole.curves


def test_seconds_add_up_over_resumptions(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("experiments.callbacks.time.monotonic", lambda: clock.now)
    first = History()
    clock.now = 1010.0
    state = first.state_dict()
    clock.now = 5000.0
    second = History()
    second.load_state_dict(state)
    clock.now = 5007.0
    assert (second.seconds_before, second.state_dict()["seconds"]) == (10.0, 17.0)
