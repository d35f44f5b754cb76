"""The printed numbers: reads the CSV files of `experiments/<paper>/published/`."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import ExperimentError

COLUMNS = ("paper", "table", "row", "column", "group", "value", "std", "unit", "source", "bold")
SOURCES = ("ours_in_paper", "baseline", "quoted")
"""Trained by the paper's authors as their model; another method that the suite can also train; reference only."""

_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_BOLD: dict[str, bool | None] = {"": None, "0": False, "1": True}


@dataclass(frozen=True)
class PublishedCell:
    """One printed cell.

    `value` and `std` are in `unit`, as printed; None stands for the paper's dash. `value_text` and `std_text` keep the
    printed digits, so that 47.0 is never shown as 47. `bold` is None where the source text carries no markup.
    """

    paper: str
    table: str
    group: str
    row: str
    column: str
    unit: str
    source: str
    value: float | None = None
    std: float | None = None
    bold: bool | None = None
    value_text: str = ""
    std_text: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Return (group, row, column), unique within a table."""
        return self.group, self.row, self.column

    @classmethod
    def unprinted(
        cls, paper: str, table: str, group: str, row: str, column: str, unit: str, source: str
    ) -> PublishedCell:
        """Return the cell of a figure, or of a row that the paper doesn't have: no value, not even a dash."""
        return cls(paper, table, group, row, column, unit, source)


def load_published(path: Path) -> list[PublishedCell]:
    """Return the printed cells of one table, in file order.

    Raises:
        ExperimentError: The file is missing, a column is missing or unknown, a number, source or bold flag cannot be
            read, two lines share (group, row, column), or lines of several tables are mixed.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            if sorted(reader.fieldnames or ()) != sorted(COLUMNS):
                found = ", ".join(reader.fieldnames or ()) or "none"
                raise ExperimentError(f"{path}: expected the columns {', '.join(COLUMNS)}; found {found}")
            cells = [_cell(record, f"{path}, line {reader.line_num}") for record in reader]
    except FileNotFoundError:
        raise ExperimentError(f"{path}: no such file; a table's printed numbers belong there") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: not a CSV file in UTF-8: {error}") from None
    _check_keys(cells, path)
    return cells


def _cell(record: dict[str, str | None], where: str) -> PublishedCell:
    """Return the cell of one CSV line; `where` names the line in errors."""
    if None in record or None in record.values():
        raise ExperimentError(f"{where}: expected {len(COLUMNS)} fields: {', '.join(COLUMNS)}")
    text = {key: value or "" for key, value in record.items()}
    for column in ("value", "std"):
        if text[column] and not _NUMBER.fullmatch(text[column]):
            raise ExperimentError(f"{where}: {column} {text[column]!r} is no number (leave it empty for a dash)")
    if text["std"] and not text["value"]:
        raise ExperimentError(f"{where}: a std without a value")
    if text["source"] not in SOURCES:
        raise ExperimentError(f"{where}: source {text['source']!r} is none of {', '.join(SOURCES)}")
    if text["bold"] not in _BOLD:
        raise ExperimentError(f"{where}: bold {text['bold']!r} is none of 0, 1 and empty")
    return PublishedCell(
        paper=text["paper"],
        table=text["table"],
        group=text["group"],
        row=text["row"],
        column=text["column"],
        unit=text["unit"],
        source=text["source"],
        value=float(text["value"]) if text["value"] else None,
        std=float(text["std"]) if text["std"] else None,
        bold=_BOLD[text["bold"]],
        value_text=text["value"],
        std_text=text["std"],
    )


def _check_keys(cells: list[PublishedCell], path: Path) -> None:
    """Raise unless every (group, row, column) occurs once and all cells belong to one table of one paper."""
    seen: set[tuple[str, str, str]] = set()
    for cell in cells:
        if cell.key in seen:
            raise ExperimentError(
                f"{path}: two lines for group {cell.group!r}, row {cell.row!r}, column {cell.column!r}"
            )
        seen.add(cell.key)
    tables = sorted({f"{cell.paper} {cell.table}" for cell in cells})
    if len(tables) > 1:
        raise ExperimentError(f"{path}: lines of several tables: {', '.join(tables)}")
