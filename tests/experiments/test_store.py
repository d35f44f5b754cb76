from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.errors import ExperimentError
from experiments.methods import STAGES
from experiments.runs import Run, RunFactory, in_order
from experiments.store import CHECKPOINT, RECORD, Store, explained_full_disk, read_record, write_atomically
from tests.experiments.workspace import file_size_limit, leave, record_of

CONFIG: dict[str, Any] = {"data": {"split": "all"}, "model": {"width": 8, "dropout": 0.5}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", tmp_path / "results")


@pytest.fixture
def run(fake_stages: None) -> Run:
    """An evaluation, of a training, of features."""
    return RunFactory("paper").make("fake", CONFIG, 0)


@pytest.fixture
def chosen(fake_stages: None) -> Run:
    """An evaluation that also needs another evaluation."""
    return RunFactory("paper").make("fake", CONFIG | {"data": {"split": "test"}}, 0)


def raise_version(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setitem(STAGES, stage, replace(STAGES[stage], version=2))


def fresh_copy(run: Run) -> Run:
    """The same run, as another process would make it now."""
    return RunFactory(run.paper).make(run.stage_name, CONFIG, run.seed)


def names(runs: list[Run]) -> list[str]:
    return [f"{run.stage_name}:{run.config['data']['split']}" for run in runs]


def test_a_run_is_absent_then_incomplete_then_done(store: Store, run: Run) -> None:
    training = run.needs["network"]
    assert store.state(training) == "absent"
    with store.lock(training):
        assert store.state(training) == "absent"
    (store.folder(training) / CHECKPOINT).write_bytes(b"half-way")
    assert store.state(training) == "incomplete"
    leave(store, training)
    assert store.state(training) == "done"


@pytest.mark.parametrize("stage", ["fake", "fake.training", "fake.features"])
def test_a_newer_version_of_anything_it_stands_on_makes_a_run_stale(
    store: Store, run: Run, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in in_order([run]):
        leave(store, each, checkpoint=True)
    assert {store.state(each) for each in in_order([run])} == {"done"}
    raise_version(monkeypatch, stage)
    again = fresh_copy(run)
    assert again.name == run.name  # the version is no part of the name: tables still show the old number, marked
    assert store.state(again) == "stale"
    stale = {each.stage_name for each in in_order([again]) if store.state(each) == "stale"}
    users = {"fake": {"fake"}, "fake.training": {"fake", "fake.training"}}
    assert stale == users.get(stage, {"fake", "fake.training", "fake.features"})
    assert {each.stage_name for each in store.missing(again)} == stale


def test_what_is_missing_comes_in_order(store: Store, run: Run) -> None:
    assert names(store.missing(run)) == ["fake.features:all", "fake.training:all", "fake:all"]
    leave(store, run.needs["network"].needs["features"], checkpoint=True)
    assert names(store.missing(run)) == ["fake.training:all", "fake:all"]
    leave(store, run.needs["network"], checkpoint=True)
    assert names(store.missing(run)) == ["fake:all"]
    leave(store, run)
    assert store.missing(run) == []


def test_a_done_run_needs_nothing_any_more(store: Store, run: Run) -> None:
    leave(store, run)
    assert store.missing(run) == []


def test_a_committed_record_counts_as_done_but_has_no_weights(store: Store, run: Run) -> None:
    """In a fresh clone only records are there: nothing is trained, until a new row needs the weights."""
    for each in in_order([run]):
        write_atomically(store.published(each), json.dumps(record_of(each)))
    assert {store.state(each) for each in in_order([run])} == {"done"}
    assert store.usable(run)
    assert not store.usable(run.needs["network"])
    assert store.missing(run) == store.missing(run.needs["network"]) == []
    store.published(run).unlink()
    # The training must be done again, and for it the features.
    assert names(store.missing(run)) == ["fake.features:all", "fake.training:all", "fake:all"]


def test_a_training_without_its_checkpoint_is_done_again_only_for_those_that_need_it(store: Store, run: Run) -> None:
    training = run.needs["network"]
    leave(store, training)
    assert store.state(training) == "done" and store.missing(training) == []
    assert names(store.missing(run)) == ["fake.features:all", "fake.training:all", "fake:all"]
    (store.folder(training) / CHECKPOINT).write_bytes(b"weights")
    assert names(store.missing(run)) == ["fake:all"]


def test_an_evaluation_that_is_needed_must_only_be_done(store: Store, chosen: Run) -> None:
    def missing() -> set[str]:
        return set(names(store.missing(chosen)))

    stages = ("fake.features", "fake.training", "fake")
    here, held_out = ({f"{stage}:{split}" for stage in stages} for split in ("test", "held_out"))
    assert missing() == here | held_out
    leave(store, chosen.needs["choice"])
    assert missing() == here  # what made the choice is not needed any more
    for need in (chosen.needs["network"], chosen.needs["network"].needs["features"]):
        leave(store, need, checkpoint=True)
    assert missing() == {"fake:test"}
    leave(store, chosen.needs["choice"], method_versions={"fake": 0})
    assert missing() == {"fake:test"} | held_out  # a stale choice is made again, and for it its training


def test_the_fresh_one_of_two_records_counts(store: Store, run: Run) -> None:
    """Records of several machines merge by copying files, whatever lies in `runs/`."""
    old: dict[str, Any] = {"method_versions": {"fake": 0}}
    assert store.record(run) is None
    leave(store, run, commit="mine")
    write_atomically(store.published(run), json.dumps(record_of(run, commit="theirs", **old)))
    assert (store.record(run) or {})["commit"] == "mine" and store.state(run) == "done"
    leave(store, run, commit="mine", **old)
    assert store.state(run) == "stale"
    write_atomically(store.published(run), json.dumps(record_of(run, commit="theirs")))
    assert (store.record(run) or {})["commit"] == "theirs" and store.state(run) == "done"


def test_publishing_never_replaces_a_fresh_record_nor_brings_a_stale_one(store: Store, run: Run) -> None:
    def commit() -> str:
        return str(read_record(store.published(run))["commit"])

    store.publish(run)
    assert not store.published(run).exists()
    leave(store, run, commit="stale", method_versions={"fake": 0})
    store.publish(run)
    assert not store.published(run).exists()
    leave(store, run, commit="first")
    store.publish(run)
    assert commit() == "first"
    assert store.published(run).read_bytes() == (store.folder(run) / RECORD).read_bytes()
    leave(store, run, commit="second")
    store.publish(run)
    assert commit() == "first"  # else a fresh clone's tables would differ from those made here before
    write_atomically(store.published(run), json.dumps(record_of(run, commit="old", method_versions={"fake": 0})))
    store.publish(run)
    assert commit() == "second"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"metrics": {"a"', "Expecting"),
        (b"\xff\xfe", "decode"),
        (b"[]", "it lacks a mapping"),
        (b"{}", "it lacks commit, config, curves, data, duration_s"),
        (b'{"metrics": {}}', "method_versions"),
    ],
)
def test_a_damaged_record_is_named_with_the_remedy(store: Store, run: Run, content: bytes, reason: str) -> None:
    for path in (store.folder(run) / RECORD, store.published(run)):
        write_atomically(path, content)
        with pytest.raises(ExperimentError) as error:
            store.state(run)
        assert str(path) in str(error.value) and reason in str(error.value)
        assert "restore it from git, or delete it" in str(error.value)
        path.unlink()


def test_a_record_is_written_as_it_will_be_compared(store: Store, run: Run) -> None:
    """Sorted keys and one line end: the same record has the same bytes on every machine."""
    leave(store, run, metrics={"b": 0.1, "a": 1 / 3})
    text = (store.folder(run) / RECORD).read_text()
    assert json.loads(text)["metrics"] == {"a": 1 / 3, "b": 0.1}
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"


def test_a_refused_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, "old")
    with file_size_limit(1000), pytest.raises(ExperimentError) as error:
        write_atomically(path, "new" * 1000)
    assert str(error.value).startswith(f"no space left while writing {path} (")
    assert "free some space" in str(error.value) and error.value.__cause__ is None
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, "new" * 1000)
    assert path.read_text() == "new" * 1000


