"""Tables as LaTeX: booktabs, two lines a row (paper, ours), everything escaped."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

from experiments.cells import Cell, TableResult
from experiments.layout import (
    GENERATED_NOTE,
    MARKS,
    NO_CELL,
    Block,
    Notes,
    Row,
    blocks,
    common_unit,
    decimals,
    header,
    legend,
    number,
    ours_text,
    own_unit,
    p_text,
    printed_text,
    prose,
    state,
)

# Brackets and stars are wrapped because they would be read as options where a line starts with them.
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "→": r"$\rightarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "≠": r"$\neq$",
    "∞": r"$\infty$",
    "…": r"\ldots{}",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "✓": r"$\checkmark$",
    "✗": r"$\times$",
    "◇": r"$\diamond$",
    "○": r"$\circ$",
    "❞": "''",
}
_MOST_COLUMNS = 8  # side by side on a portrait page
_GREEK = (
    "alpha beta gamma delta epsilon eta theta lambda mu nu pi rho sigma tau phi psi omega Delta Sigma Phi Psi Omega"
)
_ESCAPES |= {letter: rf"$\{name}$" for letter, name in zip("αβγδεηθλμνπρστφψωΔΣΦΨΩ", _GREEK.split(), strict=True)}


def escape(text: str) -> str:
    """Return the text safe for pdflatex: specials escaped, known symbols as maths, other symbols by code point."""
    escaped = "".join(_ESCAPES.get(c) or (c if _is_plain(c) else f"U+{ord(c):04X}") for c in text)
    return re.sub("-(?=-)", "-{}", escaped)


def _is_plain(character: str) -> bool:
    """Return whether pdflatex sets the character as it is: ASCII, or a Latin letter with an accent."""
    return character.isascii() or ("À" <= character <= "ž" and unicodedata.normalize("NFD", character)[0].isascii())


def to_latex(table: TableResult) -> str:
    """Return a `table` float. It needs the packages booktabs, graphicx and amssymb."""
    notes = Notes(table)
    lines = [
        f"% Made by `{table.command}`; packages: booktabs, graphicx, amssymb.",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escape(table.paper)}, {escape(table.short_name)}: {_prose(table.full_title)}}}",
        rf"\label{{tab:{table.anchor}}}",
        r"\footnotesize" if len(table.row_order) > 20 else r"\small",
    ]
    for block in blocks(table):
        for piece in _pieces(block):
            lines += _tabular(table, notes, piece)
    lines += [r"\parbox{\linewidth}{\footnotesize", *(f"{line}\\par" for line in _footnotes(table, notes)), "}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _pieces(block: Block) -> list[Block]:
    """Return the block in pieces that fit a page's width, cut between shared headings where possible."""
    cuts = [0]
    outer = [column.partition("/")[0] for column in block.columns]
    while len(outer) - cuts[-1] > _MOST_COLUMNS:
        latest = cuts[-1] + _MOST_COLUMNS
        between = [i for i in range(cuts[-1] + 1, latest + 1) if outer[i] != outer[i - 1]]
        cuts.append(between[-1] if between else latest)
    pieces: list[Block] = []
    for first, last in zip(cuts, [*cuts[1:], len(outer)], strict=True):
        parts = [replace(p, rows=tuple(replace(r, cells=r.cells[first:last]) for r in p.rows)) for p in block.parts]
        pieces.append(replace(block, columns=block.columns[first:last], parts=tuple(parts), column_notes=()))
    return pieces


def _tabular(table: TableResult, notes: Notes, block: Block) -> list[str]:
    width = len(block.columns) + 2
    lines = [
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{ll*{{{len(block.columns)}}}{{r}}}}",
        r"\toprule",
    ]
    lines += _header(block)
    for part in block.parts:
        lines.append(r"\midrule")
        if part.heading:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\textit{{{escape(part.heading)}}}}} \\")
        for row in part.rows:
            lines += _row(table, notes, block, row)
    return [*lines, r"\bottomrule", r"\end{tabular}}", r"\par\medskip"]


def _header(block: Block) -> list[str]:
    """Return the header lines; a heading of several lines stands in its last, rules run under shared headings."""
    levels = header(block.columns)
    lines: list[str] = []
    for index in range(len(levels)):
        bottoms = [cell for top, level in enumerate(levels) for cell in level if top + cell.levels - 1 == index]
        texts: list[str] = []
        rules: list[str] = []
        column = 0
        for cell in sorted(bottoms, key=lambda c: c.start):
            texts += [""] * (cell.start - column)
            shared = index < len(levels) - 1
            texts.append(
                rf"\multicolumn{{{cell.columns}}}{{c}}{{{escape(cell.text)}}}" if shared else escape(cell.text)
            )
            rules += [rf"\cmidrule(lr){{{cell.start + 3}-{cell.start + cell.columns + 2}}}"] * shared
            column = cell.start + cell.columns
        texts += [""] * (len(block.columns) - column)
        lines += [" & & " + " & ".join(texts) + r" \\", *rules]
    return lines


