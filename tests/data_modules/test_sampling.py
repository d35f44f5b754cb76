from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from data_modules.sampling import ResumableBatchSampler, steps_done


def epochs(sampler: ResumableBatchSampler, count: int) -> list[list[int]]:
    return [batch for _ in range(count) for batch in sampler]


def test_epochs_are_different_permutations_that_the_seed_decides() -> None:
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    first = [list(s) for s in [ResumableBatchSampler(10, 3, seed=5)] * 3]
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    sampler = ResumableBatchSampler(10, 3, seed=5)
    assert [list(sampler) for _ in range(3)] == first
    for epoch in first:
        assert [len(b) for b in epoch] == [3, 3, 3, 1]
        assert sorted(i for b in epoch for i in b) == list(range(10))
    assert first[0] != first[1] != first[2] != first[0]
    assert list(ResumableBatchSampler(10, 3, seed=6)) != first[0]


def test_making_batches_leaves_the_global_random_states_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    epochs(ResumableBatchSampler(10, 3, seed=5), 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("start", range(13))
def test_a_start_step_gives_exactly_the_remaining_batches(start: int) -> None:
    whole = epochs(ResumableBatchSampler(10, 3, seed=5), 4)
    resumed = ResumableBatchSampler(10, 3, seed=5, start_step=start)
    assert len(resumed) == 4  # that of a whole epoch
    assert epochs(resumed, 4 - start // 4) == whole[start:]


@pytest.mark.parametrize("limit", [3, 0.75])
def test_a_start_step_counts_the_epochs_that_the_trainer_cut_short(limit: int | float) -> None:
    uncut = ResumableBatchSampler(10, 3, seed=5)
    seen = [batch for _ in range(3) for batch in list(uncut)[:3]]
    resumed = ResumableBatchSampler(10, 3, seed=5, start_step=4, limit=limit)
    assert len(resumed) == 4
    assert list(resumed)[:2] == seen[4:6]
    assert list(resumed)[:3] == seen[6:]


def test_set_epoch_chooses_an_epoch_and_keeps_the_start_within_its_own() -> None:
    whole = [list(ResumableBatchSampler(10, 3, seed=5, start_step=4 * e)) for e in range(3)]
    sampler = ResumableBatchSampler(10, 3, seed=5, start_step=6)
    sampler.set_epoch(1)
    assert list(sampler) == whole[1][2:]
    sampler.set_epoch(1)
    assert list(sampler) == whole[1]
    assert list(sampler) == whole[2]
    sampler.set_epoch(0)
    assert list(sampler) == whole[0]


def test_drop_last() -> None:
    assert [len(b) for b in ResumableBatchSampler(10, 3, seed=0, drop_last=True)] == [3, 3, 3]
    assert len(ResumableBatchSampler(10, 3, seed=0, drop_last=True)) == 3


def test_processes_share_every_step() -> None:
    alone = list(ResumableBatchSampler(11, 4, seed=3))
    ranks = [list(ResumableBatchSampler(11, 2, seed=3, rank=r, world_size=2)) for r in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)][:2] == alone[:2]
    # The short third step has 3 of 4 examples; the first of the epoch fills it up.
    assert ranks[0][2] + ranks[1][2] == [*alone[2], alone[0][0]]
    more = [list(ResumableBatchSampler(3, 2, seed=3, rank=r, world_size=4)) for r in range(4)]
    assert [[len(b) for b in rank] for rank in more] == [[2]] * 4


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"batch_size": 0}, {"seed": -1}, {"start_step": -1}, {"rank": 1}, {"batch_size": 9}]
)
def test_impossible_arguments_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"start at 1|no batch of 9"):
        ResumableBatchSampler(**({"size": 8, "batch_size": 2, "seed": 0, "drop_last": True} | wrong))


def test_steps_done_is_zero_without_a_trainer() -> None:
    assert steps_done(None) == 0


