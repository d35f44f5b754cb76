"""How a table is laid out, whatever the format: blocks of rows and columns, header levels, notes, digits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.cells import Cell, TableResult

MARKS = {"reproduced": "✓", "differs": "✗", "not-comparable": "◇", "quoted": "❞", "missing": "○"}
MEANINGS = {
    "reproduced": "reproduced",
    "differs": "differs",
    "not-comparable": "not comparable (see the note)",
    "quoted": "quoted: another paper's number, shown for reference",
    "missing": "missing (see the note)",
}
DASH = "—"
NO_CELL = "·"

GENERATED_NOTE = "Our numbers come from a small generated world; the paper's stand beside them for orientation only."

_MOST_HOLES = 0.25  # above this share of absent cells, a grid says less than a list


@dataclass(frozen=True)
class Row:
    """One line; None where the table has no cell in that column."""

    label: str
    cells: tuple[Cell | None, ...]

    @property
    def present(self) -> list[Cell]:
        """Return the cells that exist."""
        return [c for c in self.cells if c is not None]


@dataclass(frozen=True)
class Part:
    """The rows of one group."""

    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Block:
    """Groups that share their columns.

    `column_notes` is the group of each column, where columns and not rows have one. A listed block has one line a cell,
    whose label names row, column and unit.
    """

    columns: tuple[str, ...]
    parts: tuple[Part, ...]
    column_notes: tuple[str, ...] = ()
    listed: bool = False

    @property
    def rows(self) -> list[Row]:
        """Return the rows of all parts."""
        return [row for part in self.parts for row in part.rows]


def blocks(table: TableResult) -> list[Block]:
    """Return the table's grids: one for each set of columns, or a plain list where a grid would be mostly holes."""
    by_key = {c.key: c for c in table.cells}
    groups = list(dict.fromkeys(c.group for c in table.ordered_cells))
    by_column = _grouped_by_column(table, groups)
    if by_column:
        return [by_column]
    grids: list[Block] = []
    slots = 0
    for group in groups:
        mine = [c for c in table.cells if c.group == group]
        columns = tuple(c for c in table.column_order if any(cell.column == c for cell in mine))
        names = [r for g, r in table.row_order if g == group and any(cell.row == r for cell in mine)]
        rows = tuple(Row(r, tuple(by_key.get((group, r, c)) for c in columns)) for r in names)
        slots += len(rows) * len(columns)
        if grids and grids[-1].columns == columns:
            grids[-1] = Block(columns, (*grids[-1].parts, Part(group, rows)))
        else:
            grids.append(Block(columns, (Part(group, rows),)))
    return grids if 1 - len(table.cells) / max(slots, 1) <= _MOST_HOLES else [_listed(table)]


def _grouped_by_column(table: TableResult, groups: list[str]) -> Block | None:
    """Return one grid where every column belongs to one group and every row has every column, else None."""
    cells = {(c.row, c.column): c for c in table.cells}
    group_of: dict[str, set[str]] = {}
    for cell in table.cells:
        group_of.setdefault(cell.column, set()).add(cell.group)
    names = list(dict.fromkeys(c.row for c in table.ordered_cells))
    columns = tuple(c for c in table.column_order if c in group_of)
    one_each = len(cells) == len(table.cells) == len(names) * len(columns)
    if len(groups) < 2 or not one_each or any(len(found) > 1 for found in group_of.values()):
        return None
    rows = tuple(Row(name, tuple(cells[name, c] for c in columns)) for name in names)
    return Block(columns, (Part("", rows),), tuple(next(iter(group_of[c])) for c in columns))


def _listed(table: TableResult) -> Block:
    """Return one line a cell."""
    parts: dict[str, list[Row]] = {}
    for cell in table.ordered_cells:
        unit = f" ({unit_name(cell.unit)})" if cell.unit else ""
        parts.setdefault(cell.group, []).append(Row(f"{cell.row}: {cell.column}{unit}", (cell,)))
    return Block(("value",), tuple(Part(group, tuple(rows)) for group, rows in parts.items()), listed=True)


@dataclass(frozen=True)
class HeaderCell:
    """A column heading: from column `start` on it spans `columns` columns and `levels` header lines."""

    text: str
    start: int
    columns: int
    levels: int


def header(columns: Sequence[str]) -> list[list[HeaderCell]]:
    """Return the header lines of columns named `outer/inner/leaf`; neighbours share their outer cells."""
    paths = [re.split(r"(?<! )/(?! )", column) for column in columns]
    depth = max((len(path) for path in paths), default=1)
    lines: list[list[HeaderCell]] = []
    for level in range(depth):
        line: list[HeaderCell] = []
        shared: list[str] | None = None
        for start, path in enumerate(paths):
            here = path[: level + 1]
            if len(path) <= level:
                shared = None
            elif shared == here:
                line[-1] = replace(line[-1], columns=line[-1].columns + 1)
            else:
                leaf = len(path) == level + 1
                line.append(HeaderCell(_spaced(path[level]), start, 1, depth - level if leaf else 1))
                shared = None if leaf else here
        lines.append(line)
    return lines


def _spaced(name: str) -> str:
    """Return `relationship_free_k` as words and `phrase_k10` with its k spelt out; other names unchanged."""
    if not re.fullmatch(r"[a-z]+(_[a-z]+)*(_k\d+)?", name):
        return name
    return re.sub(r" k(\d+)$", r" k=\1", name.replace("_", " "))


