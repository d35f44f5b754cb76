from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.errors import ExperimentError
from experiments.methods import STAGES
from experiments.run import AtomicCheckpointIO, execute
from experiments.runs import Run, in_order, to_json
from experiments.store import CHECKPOINT, RECORD, RECORD_KEYS, read_record
from tests.experiments.workspace import PIXELS, Workspace, file_size_limit, leave, smoke_run, with_runs

EVERY_STEP = {"trainer.max_epochs": 2, "trainer.limit_train_batches": 3, "trainer.checkpoint_seconds": 0.0}
TRAININGS = [
    pytest.param(("vrd_tensor", "1", "vrd_tensor.triplet", {"model.dropout": 0.5}), id="triplet"),
    pytest.param(("vrd_tensor", "1", "vrd_tensor.selector", {}), id="selector"),
    pytest.param(("reldn", "8", "reldn.training", {}), id="reldn"),
    pytest.param(("reldn", "8", "detector", PIXELS | {"detector.max_epochs": 2}), id="detector"),
    pytest.param(("reldn", "8", "reldn.training", PIXELS), id="reldn from pixels"),
    pytest.param(("vrd_tensor", "1", "vrd_tensor.triplet", PIXELS | {"model.labels": False}), id="triplet from pixels"),
]


class Killed(BaseException):
    """What ends a training in these tests."""