class Data(pl.LightningDataModule):
    def __init__(self, num_workers: int, persistent_workers: bool) -> None:
        super().__init__()
        self.num_workers, self.persistent_workers = num_workers, persistent_workers

    def train_dataloader(self) -> DataLoader[list[Tensor]]:
        index = torch.arange(10)
        inputs = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
        assert self.trainer is not None
        sampler = ResumableBatchSampler(
            10, 2, seed=7, start_step=steps_done(self.trainer), limit=self.trainer.limit_train_batches
        )
        workers = {"num_workers": self.num_workers, "persistent_workers": self.persistent_workers}
        return DataLoader(TensorDataset(index, inputs), batch_sampler=sampler, **workers)  # type: ignore[arg-type]


class Killed(Exception):
    pass


class Model(pl.LightningModule):
    """Notes every batch as (epoch, batch_idx, indices), and dies in the given batch."""

    def __init__(self, dies_in: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.seen: list[tuple[int, int, list[int]]] = []
        self.dies_in = dies_in

    def on_train_batch_start(self, batch: list[Tensor], batch_idx: int) -> None:
        torch.manual_seed(self.trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if len(self.seen) == self.dies_in:
            raise Killed
        self.seen.append((self.current_epoch, batch_idx, batch[0].tolist()))
        return self.net(batch[1]).square().mean()

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(
    folder: Path,
    dies_in: int | None = None,
    resume: Path | None = None,
    num_workers: int = 0,
    persistent_workers: bool = False,
    every: int | None = 2,
    **options: Any,
) -> Model:
    when = {"every_n_epochs": 1} if every is None else {"every_n_train_steps": every}
    keep = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **when)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[keep],
        **options,
    )
    model = Model(dies_in)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, datamodule=Data(num_workers, persistent_workers), ckpt_path=resume, weights_only=False)
    return model


def last_checkpoint(folder: Path) -> tuple[Path, int]:
    """The newest checkpoint and the number of batches that went into it."""
    path = max(folder.glob("*.ckpt"), key=lambda p: int(p.stem.split("=")[1]))
    loops = torch.load(path, weights_only=False)["loops"]
    return path, loops["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]


def check_resumed_equals_uninterrupted(folder: Path, dies_in: int, **options: Any) -> None:
    whole = fit(folder / "whole", **options)
    with pytest.raises(Killed):
        fit(folder / "killed", dies_in=dies_in, **options)
    path, done = last_checkpoint(folder / "killed")
    assert 0 < done <= dies_in  # batches after the checkpoint are lost and seen again
    resumed = fit(folder / "resumed", resume=path, **options)
    assert resumed.seen == whole.seen[done:]
    check_equal_weights(resumed, whole)


def check_equal_weights(model: Model, expected: Model) -> None:
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


# An epoch has five batches: death in the first epoch, in the second, on its edge, and twice in the third.
@pytest.mark.parametrize("dies_in", [3, 7, 10, 11, 13])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, dies_in: int) -> None:
    check_resumed_equals_uninterrupted(tmp_path, dies_in)


@pytest.mark.parametrize(
    "options",
    [
        {"every": 5},  # the checkpoint lies on the last batch of an epoch
        {"every": None},  # the checkpoint is written at the end of an epoch, after its last batch
        {"limit_train_batches": 3},
        {"limit_train_batches": 0.6},
        {"accumulate_grad_batches": 2, "every": 1},
        {"num_workers": 1},
        {"num_workers": 1, "persistent_workers": True},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
    ids=str,
)
def test_a_resumed_run_equals_the_uninterrupted_one_also_with(tmp_path: Path, options: dict[str, Any]) -> None:
    check_resumed_equals_uninterrupted(tmp_path, 8, **options)


def test_a_run_may_be_killed_twice(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    with pytest.raises(Killed):
        fit(tmp_path / "a", dies_in=3)
    path, done = last_checkpoint(tmp_path / "a")
    assert done == 2
    with pytest.raises(Killed):
        fit(tmp_path / "b", dies_in=5, resume=path)
    path, done = last_checkpoint(tmp_path / "b")
    assert done == 6
    resumed = fit(tmp_path / "c", resume=path)
    assert resumed.seen == whole.seen[6:]
    check_equal_weights(resumed, whole)