class Notes:
    """The numbered notes on deviations (1, 2, …) and the lettered reasons of missing cells (a, b, …), each once."""

    def __init__(self, table: TableResult):
        """Take the table; notes are numbered in the order of its cells."""
        self._table = table
        self.numbered: dict[str, str] = {}
        self.lettered: dict[str, str] = {}
        for cell in table.ordered_cells:
            text = note_text(table, cell)
            if text and cell.results:
                self.numbered.setdefault(text, str(len(self.numbered) + 1))
            elif text:
                self.lettered.setdefault(text, _letters(len(self.lettered)))

    @property
    def items(self) -> list[tuple[str, str]]:
        """Return (mark, text) of every note."""
        return [(mark, text) for notes in (self.numbered, self.lettered) for text, mark in notes.items()]

    def of_cell(self, cell: Cell) -> str:
        """Return the mark of the cell's note, empty without one."""
        text = note_text(self._table, cell)
        return (self.numbered if cell.results else self.lettered).get(text, "")

    def of_row(self, row: Row) -> list[str]:
        """Return the marks that stand at the row's label: of a note that all its measured, or all its cells, share."""
        measured = [c for c in row.present if c.results]
        shared = {self.of_cell(c) for c in measured or row.present}
        return sorted(shared) if len(shared) == 1 and len(row.present) > 1 and shared != {""} else []

    def beside(self, row: Row, cell: Cell) -> str:
        """Return the mark that stands at the cell itself, empty where the row's label has it."""
        mark = self.of_cell(cell)
        return "" if mark in self.of_row(row) else mark


def note_text(table: TableResult, cell: Cell) -> str:
    """Return why a cell is missing or not comparable, empty for other cells."""
    if not cell.results:
        return "" if cell.source == "quoted" else cell.missing or ""
    if cell.deviations:
        return "; ".join(str(d) for d in sorted(cell.deviations, key=lambda d: d.key))
    return "the paper prints no value" if table.verdict(cell) == "not-comparable" else ""


def _letters(index: int) -> str:
    """Return a, b, …, z, aa, ab and so on."""
    text = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        text = chr(ord("a") + digit) + text
    return text


def decimals(table: TableResult) -> dict[str, int]:
    """Return for each unit how many decimals our numbers are shown with: the most that the paper prints, at least 1."""
    shown: dict[str, int] = {}
    for cell in table.cells:
        text = cell.published.value_text if cell.published else ""
        if text:
            shown[cell.unit] = max(shown.get(cell.unit, 1), len(text.partition(".")[2]))
    for cell in table.cells:
        shown.setdefault(cell.unit, 4 if cell.tolerance < 0.1 else 2)
    return shown


def number(value: float | None, digits: int, sign: bool = False) -> str:
    """Return the number with fixed decimals, never as -0; with `sign` a plus or a true minus; empty for None."""
    if value is None:
        return ""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "−") if sign else text


def printed_text(cell: Cell) -> str:
    """Return the paper's number as printed, with its std; a dash for a printed dash, empty where nothing is printed."""
    if cell.published is None:
        return ""
    std = f" ± {cell.published.std_text}" if cell.published.std_text else ""
    return f"{cell.published.value_text}{std}" if cell.published.value_text else DASH


def ours_text(cell: Cell, digits: int) -> str:
    """Return our mean, ± std with two runs or more, empty without results."""
    std = f" ± {number(cell.std, digits)}" if cell.std is not None else ""
    return f"{number(cell.mean, digits)}{std}".replace("-", "−") if cell.results else ""


def p_text(p: float | None) -> str:
    """Return a p value with three decimals, n/a where it is undefined."""
    return "n/a" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def unit_name(unit: str) -> str:
    """Return the unit in words."""
    return {"score_0_1": "score in 0 to 1"}.get(unit, unit.replace("_", " "))


def common_unit(table: TableResult) -> str:
    """Return the unit of all cells in words; empty where they differ, and each cell names its own."""
    found = {c.unit for c in table.cells}
    return unit_name(found.pop()) if len(found) == 1 else ""


def own_unit(table: TableResult, block: Block, cell: Cell) -> str:
    """Return the unit that the cell must name, because neither the table nor the cell's line does."""
    return "" if block.listed or common_unit(table) else unit_name(cell.unit)


def legend(table: TableResult, form: str) -> str:
    """Return `form`, which says how a cell reads, followed by what the marks in use mean."""
    present = {state(table, cell) for cell in table.cells}
    marks = [f"{mark} {MEANINGS[verdict]}" for verdict, mark in MARKS.items() if verdict in present]
    if any(cell is None for block in blocks(table) for row in block.rows for cell in row.cells):
        marks.append(f"{NO_CELL} no such cell")
    return f"{form} {'; '.join(marks)}." if marks else form


def prose(text: str) -> list[tuple[str, bool]]:
    """Return the text in (piece, is code) pairs: what stands between backticks is code."""
    pieces = " ".join(text.split()).split("`")
    if len(pieces) % 2 == 0:
        return [("`".join(pieces), False)]
    return [(piece, index % 2 == 1) for index, piece in enumerate(pieces) if piece]


def state(table: TableResult, cell: Cell) -> str:
    """Return the verdict, or for generated data: quoted, missing, or empty for a measured cell."""
    return cell.verdict if not table.generated or not cell.results else ""