def test_a_full_device_leaves_what_was_there(tmp_path: Path) -> None:
    """/dev/full answers every write with "no space left on device"."""
    path = tmp_path / "record.json"
    write_atomically(path, "old")
    (tmp_path / f"record.json.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(ExperimentError, match=os.strerror(errno.ENOSPC)):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        path = disk / "results" / "record.json"
        write_atomically(path, b"old")
        with pytest.raises(ExperimentError, match=os.strerror(errno.ENOSPC)):
            write_atomically(path, b"x" * 100_000)
        assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["record.json"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_other_errors_of_the_system_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path, "content")
    with pytest.raises(PermissionError), explained_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_writing_makes_the_folders(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "c.txt", memoryview(b"text"))
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "text"


HOLD = """
import sys, time
from pathlib import Path
from experiments.runs import Run
from experiments.store import Store
folder, log, name, seconds = sys.argv[1:]
with Store(Path(folder), Path(folder)).lock(Run("paper", "frequency", 0, {}, {})):
    with open(log, "a") as file:
        file.write(f"{name} in\\n")
    time.sleep(float(seconds))
    with open(log, "a") as file:
        file.write(f"{name} out\\n")
"""


def hold(tmp_path: Path, name: str, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", HOLD, str(tmp_path), str(tmp_path / "log"), name, str(seconds)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2])


def wait_for(path: Path, text: str) -> None:
    until = time.monotonic() + 30
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < until, f"{text!r} never came"
        time.sleep(0.02)


def test_a_run_is_held_by_one_process_at_a_time_and_set_free_by_its_death(tmp_path: Path) -> None:
    dying = hold(tmp_path, "dying", 60)
    wait_for(tmp_path / "log", "dying in")
    others = [hold(tmp_path, name, 0.1) for name in ("first", "second")]
    time.sleep(0.8)
    assert (tmp_path / "log").read_text().splitlines() == ["dying in"]
    dying.kill()
    dying.wait()
    assert [process.wait(30) for process in others] == [0, 0]
    lines = (tmp_path / "log").read_text().splitlines()[1:]
    order = [line.split()[0] for line in lines]
    assert [line.split()[1] for line in lines] == ["in", "out", "in", "out"]
    assert order[0] == order[1] != order[2] == order[3]


def test_holding_a_run_clears_what_a_killed_writer_left(store: Store, run: Run) -> None:
    folder = store.folder(run)
    with store.lock(run):
        for name in (f"{CHECKPOINT}.123.partial", f"{RECORD}.123.partial", "run.json.456.partial", CHECKPOINT):
            (folder / name).write_text("half")
    with store.lock(run):
        # Another process may be writing run.json just now.
        assert sorted(p.name for p in folder.iterdir()) == sorted([CHECKPOINT, "lock", "run.json.456.partial"])
