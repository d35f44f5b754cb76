"""A run: one training or evaluation with one resolved config and one seed, named by their hash."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.config import Config, digest, flatten
from experiments.errors import ExperimentError
from experiments.methods import Stage, needed, stage
from experiments.schema import HASHLESS, NEUTRAL


@dataclass(frozen=True)
class Run:
    """One run. Equal runs have equal names; `needs` are runs too, and their names are part of this one's."""

    paper: str
    stage_name: str
    seed: int
    config: Config  # the part that the stage reads; keys that cannot change its result stay out of the name
    needs: dict[str, Run]

    @cached_property
    def name(self) -> str:
        """The run's 12-digit hash."""
        needs = {key: run.name for key, run in self.needs.items()}
        named = ((key, value) for key, value in flatten(self.config) if key not in HASHLESS)
        config = {key: value for key, value in named if key not in NEUTRAL or value != NEUTRAL[key]}
        return digest({"stage": self.stage_name, "seed": self.seed, "config": config, "needs": needs})

    @property
    def stage(self) -> Stage:
        """What kind of run this is."""
        return stage(self.stage_name)

    @cached_property
    def method_versions(self) -> dict[str, int]:
        """Versions of its stage and of all that it needs, however indirectly: a record of others is stale."""
        return {run.stage_name: run.stage.version for run in in_order([self])}

    def __hash__(self) -> int:
        return hash(self.name)


class RunFactory:
    """Makes runs from full configs, each distinct one once."""

    def __init__(self, paper: str):
        """Take the paper whose folder the runs go to."""
        self._paper = paper
        self._made: dict[str, Run] = {}

    def make(self, stage_name: str, config: Config, seed: int) -> Run:
        """Return the run of this stage, full config and seed, with all that it needs."""
        needs = {key: self.make(name, full, seed) for key, (name, full) in needed(stage_name, config).items()}
        run = Run(self._paper, stage_name, seed, stage(stage_name).project(config), needs)
        return self._made.setdefault(run.name, run)


def in_order(runs: Iterable[Run]) -> list[Run]:
    """Return the distinct runs and all they need, every need before its user."""

    def walk(run: Run) -> Iterator[Run]:
        for need in run.needs.values():
            yield from walk(need)
        yield run

    return list({r.name: r for run in runs for r in walk(run)}.values())


def to_json(run: Run) -> dict[str, Any]:
    """Return the run as a JSON-like value that `load` reads back."""
    needs = {key: to_json(need) for key, need in run.needs.items()}
    return {"paper": run.paper, "stage": run.stage_name, "seed": run.seed, "config": run.config, "needs": needs}


def _from_json(content: Mapping[str, Any]) -> Run:
    needs = {key: _from_json(need) for key, need in content["needs"].items()}
    return Run(content["paper"], content["stage"], content["seed"], content["config"], needs)


def load(path: Path) -> Run:
    """Return the run of a `run.json`.

    Raises:
        ExperimentError: The file is missing or not a run.
    """
    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExperimentError(
            f"{path}: not a run ({error!r}); give the table's command again to write it anew"
        ) from None
