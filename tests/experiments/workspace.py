"""A machine of its own for each test: folders, the command line with them, runs, and records without training."""

from __future__ import annotations

import functools
import json
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import main
from experiments.config import nested
from experiments.machine import Machine
from experiments.runs import Run, in_order
from experiments.spec import Registry, TableSpec
from experiments.store import CHECKPOINT, RECORD, Record, Store

REGISTRY = Registry()
TABLES = [(paper, kind, name) for paper in REGISTRY.papers for kind, name in REGISTRY.tables(paper)]

PIXELS = {  # what makes the smoke profile's models see the generated images and our own detector's boxes
    "model.visual": True,
    "data.image_size": "images",
    "data.proposals": "faster_rcnn_imagenet",
    "data.train_boxes": "proposals",
}


@functools.cache
def load(paper: str, kind: str, name: str, profile: str = "paper") -> TableSpec:
    """A table of the real registry, loaded once."""
    return REGISTRY.load(paper, kind, name, profile)


def with_runs(profile: str) -> list[TableSpec]:
    """The real tables that have runs."""
    return [spec for table in TABLES if (spec := load(*table, profile)).runs]


def smoke_run(paper: str, name: str, stage: str, override: Mapping[str, Any] | None = None) -> Run:
    """The first run of a stage in a table of the smoke profile."""
    spec = REGISTRY.load(paper, "table", name, "smoke", nested(override or {}))
    return next(run for run in in_order(spec.runs) if run.stage_name == stage)


@dataclass(frozen=True)
class Workspace:
    """Folders of a machine; `generated` may be shared, because a complete world is only read."""

    folder: Path
    generated: Path
    data_root: Path | None = None

    @property
    def machine(self) -> Machine:
        return Machine(self.data_root, self.generated, self.folder / "runs", self.folder / "results")

    @property
    def store(self) -> Store:
        return self.machine.store

    @property
    def variables(self) -> dict[str, str]:
        """The environment that makes a process use these folders."""
        machine = self.machine
        folders = {"GENERATED_DIR": machine.generated, "RUNS_DIR": machine.runs_dir, "RESULTS_DIR": machine.results_dir}
        return {key: str(path) for key, path in folders.items()} | {"DATA_ROOT": str(self.data_root or "")}

    def command(self, *arguments: str) -> int:
        """Give a command in this process and return its exit status."""
        with pytest.MonkeyPatch.context() as patch:
            for key, value in self.variables.items():
                patch.setenv(key, value)
            return main(arguments)

    def table_csv(self, spec: TableSpec) -> bytes:
        """The bytes of a table's CSV file."""
        folder = self.machine.results_dir if spec.profile == "paper" else self.machine.results_dir / spec.profile
        return (folder / spec.paper / f"{spec.stem}.csv").read_bytes()

    def records(self) -> dict[str, Record]:
        """All records of `runs/`, by run."""
        paths = sorted(self.machine.runs_dir.glob(f"*/*/{RECORD}"))
        return {f"{p.parent.parent.name}/{p.parent.name}": json.loads(p.read_text()) for p in paths}

    def modified(self) -> dict[Path, int]:
        """When each record of `runs/` was written, in nanoseconds."""
        return {p: p.stat().st_mtime_ns for p in self.machine.runs_dir.glob(f"*/*/{RECORD}")}


def record_of(run: Run, **changes: Any) -> Record:
    """A record as the run would leave it, without doing it."""
    record = {
        "paper": run.paper,
        "stage": run.stage_name,
        "run": run.name,
        "seed": run.seed,
        "config": run.config,
        "needs": {key: need.name for key, need in run.needs.items()},
        "method_versions": run.method_versions,
        "metrics": {},
        "curves": {},
        "data": {"dataset": "VRD", "official": True, "files": []},
        "duration_s": 1.0,
        "peak_memory_mb": 1.0,
        "hardware": {"cpu": "a processor", "cores": 2, "gpu": None},
        "versions": {"python": "3.11"},
        "commit": "0123456789ab",
    }
    return record | changes


def leave(store: Store, run: Run, checkpoint: bool = False, **changes: Any) -> None:
    """Leave what a finished run leaves."""
    store.write_record(run, record_of(run, **changes))
    if checkpoint:
        (store.folder(run) / CHECKPOINT).write_bytes(b"weights")


def forget_determinism() -> None:
    """Undo what a Trainer sets for the whole process, for the tests after this one."""
    if "torch" in sys.modules:
        sys.modules["torch"].use_deterministic_algorithms(False)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the operating system refuse to write files beyond `size` bytes, as it refuses on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