def _row(table: TableResult, notes: Notes, block: Block, row: Row) -> list[str]:
    """Return the paper's line and ours; one line where the paper prints nothing or nothing was measured."""
    marks = _superscript(",".join(notes.of_row(row)))
    measured = any(cell.results for cell in row.present)
    kinds = "/".join(dict.fromkeys(state(table, cell) for cell in row.present if not cell.results))
    printed = [_printed(table, notes, block, row, cell) for cell in row.cells]
    ours = [_ours(table, notes, block, row, cell) for cell in row.cells]
    label = f"{escape(row.label)}{marks}"
    if not measured:
        return [f"{label} & {kinds} & {' & '.join(printed)} \\\\"]
    lines = [("paper", printed)] if any(cell.published for cell in row.present) else []
    lines.append(("ours", ours))
    return [f"{label if i == 0 else ''} & {kind} & {' & '.join(c)} \\\\" for i, (kind, c) in enumerate(lines)]


def _printed(table: TableResult, notes: Notes, block: Block, row: Row, cell: Cell | None) -> str:
    """Return the paper's number; in a row without results, a mark where the paper prints none."""
    if cell is None:
        return escape(NO_CELL)
    measured = any(c.results for c in row.present)
    text = f"{printed_text(cell)} {own_unit(table, block, cell)}".strip() if printed_text(cell) else ""
    mark = NO_CELL if measured else MARKS["missing"]
    return escape(text or mark) + ("" if measured else _superscript(notes.beside(row, cell)))


def _ours(table: TableResult, notes: Notes, block: Block, row: Row, cell: Cell | None) -> str:
    """Return our number with the count of runs and its marks, or the mark of a missing or quoted cell."""
    if cell is None:
        return escape(NO_CELL)
    mark = escape(MARKS.get(state(table, cell), ""))
    note = _superscript(notes.beside(row, cell))
    if not cell.results:
        return mark + note
    unit = "" if printed_text(cell) else own_unit(table, block, cell)
    ours = escape(f"{ours_text(cell, decimals(table)[cell.unit])} {unit}".strip())
    stale = r"\,\textit{stale}" if cell.stale else ""
    count = "" if _common_n(table) else rf"\,{{\scriptsize({cell.n})}}"
    return rf"{ours}{count}\,{mark}{stale}{note}"


def _common_n(table: TableResult) -> int:
    """Return the number of runs of every measured cell, 0 where they differ."""
    counts = {cell.n for cell in table.cells if cell.results}
    return counts.pop() if len(counts) == 1 else 0


def _footnotes(table: TableResult, notes: Notes) -> list[str]:
    """Return the lines under the table: legend, notes, paired tests."""
    unit = common_unit(table)
    n = _common_n(table)
    runs = " (number of runs)" if not n else f" over {n} runs" if n > 1 else ", one run each"
    form = f"Ours: mean ± standard deviation{runs}." if n != 1 else f"Ours{runs}."
    facts = f"Model selection: {table.selection}. {f'Unit: {unit}. ' if unit else ''}"
    lines = [_prose(facts + legend(table, form))]
    lines += [_prose(note) for note in ((GENERATED_NOTE, *table.notes) if table.generated else table.notes)]
    for block in blocks(table):
        pairs = zip(block.columns, block.column_notes, strict=True) if block.column_notes else ()
        lines += [escape(f"{column}: {note}.") for column, note in pairs]
    lines += [f"{_superscript(mark)} {_prose(text)}" for mark, text in notes.items]
    return lines + [escape(line) for line in _tests(table)]


def _tests(table: TableResult) -> list[str]:
    """Return one line for each pair of rows, with the difference and p of every column."""
    tests: dict[str, list[str]] = {}
    for test in table.paired_tests:
        p = p_text(test.difference.p)
        change = f"{number(test.difference.mean, 2, sign=True)} (p {p if p.startswith('<') else f'= {p}'})"
        name = f"{test.second} against {test.first}, paired t-test over {test.difference.n} seeds"
        where = f"{test.group}, {name}" if test.group else name
        tests.setdefault(where, []).append(f"{test.column} {change}")
    return [f"{name}: {'; '.join(changes)}." for name, changes in tests.items()]


def _superscript(mark: str) -> str:
    return rf"\textsuperscript{{{escape(mark)}}}" if mark else ""


def _prose(text: str) -> str:
    return "".join(rf"\texttt{{{escape(piece)}}}" if code else escape(piece) for piece, code in prose(text))
