"""Tables as CSV and Markdown: pure functions of a `TableResult`, byte-stable, without timestamps."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from experiments.cells import Cell, TableResult
from experiments.latex import to_latex
from experiments.layout import (
    DASH,
    GENERATED_NOTE,
    MARKS,
    NO_CELL,
    Block,
    Notes,
    Row,
    blocks,
    common_unit,
    decimals,
    legend,
    note_text,
    number,
    ours_text,
    own_unit,
    p_text,
    printed_text,
    prose,
    state,
)

__all__ = ["CSV_COLUMNS", "to_csv", "to_latex", "to_markdown"]

CSV_COLUMNS = (
    "paper",
    "table",
    "group",
    "row",
    "column",
    "unit",
    "source",
    "published",
    "published_std",
    "ours_mean",
    "ours_std",
    "n",
    "verdict",
    "deviations",
    "runs",
)


def to_csv(table: TableResult) -> str:
    """Return one line a cell with the columns `CSV_COLUMNS`; ours with four decimals, the paper's as printed.

    Where there is no result, ours is empty and n is 0.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for cell in table.ordered_cells:
        stale = [f"stale run {r.run}" for r in cell.results if r.stale]
        notes = [note_text(table, cell)] if cell.deviations or not cell.results else []
        printed = (cell.published.value_text, cell.published.std_text) if cell.published else ("", "")
        name = (cell.paper, cell.table, cell.group, cell.row, cell.column, cell.unit, cell.source)
        ours = (number(cell.mean, 4), number(cell.std, 4), cell.n)
        reasons = "; ".join(text for text in (*notes, *stale) if text)
        writer.writerow([*name, *printed, *ours, table.verdict(cell), reasons, " ".join(r.run for r in cell.results)])
    return stream.getvalue()


def to_markdown(table: TableResult) -> str:
    """Return the table with its notes, paired tests and provenance as GitHub-flavoured Markdown."""
    notes = Notes(table)
    lines = [
        f"# {table.paper}, {table.short_name}: {_md(table.full_title)}",
        "",
        f"`{table.command}`",
        "",
        *_facts(table),
    ]
    for block in blocks(table):
        lines += _block(table, notes, block)
    lines += ["", _md(legend(table, "Each cell: paper → ours ± standard deviation (number of runs)."))]
    if notes.items:
        lines += ["", "## Notes", "", *(f"- {_mark(mark)} {_md(text)}" for mark, text in notes.items)]
    if table.paired_tests:
        lines += ["", "## Paired tests", "", "Second minus first row over the seeds that both have, paired t-test."]
        head = ("group", "column", "first", "second", "difference", "n", "p")
        lines += ["", *_grid(head, _tests(table), "---")]
    lines += ["", "## Runs", "", *_provenance(table)]
    return "\n".join(lines) + "\n"


def _block(table: TableResult, notes: Notes, block: Block) -> list[str]:
    """Return the lines of one block: a table for each of its groups, or one list with the groups as a column."""
    lines: list[str] = []
    body = [[_row(table, notes, block, row) for row in part.rows] for part in block.parts]
    if block.listed:
        where = [[_md(part.heading)] for part in block.parts]
        merged = [[*line, *group] for group, part in zip(where, body, strict=True) for line in part]
        return ["", *_grid(["", *block.columns, "where"], merged, "---")]
    for part, rows in zip(block.parts, body, strict=True):
        lines += ["", f"## {_md(part.heading)}"] if part.heading else []
        lines += ["", *_grid(["", *block.columns], rows, "---:")]
    if block.column_notes:
        pairs = zip(block.columns, block.column_notes, strict=True)
        lines += ["", *(f"- {_md(column)}: {_md(group)}" for column, group in pairs)]
    return lines


def _facts(table: TableResult) -> list[str]:
    """Return the lines between command and table: selection rule, units, notes."""
    unit = common_unit(table)
    lines = [f"Model selection: {_md(table.selection)}." + (f" Unit: {_md(unit)}." if unit else "")]
    for note in (GENERATED_NOTE, *table.notes) if table.generated else table.notes:
        lines += ["", _md(note)]
    return lines


def _row(table: TableResult, notes: Notes, block: Block, row: Row) -> list[str]:
    label = _md(row.label) + "".join(_mark(mark) for mark in notes.of_row(row))
    return [label, *(_cell(table, notes, block, row, cell) if cell else NO_CELL for cell in row.cells)]


def _cell(table: TableResult, notes: Notes, block: Block, row: Row, cell: Cell) -> str:
    """Return e.g. `24.08 → 23.51 ± 0.12 (3) ✗`."""
    printed, unit, verdict = printed_text(cell), own_unit(table, block, cell), state(table, cell)
    mark = notes.beside(row, cell)
    theirs = [printed, unit if printed and not cell.results else ""]
    arrow = "→" if printed and (cell.results or verdict == "missing") else ""
    ours = [ours_text(cell, decimals(table)[cell.unit]), f"({cell.n})", unit] if cell.results else []
    words = (*theirs, arrow, *ours, "stale" if cell.stale else "", MARKS.get(verdict, ""))
    return _md(" ".join(word for word in words if word)) + _mark(mark)


def _mark(mark: str) -> str:
    return f"<sup>{mark}</sup>" if mark else ""


def _tests(table: TableResult) -> list[list[str]]:
    return [
        [
            *(_md(text or DASH) for text in (test.group, test.column, test.first, test.second)),
            number(test.difference.mean, 4, sign=True),
            str(test.difference.n),
            _md(p_text(test.difference.p)),
        ]
        for test in table.paired_tests
    ]


def _provenance(table: TableResult) -> list[str]:
    if not table.provenance:
        return ["None yet."]
    head = ("run", "stage", "seed", "commit", "hardware", "data", "minutes", "peak MB")
    body = [
        [
            f"`{run.run}`" + (" (stale)" if run.stale else ""),
            _md(run.stage),
            str(run.seed),
            f"`{run.commit}`" if run.commit else DASH,
            _md(run.hardware or DASH),
            _md(run.data or DASH),
            number(run.duration_s / 60, 1) if run.duration_s is not None else DASH,
            number(run.peak_memory_mb, 0) or DASH,
        ]
        for run in table.provenance
    ]
    return _grid(head, body, "---")


def _grid(head: Sequence[str], body: Sequence[Sequence[str]], align: str) -> list[str]:
    """Return the lines of a table; `align` is the rule of all columns but the first."""
    lines = [[_md(name) for name in head], ["---"] + [align] * (len(head) - 1), *body]
    return [f"| {' | '.join(line)} |" for line in lines]


def _md(text: str) -> str:
    """Return the text with the characters escaped that Markdown, its tables or its formulas would take."""
    pieces = prose(text)
    return "".join(f"`{piece}`" if code else re.sub(r"([\\|*<>`$~])", r"\\\1", piece) for piece, code in pieces)
