"""What belongs to this machine and not to an experiment: where data, runs and results lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import ExperimentError
from experiments.store import Store


@dataclass(frozen=True)
class Machine:
    """Folders of this machine, from the environment."""

    data_root: Path | None
    generated: Path
    runs_dir: Path
    results_dir: Path

    @classmethod
    def from_environment(cls) -> Machine:
        """Read DATA_ROOT, GENERATED_DIR, RUNS_DIR and RESULTS_DIR; all but the first have defaults in this folder."""
        data_root = os.environ.get("DATA_ROOT")
        return cls(
            Path(data_root) if data_root else None,
            Path(os.environ.get("GENERATED_DIR", "generated")),
            Path(os.environ.get("RUNS_DIR", "runs")),
            Path(os.environ.get("RESULTS_DIR", "results")),
        )

    @property
    def store(self) -> Store:
        """The store of runs and records."""
        return Store(self.runs_dir, self.results_dir)

    def data(self, name: str) -> Path:
        """Return a real data set's folder.

        Raises:
            ExperimentError: DATA_ROOT is not set or has no such folder.
        """
        remedy = "or use PROFILE=demo, which generates its data"
        if self.data_root is None:
            raise ExperimentError(
                f"needs the data set {name}: set DATA_ROOT to the folder that holds {name}/, {remedy}"
            )
        folder = self.data_root / name
        if not folder.is_dir():
            raise ExperimentError(f"needs the data set {name}: {folder} does not exist; put it there, {remedy}")
        return folder

    def has(self, name: str) -> bool:
        """Return whether a file or folder lies under DATA_ROOT."""
        return self.data_root is not None and (self.data_root / name).exists()
