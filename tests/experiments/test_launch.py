from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from experiments import launch as launch_module
from experiments.errors import ExperimentError
from experiments.launch import launch
from experiments.machine import Machine
from experiments.runs import Run, RunFactory, in_order
from experiments.store import CHECKPOINT, RECORD
from tests.experiments.workspace import Workspace, leave, load, smoke_run

ROOT = Path(__file__).parents[2]


def fake_runs(seeds: int) -> list[Run]:
    factory = RunFactory("paper")
    config: dict[str, Any] = {"data": {"split": "all"}, "model": {"width": 8, "dropout": 0.5}}
    return [factory.make("fake", config, seed) for seed in range(seeds)]


class Executor:
    """Stands in for the execution of a run: leaves what it would, notes the order, and fails where it is told to."""

    def __init__(self, failing: dict[str, Exception]):
        self.done: list[str] = []
        self.failing = failing

    def __call__(self, run: Run, machine: Machine) -> None:
        assert all(machine.store.usable(need) for need in run.needs.values()), "a need was not done before"
        if run.name in self.failing:
            raise self.failing[run.name]
        leave(machine.store, run, checkpoint=run.stage.fits)
        self.done.append(run.name)


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch, fake_stages: None) -> Executor:
    stand_in = Executor({})
    monkeypatch.setattr("experiments.run.execute", stand_in)
    return stand_in


def test_everything_is_done_once_and_in_order(executor: Executor, workspace: Workspace) -> None:
    runs = fake_runs(2)
    launch(runs, workspace.machine)
    assert executor.done == [run.name for run in in_order(runs)]
    launch(runs, workspace.machine)
    assert len(executor.done) == 6


def test_a_failure_stops_only_what_needs_it(executor: Executor, workspace: Workspace) -> None:
    first, second, third = fake_runs(3)
    training, same_reason = first.needs["network"], second
    executor.failing = {
        training.name: ExperimentError("no images in data/x"),
        same_reason.name: ValueError("no images in data/x"),
    }
    with pytest.raises(ExperimentError) as error:
        launch([first, second, third], workspace.machine)
    assert str(error.value).splitlines() == [
        "3 of 9 runs are not done:",
        f"  {training.name}, {second.name}: no images in data/x",  # a reason is said once
        f"  {first.name}: needs a run that failed",
    ]
    assert error.value.__cause__ is executor.failing[training.name]
    assert workspace.store.state(third) == "done"
    assert workspace.store.state(second.needs["network"]) == "done"
    executor.failing = {}
    executor.done = []
    launch([first, second, third], workspace.machine)
    assert executor.done == [training.name, first.name, second.name]


def test_a_mistake_in_the_code_is_not_taken_for_a_failed_run(executor: Executor, workspace: Workspace) -> None:
    run = fake_runs(1)[0]
    executor.failing = {run.needs["network"].name: KeyError("rank")}
    with pytest.raises(KeyError):
        launch([run], workspace.machine)


WORKER = """
import json, os, sys, time
from pathlib import Path
record, log, name, action = sys.argv[1:]
with open(log, "a") as file:
    file.write(f"start {name}\\n")
time.sleep(0.1)
if action == "fail":
    print("Traceback: ...\\nerror: no images in data/x")
    sys.exit(2)
if action == "crash":
    os.kill(os.getpid(), 9)
Path(record).rename(Path(record).with_name("record.json"))
with open(log, "a") as file:
    file.write(f"end {name}\\n")
"""


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, workspace: Workspace, fake_stages: None) -> dict[str, str]:
    """Let pool workers be small processes that leave a record, or do what this mapping says of a run's name."""
    actions: dict[str, str] = {}

    def start(run: Run, machine: Machine) -> subprocess.Popen[bytes]:
        leave(machine.store, run, checkpoint=True)
        folder = machine.store.folder(run)
        waiting = (folder / "record.json").rename(folder / "waiting.json")
        log, action = workspace.folder / "log", actions.get(run.name, "")
        command = [sys.executable, "-c", WORKER, str(waiting), str(log), run.name, action]
        with (folder / "log.txt").open("ab") as output:
            return subprocess.Popen(command, stdout=output)

    monkeypatch.setattr(launch_module, "_start", start)
    return actions


def test_a_pool_keeps_the_order_of_needs_and_the_number_of_workers(pool: dict[str, str], workspace: Workspace) -> None:
    runs = fake_runs(3)
    launch(runs, workspace.machine, workers=2)
    lines = [line.split() for line in (workspace.folder / "log").read_text().splitlines()]
    assert Counter(name for what, name in lines if what == "start") == dict.fromkeys(
        (run.name for run in in_order(runs)), 1
    )
    working: set[str] = set()
    most = 0
    ended: set[str] = set()
    by_name = {run.name: run for run in in_order(runs)}
    for what, name in lines:
        if what == "start":
            assert {need.name for need in by_name[name].needs.values()} <= ended
            working.add(name)
            most = max(most, len(working))
        else:
            working.remove(name)
            ended.add(name)
    assert most == 2
    assert all(workspace.store.state(run) == "done" for run in in_order(runs))


