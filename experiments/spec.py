"""From `experiments/<paper>/*.yaml` to tables, cells and runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.cells import Deviation
from experiments.config import Config, Validator, differences, flatten, merge, nested, read_yaml
from experiments.entries import RowEntry, TableEntry, check_names, matches, read_entry
from experiments.errors import ExperimentError, unknown
from experiments.methods import methods_of
from experiments.published import PublishedCell, load_published
from experiments.runs import Run, RunFactory, in_order
from experiments.schema import HASHLESS, SCHEMAS

ROOT = Path(__file__).parent
PROFILES = ("paper", "demo", "smoke")


@dataclass(frozen=True)
class CellSpec:
    """One cell: what was printed, the runs whose metric fills it, and what they need under DATA_ROOT."""

    published: PublishedCell
    printed: bool
    runs: tuple[Run, ...] = ()
    metric: str = ""
    deviations: tuple[Deviation, ...] = ()
    missing: str = ""
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableSpec:
    """A table with its cells, in print order."""

    paper: str
    kind: str
    name: str
    profile: str
    entry: TableEntry
    cells: tuple[CellSpec, ...]
    notes: tuple[str, ...]
    overridden: bool

    @property
    def stem(self) -> str:
        """File stem: `table8`, `figure4`, `table_ablation`."""
        return stem(self.kind, self.name)

    @property
    def runs(self) -> list[Run]:
        """The distinct runs that the cells read."""
        return list({run.name: run for cell in self.cells for run in cell.runs}.values())

    def runnable(self, has: Callable[[str], bool]) -> list[Run]:
        """The distinct runs of the cells that require nothing but what is there."""
        cells = [cell for cell in self.cells if all(map(has, cell.requires))]
        return list({run.name: run for cell in cells for run in cell.runs}.values())


def stem(kind: str, name: str) -> str:
    """Return the file stem of a table or figure."""
    return f"{kind}{name}" if name.isdigit() else f"{kind}_{name}"


class Registry:
    """All papers, tables and figures under a folder."""

    def __init__(self, root: Path = ROOT):
        """Take the folder that holds one folder a paper."""
        self.root = root

    @cached_property
    def papers(self) -> list[str]:
        """Slugs of all papers."""
        return sorted(p.name for p in self.root.iterdir() if any(p.glob("table*.yaml")))

    def tables(self, paper: str) -> list[tuple[str, str]]:
        """Return (kind, name) of a paper's tables and figures: tables, ablations, figures, by number."""
        if paper not in self.papers:
            raise unknown("paper", paper, self.papers)
        files = (re.fullmatch(r"(table|figure)_?(\w+)", p.stem) for p in (self.root / paper).glob("*.yaml"))
        found = [(match[1], match[2]) for match in files if match]
        return sorted(found, key=lambda t: (t[0] != "table", not t[1].isdigit(), int(t[1]) if t[1].isdigit() else 0))

    def load(
        self,
        paper: str,
        kind: str,
        name: str,
        profile: str = "paper",
        override: Mapping[str, Any] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> TableSpec:
        """Return one table with all its cells and runs.

        Args:
            paper: Slug.
            kind: `table` or `figure`.
            name: Its number, or `ablation`.
            profile: `paper`, `demo` or `smoke`.
            override: Config changes from the command line; they win, and appear as deviations.
            seeds: Replaces the seeds of every row that has more than one.

        Raises:
            ExperimentError: Unknown paper, table, profile, method, key, row, group or column; the message lists what
            exists.
        """
        if (kind, name) not in self.tables(paper):
            known = [f"{paper}-{n}" for k, n in self.tables(paper) if k == kind]
            raise unknown(kind, f"{paper}-{name}", known)
        if profile not in PROFILES:
            raise unknown("profile", profile, PROFILES)
        path = self.root / paper / f"{stem(kind, name)}.yaml"
        entry = read_entry(path)
        printed = load_published(self.root / paper / "published" / entry.published) if entry.published else []
        builder = _CellBuilder(self.root / paper, path, entry, profile, override or {}, seeds)
        cells = tuple(builder.cells(printed, kind))
        notes = tuple(f"{'; '.join(dict.fromkeys(rows))}: {said}" for said, rows in builder.notes.items())
        changed = {key for key, _ in flatten(nested(override or {}))} - HASHLESS
        return TableSpec(paper, kind, name, profile, entry, cells, notes, bool(changed) or seeds is not None)


class _CellBuilder:
    """Expands one table's rows, columns and seeds."""

    def __init__(
        self,
        folder: Path,
        path: Path,
        entry: TableEntry,
        profile: str,
        override: Mapping[str, Any],
        seeds: Sequence[int] | None,
    ):
        self.paper, self.path, self.entry, self.profile = folder.name, path, entry, profile
        self.seeds = seeds
        self.factory = RunFactory(self.paper)
        self.notes: dict[str, list[str]] = {}  # what is said, of which rows
        self._made: dict[tuple[int, tuple[int, ...]], tuple[tuple[Run, ...], tuple[Deviation, ...]]] = {}
        if not entry.rows:
            if override:
                raise ExperimentError(f"{path.name} of {self.paper} has no runs yet, so there is nothing to override")
            return
        if self.paper not in SCHEMAS:
            raise unknown("config schema", self.paper, SCHEMAS, "add one to experiments/schema.py")
        self.validator = Validator(SCHEMAS[self.paper], self.paper)
        base = read_yaml(folder / "base.yaml")
        if unknown_keys := base.keys() - {"settings", "profiles"}:
            raise unknown("key in base.yaml:", sorted(unknown_keys)[0], ["settings", "profiles"])
        self.base = merge(self.validator.defaults(), self.check(base.get("settings", {}), "base.yaml"))
        layers = base.get("profiles", {})
        profile_layer = {} if profile == "paper" else layers.get(profile)
        if profile_layer is None:
            raise ExperimentError(f"{folder / 'base.yaml'}: no settings for the profile {profile!r}")
        self.profile_layer = self.check(profile_layer, f"profile {profile}")
        self.override = self.check(override, "the command line")

    def check(self, override: Mapping[str, Any], where: str) -> Config:
        return self.validator.check(nested(override), where)

    def cells(self, printed: list[PublishedCell], kind: str) -> list[CellSpec]:
        """Return the printed cells in print order, then those of rows that the paper does not print."""
        if kind == "figure":
            printed = [
                PublishedCell.unprinted(
                    self.paper, self.path.stem.removeprefix("figure"), s.group, s.row, c, s.unit, s.source
                )
                for s in self.entry.series
                for c in s.columns
            ]
        check_names(self.entry, self.path, printed)
        added = list(self.entry.rows)
        specs = []
        for cell in printed:
            rows = [row for row in self.entry.rows if row.row == cell.row and row.group in (None, cell.group)]
            added = [row for row in added if row not in rows]
            fitting = [row for row in rows if matches(cell.column, row.columns)]
            if len(fitting) > 1:
                raise ExperimentError(f"{self.path}: two entries for the row {cell.row!r}, column {cell.column!r}")
            specs.append(self.cell(cell, fitting[0] if fitting else None, kind == "table"))
        first: dict[str, PublishedCell] = {}
        for cell in printed:
            first.setdefault(cell.column, cell)
        for row in added:
            for column, like in first.items():
                if matches(column, row.columns):
                    extra = (like.paper, like.table, row.group or "", row.row, column, like.unit, "added")
                    specs.append(self.cell(PublishedCell.unprinted(*extra), row, False))
        return specs

    def cell(self, cell: PublishedCell, row: RowEntry | None, printed: bool) -> CellSpec:
        if row is None:
            return CellSpec(cell, printed, missing="" if cell.source == "quoted" else self.reason(cell))
        runs, changed = self.runs(row, cell.column)
        metric = row.metric.format(column=self.metric(row, cell.column), last=cell.column.rpartition("/")[2])
        requires = self.entry.requires if row.requires is None else row.requires
        return CellSpec(
            cell, printed, runs, metric, changed, requires=tuple(requires) if self.profile == "paper" else ()
        )

    def metric(self, row: RowEntry, column: str) -> str:
        """Return what stands for a column's name in a metric."""
        of_columns = [(c.column, c.metric) for c in self.entry.columns if c.metric]
        said = [metric for glob, metric in (*row.metrics.items(), *of_columns) if matches(column, [glob])]
        return said[0].format(last=column.rpartition("/")[2]) if said else column

    def runs(self, row: RowEntry, column: str) -> tuple[tuple[Run, ...], tuple[Deviation, ...]]:
        """Return the runs of a row under a column, and how their config deviates from the paper's."""
        matching = [i for i, c in enumerate(self.entry.columns) if matches(column, [c.column])]
        key = (id(row), tuple(matching))
        if key in self._made:
            return self._made[key]
        layers = [self.check(self.entry.columns[i].set, f"column {self.entry.columns[i].column}") for i in matching]
        paper = merge(self.base, *layers, self.check(row.set, f"row {row.row}"))
        config = paper
        if row.substitute is not None:
            config = merge(config, self.check(row.substitute.set, f"substitute of row {row.row}"))
            self.notes.setdefault(row.substitute.reason, []).append(row.row)
        config = merge(config, self.profile_layer, self.override)
        if row.note:
            self.notes.setdefault(row.note, []).append(row.row)
        seeds = row.seeds if row.seeds is not None else self.entry.seeds
        if self.seeds is not None and len(seeds) > 1:
            seeds = list(self.seeds)
        elif self.profile != "paper":
            seeds = seeds[:1]
        if config["method"] not in (known := methods_of(config)):
            raise unknown(f"method of {self.paper}:", config["method"], known)
        runs = tuple(self.factory.make(config["method"], config, seed) for seed in seeds)
        read = {key for run in in_order(runs) for key, _ in flatten(run.config)} - HASHLESS | {"method"}
        changed = tuple(Deviation(k, p, o) for k, p, o in differences(config, paper) if k in read)
        self._made[key] = runs, changed
        return self._made[key]

    def reason(self, cell: PublishedCell) -> str:
        for entry in self.entry.missing_rows:
            patterns = ((cell.row, entry.row), (cell.group, entry.group), (cell.column, entry.column))
            if all(matches(value, [glob]) for value, glob in patterns):
                return entry.reason
        return self.entry.missing or "not built yet"
