"""Where runs live: `runs/<paper>/<hash>/`, and the committed records in `results/records/<paper>/<hash>.json`."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from experiments.errors import ExperimentError
from experiments.runs import Run

State = Literal["absent", "incomplete", "stale", "done"]
Record = dict[str, Any]

CHECKPOINT = "last.ckpt"
RECORD = "record.json"
RECORD_KEYS = frozenset(
    {"paper", "stage", "run", "seed", "config", "needs", "method_versions", "metrics", "curves", "data"}
    | {"duration_s", "peak_memory_mb", "hardware", "versions", "commit"}
)
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def explained_full_disk(path: Path) -> Iterator[None]:
    """Turn the operating system's "no space left" while writing `path` into the one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise ExperimentError(
            f"no space left while writing {path} ({error.strerror}). Everything finished before is kept: "
            "free some space, or point RUNS_DIR at another disk, and give the same command again"
        ) from None


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file so that it is either all there or not there: temporary name, flush to disk, rename.

    Raises:
        ExperimentError: The disk is full; the partial file is removed and what was at `path` stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with explained_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_record(path: Path) -> Record:
    """Return a record.

    Raises:
        ExperimentError: The file is not a record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        lacking = sorted(RECORD_KEYS - record.keys()) if isinstance(record, dict) else ["a mapping"]
        reason = f"it lacks {', '.join(lacking)}" if lacking else ""
    except ValueError as error:  # of JSON or of UTF-8
        reason = str(error)
    if reason:
        remedy = "restore it from git, or delete it and give the table's command again"
        raise ExperimentError(f"{path}: not a complete record ({reason}): {remedy}")
    return dict(record)


@dataclass(frozen=True)
class Store:
    """The two folders that hold runs and records."""

    runs_dir: Path
    results_dir: Path

    def folder(self, run: Run) -> Path:
        """Return the run's own folder; it need not exist."""
        return self.runs_dir / run.paper / run.name

    def record(self, run: Run) -> Record | None:
        """Return the run's record, or None: the committed one or that in its folder, a stale one last."""
        stale: Record | None = None
        for path in (self.published(run), self.folder(run) / RECORD):
            if path.exists():
                record = read_record(path)
                if self.fresh(run, record):
                    return record
                stale = stale or record
        return stale

    def published(self, run: Run) -> Path:
        """Return where the run's committed record belongs."""
        return self.results_dir / "records" / run.paper / f"{run.name}.json"

    def state(self, run: Run) -> State:
        """Return absent, incomplete (it will go on from a checkpoint), stale (done by an older version) or done."""
        record = self.record(run)
        if record is None:
            return "incomplete" if (self.folder(run) / CHECKPOINT).exists() else "absent"
        return "done" if self.fresh(run, record) else "stale"

    def fresh(self, run: Run, record: Record) -> bool:
        """Return whether the record was made by the present version of the run's stage and of all that it needs."""
        return bool(record["method_versions"] == run.method_versions)

    def usable(self, run: Run) -> bool:
        """Return whether a run that needs this one can start: it is done and, if it trained, its weights are here."""
        if not run.stage.fits:
            return self.state(run) == "done"
        path = self.folder(run) / RECORD
        has_files = path.exists() and (self.folder(run) / CHECKPOINT).exists()
        return has_files and self.fresh(run, read_record(path))

    def missing(self, run: Run) -> list[Run]:
        """Return what must be executed so that `run` is done: nothing if it is, else it and its unusable needs."""
        if self.state(run) == "done":
            return []
        todo = [r for need in run.needs.values() if not self.usable(need) for r in self._with_needs(need)]
        return list({r.name: r for r in [*todo, run]}.values())

    def _with_needs(self, run: Run) -> list[Run]:
        return [r for n in run.needs.values() if not self.usable(n) for r in self._with_needs(n)] + [run]

    @contextmanager
    def lock(self, run: Run) -> Iterator[None]:
        """Hold the run for this process; the kernel releases it however the process ends."""
        folder = self.folder(run)
        lock = FileLock(folder / "lock")
        with explained_full_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            for leftover in (p for name in (CHECKPOINT, RECORD) for p in folder.glob(f"{name}.*.partial")):
                leftover.unlink()  # of a process that was killed while writing
            yield
        finally:
            lock.release()

    def write_record(self, run: Run, record: Record) -> None:
        """Write the record that marks the run as done; the last thing a run does."""
        write_atomically(self.folder(run) / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")

    def publish(self, run: Run) -> None:
        """Copy the run's record to the committed ones, unless it is stale or a fresh one is there."""
        source, target = self.folder(run) / RECORD, self.published(run)
        fresh = [path.exists() and self.fresh(run, read_record(path)) for path in (source, target)]
        if fresh == [True, False]:
            write_atomically(target, source.read_bytes())
