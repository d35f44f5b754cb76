"""`results/index.html`: one self-contained page with every table, its verdicts and where its numbers come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from experiments.cells import Cell, RunSummary, TableResult
from experiments.layout import (
    DASH,
    GENERATED_NOTE,
    MARKS,
    MEANINGS,
    NO_CELL,
    Block,
    Notes,
    Row,
    blocks,
    common_unit,
    decimals,
    header,
    number,
    ours_text,
    own_unit,
    p_text,
    printed_text,
    prose,
    state,
)
from experiments.overview import (
    PAPER_TITLES,
    Counts,
    by_paper,
    cells_text,
    count,
    missing_reasons,
    render_overview_csv,
    render_overview_markdown,
)
from experiments.page_style import STYLE

__all__ = ["render_overview_csv", "render_overview_markdown", "render_page"]

TITLE = "Five papers, every table: the printed numbers and ours"
HOW_TO_READ = (
    "A measured cell shows our mean ± standard deviation over n seeds, the paper's number, Δ = ours − paper, and the "
    "verdict. Any other number in a table is the paper's."
)
WORDS = {verdict: verdict.replace("-", " ") for verdict in MARKS}


def render_page(tables: Sequence[TableResult]) -> str:
    """Return the page; it has no script and loads nothing, and equal tables give equal bytes."""
    papers = by_paper(tables)
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{TITLE}</title>",
        f"<style>\n{STYLE}</style>",
        "</head>",
        "<body>",
        f"<header><h1>{TITLE}</h1>",
        "<p>Every number of ours comes from the record of a real run. Cells that were not run say why.</p>",
        "</header>",
        "<main>",
        *_overview(papers),
    ]
    for key, group in papers.items():
        lines += [f'<section class="about" id="{_paper_id(key)}">', f"<h2>{_paper_name(key)}</h2>"]
        for table in group:
            lines += _table_section(table)
        lines.append("</section>")
    return "\n".join([*lines, "</main>", "</body>", "</html>"]) + "\n"


def _paper_id(key: tuple[str, str]) -> str:
    return key[1] if key[0] == "paper" else f"{key[0]}-{key[1]}"


def _paper_name(key: tuple[str, str]) -> str:
    title = escape(PAPER_TITLES.get(key[1], key[1]))
    return title if key[0] == "paper" else f"{title} <small>{escape(key[0])}: generated data</small>"


def _overview(papers: dict[tuple[str, str], list[TableResult]]) -> list[str]:
    """Return the legend and, for every paper, its counts, links and reasons."""
    legend = [f'<li><span class="tag {v}">{MARKS[v]} {WORDS[v]}</span> {_meaning(v)}</li>' for v in MARKS]
    lines = ['<section id="overview">', "<h2>Overview</h2>", '<ul class="legend">', *legend, "</ul>"]
    lines.append(f'<p class="facts">{HOW_TO_READ}</p>')
    for key, group in papers.items():
        counts = count(group)
        links = (f'<li><a href="#{escape(t.anchor)}">{t.short_name}</a> {_progress(t)}</li>' for t in group)
        lines += [
            '<article class="card">',
            f'<h3><a href="#{escape(_paper_id(key))}">{_paper_name(key)}</a></h3>',
            *_bar(counts),
            '<dl class="counts">',
            *(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _named(counts)),
            "</dl>",
            '<p class="facts">Cells measured, of those that we could train:</p>',
            '<ul class="links">',
            *links,
            "</ul>",
        ]
        reasons = missing_reasons(group)
        if reasons:
            lines += [
                f"<details><summary>Why cells are missing ({counts.missing})</summary><ul>",
                *(f"<li>{cells_text(n)}: {_prose(reason)}</li>" for reason, n in reasons),
                "</ul></details>",
            ]
        lines.append("</article>")
    return [*lines, "</section>"]


def _meaning(verdict: str) -> str:
    allowed = "as close as two standard errors of ours, the printed standard deviation or the tolerance allow"
    meanings = MEANINGS | {"reproduced": allowed, "differs": "further away than that"}
    meanings["not-comparable"] = "the run differs from the paper's settings as its note says, or nothing is printed"
    meanings["missing"] = "not run; the note says why"
    return escape(meanings[verdict].removeprefix("quoted: "))


def _named(counts: Counts) -> list[tuple[str, int]]:
    verdicts = [counts.reproduced, counts.differs, counts.not_comparable, counts.quoted, counts.missing]
    return [
        ("cells", counts.cells),
        ("with a printed value", counts.published),
        ("measured", counts.measured),
        *zip(WORDS.values(), verdicts, strict=True),
    ]


def _progress(table: TableResult) -> str:
    counts = count([table])
    trainable = counts.cells - counts.quoted
    return f"<small>{counts.measured}/{trainable}</small>" if trainable else "<small>quoted</small>"


def _bar(counts: Counts) -> list[str]:
    """Return a bar of the shares by verdict; the list of counts says the same in words."""
    shares = [(WORDS[key], key, value) for key, value in zip(WORDS, [v for _, v in _named(counts)[3:]], strict=True)]
    other = counts.cells - sum(value for _, _, value in shares)
    shares.insert(0, ("measured, no verdict", "plain", other))
    parts = [f'<span class="{css}" style="flex-grow:{n}" title="{n} {name}"></span>' for name, css, n in shares if n]
    return ['<div class="bar" aria-hidden="true">', *parts, "</div>"]


def _table_section(table: TableResult) -> list[str]:
    notes, counts = Notes(table), count([table])
    unit = common_unit(table)
    facts = [f"<code>{escape(table.command)}</code>", f"selection: {escape(table.selection)}"]
    facts += [escape(f"unit: {unit}")] * bool(unit)
    lines = [
        f'<section class="table" id="{escape(table.anchor)}">',
        f"<h3>{table.short_name}: {escape(table.full_title)}</h3>",
        f'<p class="facts">{" · ".join(facts)}</p>',
        *(f"<p>{_prose(note)}</p>" for note in ((GENERATED_NOTE,) if table.generated else ()) + table.notes),
    ]
    if not counts.measured:
        quoted = f", {counts.quoted} quoted" if counts.quoted else ""
        lines.append(f"<details><summary>No cell measured yet ({counts.cells} cells{quoted})</summary>")
    for block in blocks(table):
        lines += _grid(table, notes, block)
    if not counts.measured:
        lines.append("</details>")
    if notes.items:
        lines.append('<ul class="notes">')
        lines += [f"<li><sup>{mark}</sup> {_prose(text)}</li>" for mark, text in notes.items]
        lines.append("</ul>")
    return [*lines, *_tests(table), *_provenance(table), "</section>"]


def _grid(table: TableResult, notes: Notes, block: Block) -> list[str]:
    """Return one table in its own scrolling container."""
    name = f"{table.short_name} of {table.paper}: paper and ours"
    levels = header(block.columns)
    lines = [
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">',
        f"<table><caption>{escape(name)}</caption>",
        "<thead>",
    ]
    for index, level in enumerate(levels):
        corner = f"<td{_span('row', len(levels))}></td>" if index == 0 else ""
        cells = (
            f'<th scope="{"colgroup" if c.columns > 1 else "col"}"{_span("col", c.columns)}{_span("row", c.levels)}>'
            f"{escape(c.text)}</th>"
            for c in level
        )
        lines.append(f"<tr>{corner}{''.join(cells)}</tr>")
    if block.column_notes:
        lines.append("<tr><td></td>" + "".join(f"<td>{escape(note)}</td>" for note in block.column_notes) + "</tr>")
    lines.append("</thead>")
    for part in block.parts:
        lines.append("<tbody>")
        if part.heading:
            span = len(block.columns) + 1
            lines.append(f'<tr><th class="group" scope="rowgroup" colspan="{span}">{escape(part.heading)}</th></tr>')
        lines += [_row(table, notes, block, row) for row in part.rows]
        lines.append("</tbody>")
    return [*lines, "</table>", "</div>"]


def _span(kind: str, count: int) -> str:
    return f' {kind}span="{count}"' if count > 1 else ""


def _row(table: TableResult, notes: Notes, block: Block, row: Row) -> str:
    """Return one row; where all its cells are quoted, missing or not comparable, its heading says so once."""
    states = {state(table, cell) for cell in row.present}
    shared = states.pop() if len(states) == 1 and states <= {"quoted", "missing", "not-comparable"} else ""
    marks = "".join(f"<sup>{mark}</sup>" for mark in notes.of_row(row))
    tag = f' <span class="tag {shared}">{WORDS[shared]}</span>' if shared else ""
    cells = (_cell(table, notes, block, row, cell, bool(shared)) for cell in row.cells)
    return f'<tr><th scope="row">{escape(row.label)}{tag}{marks}</th>{"".join(cells)}</tr>'


def _cell(table: TableResult, notes: Notes, block: Block, row: Row, cell: Cell | None, tagged: bool) -> str:
    """Return a cell: ours above, then the paper's, the difference and the verdict."""
    if cell is None:
        return f'<td class="none">{NO_CELL}</td>'
    verdict, digits = state(table, cell), decimals(table)[cell.unit]
    mark = notes.beside(row, cell)
    unit = f" {escape(own_unit(table, block, cell))}".rstrip()
    lines: list[str] = []
    if cell.results:
        mean, _, spread = ours_text(cell, digits).partition(" ")
        runs = " ".join(text for text in (spread, f"n={cell.n}") if text)
        lines.append(f'<b class="ours">{mean}</b>{unit} <small>{runs}</small>')
    printed = printed_text(cell)
    if printed:
        difference = number(cell.difference, digits, sign=True)
        away = f' <span class="difference">Δ {difference}</span>' if difference else ""
        lines.append(f'<span class="paper">{"paper " if cell.results else ""}{escape(printed)}{unit}</span>{away}')
    if verdict and not (tagged and lines):
        lines.append(f'<span class="tag {verdict}">{MARKS[verdict]} {WORDS[verdict]}</span>')
    if cell.stale:
        lines.append('<span class="tag stale">stale: run again</span>')
    note = f"<sup>{mark}</sup>" if mark else ""
    return f'<td class="cell {verdict or "plain"}">{"<br>".join(lines)}{note}</td>'