def trained(run: Run, space: Workspace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a training leaves that interruptions must not change: its record's results, and its checkpoint.

    Not Lightning's counts of what it began, which are of no use after the end.
    """
    folder = space.store.folder(run)
    record = read_record(folder / RECORD)
    checkpoint = torch.load(folder / CHECKPOINT, weights_only=True)
    history = next(state for key, state in checkpoint["callbacks"].items() if key.startswith("History"))
    history.pop("seconds")
    checkpoint = {key: value for key, value in checkpoint.items() if key not in ("loops", "epoch")}
    return {key: record[key] for key in RECORD_KEYS - {"duration_s", "peak_memory_mb"}}, checkpoint


def same_bits(first: Any, second: Any) -> bool:
    """Whether two nested values are equal to the last bit, tensors included."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(same_bits(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same_bits, first, second))
    return bool(first == second)


def do_needs(run: Run, space: Workspace) -> None:
    for need in in_order(run.needs.values()):
        execute(need, space.machine)


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Kill the training right after each checkpoint, once for every step; the list holds the steps so far."""
    steps: list[int] = []
    save = AtomicCheckpointIO.save_checkpoint

    def save_and_die(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Path, **options: Any) -> None:
        save(self, checkpoint, path, **options)
        steps.append(checkpoint["global_step"])
        raise Killed

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_die)
    return steps


@pytest.mark.parametrize("training", TRAININGS)
def test_a_training_that_is_killed_after_every_step_ends_as_an_undisturbed_one(
    training: tuple[str, str, str, dict[str, Any]],
    tmp_path: Path,
    generated: Path,
    killing: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paper, table, stage, override = training
    run = smoke_run(paper, table, stage, EVERY_STEP | override)
    calm, killed = Workspace(tmp_path / "calm", generated), Workspace(tmp_path / "killed", generated)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", _undisturbed_save)
        do_needs(run, calm)
        do_needs(run, killed)
        execute(run, calm.machine)
    for _ in range(6):  # two epochs of three steps
        with pytest.raises(Killed):
            execute(run, killed.machine)
        assert killed.store.state(run) == "incomplete"
    execute(run, killed.machine)
    assert killing == [1, 2, 3, 4, 5, 6]
    ours, expected = trained(run, killed), trained(run, calm)
    assert len(expected[0]["curves"]["train/loss"]) == 2
    assert ours[0] == expected[0]
    assert same_bits(ours[1], expected[1])


_undisturbed_save = AtomicCheckpointIO.save_checkpoint


def test_a_training_that_is_killed_before_its_record_is_written_only_writes_that(
    tmp_path: Path, generated: Path, killing: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = smoke_run("reldn", "8", "reldn.training", EVERY_STEP | {"trainer.checkpoint_seconds": 1e9})
    calm, killed = Workspace(tmp_path / "calm", generated), Workspace(tmp_path / "killed", generated)
    with pytest.raises(Killed):
        execute(run, killed.machine)
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", _undisturbed_save)
    for space in (calm, killed):
        execute(run, space.machine)
    assert killing == [6]
    ours, expected = trained(run, killed), trained(run, calm)
    assert ours[0] == expected[0] and same_bits(ours[1], expected[1])


def test_the_comparison_sees_a_single_bit(workspace: Workspace) -> None:
    run = smoke_run("reldn", "8", "reldn.training")
    execute(run, workspace.machine)
    (_, first), (_, second) = trained(run, workspace), trained(run, workspace)
    assert same_bits(first, second)
    weight = next(iter(second["state_dict"].values()))
    weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    assert not same_bits(first, second)


def test_another_seed_gives_another_training(workspace: Workspace) -> None:
    run = smoke_run("reldn", "8", "reldn.training")
    other = replace(run, seed=1)
    for each in (run, other):
        execute(each, workspace.machine)
    assert trained(run, workspace)[0]["metrics"] != trained(other, workspace)[0]["metrics"]


def test_a_done_run_is_not_done_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = smoke_run("reldn", "8", "frequency")
    execute(run, workspace.machine)
    monkeypatch.setattr("experiments.run._train_or_test", lambda *_: pytest.fail("it was done again"))
    execute(run, workspace.machine)


def test_a_run_that_another_process_did_meanwhile_is_not_done_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between planning a run and getting its lock, another process may have done it."""
    run = smoke_run("reldn", "8", "reldn.training")
    assert workspace.store.missing(run) == [run]
    lock = type(workspace.store).lock

    def lock_later(store: Any, run: Run) -> Any:
        leave(store, run, checkpoint=True)
        return lock(store, run)

    monkeypatch.setattr("experiments.store.Store.lock", lock_later)
    monkeypatch.setattr("experiments.run._train_or_test", lambda *_: pytest.fail("it was done again"))
    execute(run, workspace.machine)


def test_a_run_whose_needs_are_not_done_names_them(workspace: Workspace) -> None:
    run = smoke_run("reldn", "8", "reldn")
    with pytest.raises(ExperimentError, match=f"run {run.name} needs {run.needs['network'].name}: give the table's"):
        execute(run, workspace.machine)


def test_newer_code_goes_on_from_nothing_that_older_code_left(
    workspace: Workspace, killing: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = smoke_run("reldn", "8", "reldn.training", EVERY_STEP)
    for _ in range(2):
        with pytest.raises(Killed):
            execute(run, workspace.machine)
    monkeypatch.setitem(STAGES, "reldn.training", replace(STAGES["reldn.training"], version=2))
    newer = smoke_run("reldn", "8", "reldn.training", EVERY_STEP)
    assert newer.name == run.name
    with pytest.raises(Killed):
        execute(newer, workspace.machine)
    assert killing == [1, 2, 1]


def test_a_stale_run_is_done_again_from_its_beginning(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = smoke_run("reldn", "8", "reldn.training")
    execute(run, workspace.machine)
    first = trained(run, workspace)
    monkeypatch.setitem(STAGES, "reldn.training", replace(STAGES["reldn.training"], version=2))
    newer = smoke_run("reldn", "8", "reldn.training")
    assert workspace.store.state(newer) == "stale"
    execute(newer, workspace.machine)
    assert workspace.store.state(newer) == "done"
    again = trained(newer, workspace)
    assert again[0]["method_versions"] == {"reldn.training": 2}
    assert again[0]["curves"] == first[0]["curves"]
    assert same_bits(again[1]["state_dict"], first[1]["state_dict"])


def test_a_full_disk_keeps_the_older_checkpoint_which_goes_on(
    workspace: Workspace, tmp_path: Path, generated: Path, killing: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operating system really refuses the write here: files may not grow beyond 20 kB."""
    run = smoke_run("reldn", "8", "reldn.training", EVERY_STEP)
    checkpoint = workspace.store.folder(run) / CHECKPOINT
    for _ in range(2):
        with pytest.raises(Killed):
            execute(run, workspace.machine)
    before = checkpoint.read_bytes()
    assert len(before) > 20_000
    with file_size_limit(20_000), pytest.raises(ExperimentError) as error:
        execute(run, workspace.machine)
    assert str(error.value).startswith(f"no space left while writing {checkpoint} (")
    assert "\n" not in str(error.value)
    assert checkpoint.read_bytes() == before
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == [CHECKPOINT, "lock"]
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", _undisturbed_save)
    calm = Workspace(tmp_path / "calm", generated)
    for space in (workspace, calm):
        execute(run, space.machine)
    ours, expected = trained(run, workspace), trained(run, calm)
    assert ours[0] == expected[0] and same_bits(ours[1], expected[1])


def test_a_training_that_diverges_is_one_clear_error_and_no_record(workspace: Workspace) -> None:
    run = smoke_run("vrd_tensor", "1", "vrd_tensor.triplet", {"optimizer.lr": 1e30})
    with pytest.raises(
        ExperimentError, match=rf"run {run.name}: the loss is (nan|inf) at step \d+; lower optimizer\.lr"
    ):
        execute(run, workspace.machine)
    assert workspace.store.state(run) == "absent"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None], ids=["empty", "text", "truncated"])
def test_a_damaged_checkpoint_is_named_with_the_remedy(
    workspace: Workspace, killing: list[int], content: bytes | None
) -> None:
    run = smoke_run("reldn", "8", "reldn.training", EVERY_STEP)
    with pytest.raises(Killed):
        execute(run, workspace.machine)
    checkpoint = workspace.store.folder(run) / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(ExperimentError, match=r"not a readable checkpoint .*delete it and give the same") as error:
        execute(run, workspace.machine)
    assert str(error.value).startswith(f"{checkpoint}: ")
    checkpoint.unlink()
    with pytest.raises(Killed):
        execute(run, workspace.machine)
    assert killing == [1, 1]


def test_a_damaged_checkpoint_of_a_need_is_named(workspace: Workspace) -> None:
    run = smoke_run("reldn", "8", "reldn")
    do_needs(run, workspace)
    checkpoint = workspace.store.folder(run.needs["network"]) / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(ExperimentError, match="not a readable checkpoint") as error:
        execute(run, workspace.machine)
    assert str(error.value).startswith(f"{checkpoint}: ")


def test_a_training_without_steps_is_an_error(workspace: Workspace) -> None:
    run = smoke_run("reldn", "8", "reldn.training", {"trainer.limit_train_batches": 0})
    with pytest.raises(ExperimentError, match=f"run {run.name} of reldn ended without a step"):
        execute(run, workspace.machine)


def test_records_say_what_was_done_where_and_with_what(smoke: Workspace) -> None:
    records = smoke.records()
    runs = {f"{r.paper}/{r.name}": r for spec in with_runs("smoke") for r in in_order(spec.runs)}
    assert records.keys() == runs.keys()
    for name, record in records.items():
        run = runs[name]
        assert record.keys() == RECORD_KEYS
        assert (record["paper"], record["stage"], record["run"]) == (run.paper, run.stage_name, run.name)
        assert (record["seed"], record["config"], record["method_versions"]) == (
            run.seed,
            run.config,
            run.method_versions,
        )
        assert record["needs"] == {key: need.name for key, need in run.needs.items()}
        assert record["metrics"] and all(isinstance(value, float) for value in record["metrics"].values())
        assert bool(record["curves"]) == run.stage.fits
        assert record["duration_s"] >= 0 and record["peak_memory_mb"] > 50
        assert record["hardware"]["cpu"] and record["hardware"]["cores"] >= 1
        assert record["versions"]["torch"] == torch.__version__.partition("+")[0] or "+" in record["versions"]["torch"]
        assert record["data"]["official"] is False and all(len(f["sha256"]) == 64 for f in record["data"]["files"])


def test_weights_that_are_evaluated_are_those_that_were_trained(smoke: Workspace) -> None:
    """The checkpoint is loadable without running code, and holds every weight of its module."""
    for spec in with_runs("smoke"):
        for run in in_order(spec.runs):
            path = smoke.store.folder(run) / CHECKPOINT
            assert path.exists() == run.stage.fits
            if run.stage.fits:
                content = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
                assert content["state_dict"] and content["method_versions"] == run.method_versions


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bits(tmp_path: Path, generated: Path) -> None:
    """SIGKILL of a real worker in the middle of an epoch, wherever it falls."""
    override = {"trainer.max_epochs": 12, "trainer.limit_train_batches": -1, "trainer.checkpoint_seconds": 0.0}
    run = smoke_run("vrd_tensor", "1", "vrd_tensor.triplet", override)
    calm, killed = Workspace(tmp_path / "calm", generated), Workspace(tmp_path / "killed", generated)
    execute(run, calm.machine)
    folder = killed.store.folder(run)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(to_json(run)))
    kills = 0
    while not (folder / RECORD).exists():
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments", "run", str(folder / "run.json")],
            cwd=Path(__file__).parents[2],
            env=os.environ | killed.variables,
        )
        before = (folder / CHECKPOINT).stat().st_mtime_ns if (folder / CHECKPOINT).exists() else 0
        while process.poll() is None and kills < 2:
            if (folder / CHECKPOINT).exists() and (folder / CHECKPOINT).stat().st_mtime_ns > before:
                time.sleep(0.1)
                process.kill()
                kills += 1
                break
            time.sleep(0.01)
        process.wait(120)
    assert kills == 2
    ours, expected = trained(run, killed), trained(run, calm)
    assert ours[0] == expected[0] and same_bits(ours[1], expected[1])
