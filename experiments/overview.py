"""How much of every table is printed, measured and reproduced, and why the rest is missing."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments.cells import TableResult
from experiments.layout import state

PAPER_TITLES = {
    "affinity": "Affinity Graph Supervision for Visual Recognition",
    "lml": "The Limited Multi-Label Projection Layer",
    "reldn": "Graphical Contrastive Losses for Scene Graph Parsing",
    "segnet": "Combining the Best of Graphical Models and ConvNets for Semantic Segmentation",
    "vrd_tensor": "Visual Relationship Detection with Low Rank Non-Negative Tensor Decomposition",
    "cross": "Tables that combine papers",
}


@dataclass(frozen=True)
class Counts:
    """Numbers of cells: all, with a printed value, with results, and by verdict (generated data have none)."""

    cells: int
    published: int
    measured: int
    reproduced: int
    differs: int
    not_comparable: int
    quoted: int
    missing: int


COUNT_NAMES = tuple(field.name.replace("_", "-") for field in dataclasses.fields(Counts))


def count(tables: Iterable[TableResult]) -> Counts:
    """Return the counts over all cells of the tables."""
    pairs = [(table, cell) for table in tables for cell in table.cells]
    states = Counter(state(table, cell) for table, cell in pairs)
    return Counts(
        cells=len(pairs),
        published=sum(cell.printed is not None for _, cell in pairs),
        measured=sum(bool(cell.results) for _, cell in pairs),
        reproduced=states["reproduced"],
        differs=states["differs"],
        not_comparable=states["not-comparable"],
        quoted=states["quoted"],
        missing=states["missing"],
    )


def missing_reasons(tables: Iterable[TableResult]) -> list[tuple[str, int]]:
    """Return every reason of a missing cell with its number of cells, in order of appearance."""
    cells = (cell for table in tables for cell in table.ordered_cells if state(table, cell) == "missing")
    return list(Counter(" ".join((cell.missing or "").split()) for cell in cells).items())


def cells_text(n: int) -> str:
    """Return the number of cells in words."""
    return f"{n} cell{'s' * (n != 1)}"


def by_paper(tables: Sequence[TableResult]) -> dict[tuple[str, str], list[TableResult]]:
    """Return the tables of every (profile, paper), both in order of appearance, the `paper` profile first."""
    papers: dict[tuple[str, str], list[TableResult]] = {}
    for table in sorted(tables, key=lambda t: t.generated):
        papers.setdefault((table.profile, table.paper), []).append(table)
    return papers


def render_overview_csv(tables: Sequence[TableResult]) -> str:
    """Return one line a table: paper, table (file name), profile, the counts, and the reasons of missing cells."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("paper", "table", "profile", *COUNT_NAMES, "reasons"))
    for table in (t for group in by_paper(tables).values() for t in group):
        reasons = "; ".join(f"{reason} ({n})" for reason, n in missing_reasons([table]))
        writer.writerow((table.paper, table.name, table.profile, *dataclasses.astuple(count([table])), reasons))
    return stream.getvalue()


def render_overview_markdown(tables: Sequence[TableResult]) -> str:
    """Return the same as Markdown, one section a paper, with links to the tables.

    Links are relative to the folder that holds all the tables: `results/`, or `results/demo/` for demo tables only.
    """
    mixed = len({table.profile for table in tables}) > 1
    lines = ["# Overview", "", "Numbers of cells. `index.html` shows the tables themselves."]
    for (profile, paper), group in by_paper(tables).items():
        generated = "" if profile == "paper" else f" ({profile}, generated data)"
        lines += ["", f"## {PAPER_TITLES.get(paper, paper)}{generated}", ""]
        lines += [f"| table | {' | '.join(COUNT_NAMES)} |", f"| --- |{' ---: |' * len(COUNT_NAMES)}"]
        entries = [(f"[{t.name}]({t.stem if mixed else f'{t.paper}/{t.name}'}.md)", count([t])) for t in group]
        for name, counts in [*entries, ("**all**", count(group))]:
            lines.append(f"| {name} | {' | '.join(map(str, dataclasses.astuple(counts)))} |")
        reasons = missing_reasons(group)
        if reasons:
            lines += ["", "Why cells are missing:", "", *(f"- {cells_text(n)}: {reason}" for reason, n in reasons)]
    return "\n".join(lines) + "\n"