def _tests(table: TableResult) -> list[str]:
    if not table.paired_tests:
        return []
    body = [
        (
            escape(test.group or DASH),
            escape(test.column),
            escape(test.first),
            escape(test.second),
            number(test.difference.mean, 4, sign=True),
            str(test.difference.n),
            escape(p_text(test.difference.p)),
        )
        for test in table.paired_tests
    ]
    head = ("group", "column", "first", "second", "second − first", "shared seeds", "p (paired t)")
    return _folded(f"Paired tests ({len(body)})", head, body)


def _provenance(table: TableResult) -> list[str]:
    if not table.provenance:
        return []
    head = ("run", "stage", "seed", "commit", "hardware", "data", "minutes", "peak MB")
    return _folded(f"Runs ({len(table.provenance)})", head, [_run(run) for run in table.provenance])


def _run(run: RunSummary) -> tuple[str, ...]:
    return (
        f"<code>{escape(run.run)}</code>" + (' <span class="tag stale">stale</span>' if run.stale else ""),
        escape(run.stage),
        str(run.seed),
        f"<code>{escape(run.commit)}</code>" if run.commit else DASH,
        escape(run.hardware or DASH),
        escape(run.data or DASH),
        number(run.duration_s / 60, 1) if run.duration_s is not None else DASH,
        number(run.peak_memory_mb, 0) or DASH,
    )


def _folded(title: str, head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Return a plain table behind a summary line; the cells of `body` are HTML already."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    rows = (f"<tr>{''.join(f'<td>{value}</td>' for value in line)}</tr>" for line in body)
    return [
        f'<details><summary>{title}</summary><div class="scroll"><table class="plain">',
        f"<thead><tr>{columns}</tr></thead><tbody>",
        *rows,
        "</tbody></table></div></details>",
    ]


def _prose(text: str) -> str:
    return "".join(f"<code>{escape(piece)}</code>" if code else escape(piece) for piece, code in prose(text))
