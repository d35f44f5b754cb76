"""What a table's YAML file may say, and whether the names in it exist."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config import read_yaml
from experiments.errors import ExperimentError, unknown
from experiments.published import PublishedCell


@dataclass
class Substitute:
    """What is run instead of the paper's settings where their inputs are not at hand, and why."""

    reason: str
    set: dict[str, Any] = field(default_factory=dict)


@dataclass
class RowEntry:
    """A row that has runs.

    `metric` is the record's metric of a cell: `{column}` stands for the column's name, or for what `metrics` or the
    column's entry says instead, `{last}` for the name's part after its last slash. `metrics` says it for some columns
    (globs). `requires` names what must lie under DATA_ROOT; None stands for the table's.
    """

    row: str
    group: str | None = None
    set: dict[str, Any] = field(default_factory=dict)
    substitute: Substitute | None = None
    seeds: list[int] | None = None
    columns: list[str] = field(default_factory=lambda: ["*"])
    metric: str = "{column}"
    metrics: dict[str, str] = field(default_factory=dict)
    requires: list[str] | None = None
    note: str = ""


@dataclass
class ColumnEntry:
    """What a column (a glob) changes of the config, and which of the record's metrics fills it."""

    column: str
    set: dict[str, Any] = field(default_factory=dict)
    metric: str = ""


@dataclass
class MissingEntry:
    """Why cells (globs) have no run."""

    reason: str
    row: str = "*"
    group: str = "*"
    column: str = "*"


@dataclass
class SeriesEntry:
    """A figure's series: one row of cells without printed values."""

    row: str
    columns: list[str]
    group: str = ""
    unit: str = "percent"
    source: str = "ours_in_paper"


@dataclass
class TableEntry:
    """A table's YAML file."""

    title: str
    selection: str = "last"
    published: str | None = None
    missing: str = ""
    tolerance: float | None = None
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    rows: list[RowEntry] = field(default_factory=list)
    columns: list[ColumnEntry] = field(default_factory=list)
    series: list[SeriesEntry] = field(default_factory=list)
    missing_rows: list[MissingEntry] = field(default_factory=list)
    requires: list[str] = field(default_factory=list)  # what must lie under DATA_ROOT for the rows to be run
    compare: list[list[str]] = field(default_factory=list)  # pairs of rows, tested on shared seeds


def read_entry(path: Path) -> TableEntry:
    """Return a table's YAML file.

    Raises:
        ExperimentError: It is no YAML, has an unknown key, or a value of another type.
    """
    schema = OmegaConf.structured(TableEntry)
    try:
        entry = OmegaConf.to_object(OmegaConf.merge(schema, read_yaml(path)))
    except OmegaConfBaseException as error:
        raise ExperimentError(f"{path}: {str(error).splitlines()[0]} (at {error.full_key})") from None
    assert isinstance(entry, TableEntry)
    return entry


def matches(name: str, globs: Iterable[str]) -> bool:
    """Return whether a name fits any of the globs."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def check_names(entry: TableEntry, path: Path, cells: Sequence[PublishedCell]) -> None:
    """Check that every name and glob of the entry means something in the table.

    Args:
        entry: The YAML file's content.
        path: Where it stands, for messages.
        cells: The printed cells, or those of a figure's series.

    Raises:
        ExperimentError: A column, group, row or reason matches nothing; the message lists what exists.
    """
    columns, groups = {c.column for c in cells}, {c.group for c in cells}
    rows = {c.row for c in cells} | {r.row for r in entry.rows}
    for row in entry.rows:
        for glob in (*row.columns, *row.metrics):
            _check(f"column in row {row.row!r} of {path}:", glob, columns)
        if row.group is not None and row.group not in groups:
            raise unknown(f"group in row {row.row!r} of {path}:", row.group, groups)
    for column in entry.columns:
        _check(f"column under `columns` of {path}:", column.column, columns)
    for reason in entry.missing_rows:
        for what, glob, names in (
            ("row", reason.row, rows),
            ("group", reason.group, groups),
            ("column", reason.column, columns),
        ):
            _check(f"{what} under `missing_rows` of {path}:", glob, names)
    for pair in entry.compare:
        if len(pair) != 2:
            raise ExperimentError(f"{path}: `compare` takes pairs of rows, not {pair}")
        for name in pair:
            if name not in rows:
                raise unknown(f"row under `compare` of {path}:", name, rows)


def _check(what: str, glob: str, names: Iterable[str]) -> None:
    if not any(matches(name, [glob]) for name in names):
        raise unknown(what, glob, names)