def test_a_failure_in_a_pool_stops_only_what_needs_it(pool: dict[str, str], workspace: Workspace) -> None:
    first, second, third = fake_runs(3)
    pool |= {first.needs["network"].name: "fail", second.name: "crash"}
    with pytest.raises(ExperimentError) as error:
        launch([first, second, third], workspace.machine, workers=3)
    message, *lines = str(error.value).splitlines()
    assert message == "3 of 9 runs are not done:"
    assert sorted(lines) == sorted(
        [
            f"  {first.needs['network'].name}: no images in data/x",
            f"  {first.name}: needs a run that failed",
            f"  {second.name}: killed by signal 9; see {workspace.store.folder(second) / 'log.txt'}",
        ]
    )
    assert workspace.store.state(third) == "done"


def _count_and_command(space: Workspace, log: Path, arguments: list[str]) -> None:
    import experiments.run

    train_or_test = experiments.run._train_or_test

    def counted(run: Run, *rest: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{run.name}\n")
        return train_or_test(run, *rest)

    experiments.run._train_or_test = counted
    sys.exit(space.command(*arguments))


def test_two_commands_at_once_do_each_run_once(tmp_path: Path, smoke: Workspace) -> None:
    """Even the generated world is not there yet: both processes want to write it."""
    space, log = Workspace(tmp_path, tmp_path / "generated"), tmp_path / "log"
    arguments = ["table", "reldn", "8", "--profile", "smoke"]
    fork = multiprocessing.get_context("fork")  # they share this process's imports, which take seconds
    processes = [fork.Process(target=_count_and_command, args=(space, log, arguments)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    spec = load("reldn", "table", "8", "smoke")
    assert Counter(log.read_text().split()) == dict.fromkeys((run.name for run in in_order(spec.runs)), 1)
    assert space.table_csv(spec) == smoke.table_csv(spec)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_a_pool_gives_the_bytes_of_one_process(tmp_path: Path, smoke: Workspace) -> None:
    space = Workspace(tmp_path, tmp_path / "generated")
    assert space.command("table", "reldn", "8", "--profile", "smoke", "--workers", "2") == 0
    spec = load("reldn", "table", "8", "smoke")
    assert space.table_csv(spec) == smoke.table_csv(spec)
    ours, theirs = space.records(), smoke.records()
    for name, record in ours.items():
        assert [record[key] for key in ("metrics", "curves")] == [theirs[name][key] for key in ("metrics", "curves")]
    assert all((p.parent / "run.json").exists() for p in space.modified())


@pytest.mark.slow
def test_a_failing_worker_says_why(tmp_path: Path) -> None:
    """Without data the trainings fail; what fails for one reason is told once, by two real workers."""
    space = Workspace(tmp_path, tmp_path / "generated")
    run = smoke_run("reldn", "8", "reldn", {"data.world.seed": -1})
    with pytest.raises(ExperimentError) as error, pytest.MonkeyPatch.context() as patch:
        for key, value in space.variables.items():
            patch.setenv(key, value)
        launch([run], space.machine, workers=2)
    assert str(error.value).splitlines() == [
        "2 of 2 runs are not done:",
        f"  {run.needs['network'].name}: needs the data set vrd: set DATA_ROOT to the folder that holds vrd/, "
        "or use PROFILE=demo, which generates its data",
        f"  {run.name}: needs a run that failed",
    ]


@pytest.mark.slow
def test_commands_of_separate_processes_share_the_work(tmp_path: Path, smoke: Workspace) -> None:
    """As above, with processes that share nothing but the folders."""
    space = Workspace(tmp_path, tmp_path / "generated")
    command = [sys.executable, "-m", "experiments", "table", "reldn", "8", "--profile", "smoke"]
    processes = [subprocess.Popen(command, cwd=ROOT, env=os.environ | space.variables) for _ in range(2)]
    assert [process.wait(500) for process in processes] == [0, 0]
    spec = load("reldn", "table", "8", "smoke")
    assert space.table_csv(spec) == smoke.table_csv(spec)


@pytest.mark.slow
def test_a_table_s_command_may_be_killed_at_any_moment(tmp_path: Path, smoke: Workspace) -> None:
    """SIGKILL of the whole process group, a random while after it has got on; every step leaves a checkpoint."""
    space = Workspace(tmp_path, tmp_path / "generated")
    options = ["--profile", "smoke", "--set", "trainer.checkpoint_seconds=0"]
    command = [sys.executable, "-m", "experiments", "table", "reldn", "8", *options]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | space.variables, start_new_session=True)

    def left() -> set[tuple[Path, int]]:
        found = [p for name in (RECORD, CHECKPOINT) for p in space.machine.runs_dir.glob(f"*/*/{name}")]
        return {(path, path.stat().st_mtime_ns) for path in found}

    draw = random.Random(0)
    done_when_killed = []
    for events in (1, 2, 3, 1):
        process, before = start(), left()
        while process.poll() is None and len(left() - before) < events:
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.1))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done_when_killed.append(len(space.modified()))
    spec = load("reldn", "table", "8", "smoke")
    total = len(in_order(spec.runs))
    assert len(done_when_killed) >= 3 and any(0 < done < total for done in done_when_killed), done_when_killed
    assert start().wait(120) == 0
    assert space.table_csv(spec) == smoke.table_csv(spec)
    ours, theirs = space.records(), smoke.records()
    assert len(ours) == total
    for name, record in ours.items():
        assert [record[key] for key in ("metrics", "curves")] == [theirs[name][key] for key in ("metrics", "curves")]
