"""Small hand-made tables that hold every kind of cell, for the tests of the renderers."""

from __future__ import annotations

from typing import Any

from experiments.cells import (
    Cell,
    Deviation,
    PairedDifference,
    PairedTest,
    RunSummary,
    SeedResult,
    TableResult,
)
from experiments.published import PublishedCell

REASON = "not built yet: needs `images`, a detector & 50 % more"
DEVIATIONS = (Deviation("model.visual", True, False), Deviation("data.images", None, "lu2016"))
PROVENANCE = (
    RunSummary("aaaa11112222", 0, "reldn", "0123abc", "NVIDIA H100", "vrd, official files", 3725.4, 10240.2),
    RunSummary("bbbb11112222", 0, "frequency", "", "", "", None, None, stale=True),
)
ODD_ROW = '[A] * B|C_d~$^#{é} <1> \\ -- "q" 5 % γ'


def make_cell(
    group: str,
    row: str,
    column: str,
    value: str | None = "",
    *ours: float,
    std: str = "",
    source: str = "ours_in_paper",
    **changes: Any,
) -> Cell:
    """A cell of paper `toy`, table 8; `value` is the printed text, "" a dash, None unprinted."""
    unit = changes.pop("unit", "percent")
    stale = changes.pop("stale", False)
    printed = None
    if value is not None:
        numbers = [float(text) if text else None for text in (value, std)]
        printed = PublishedCell("toy", "8", group, row, column, unit, source, *numbers, None, value, std)
    results = tuple(SeedResult(s, v, f"{row[:1].lower()}{s}run", stale) for s, v in enumerate(ours))
    reason = None if ours or source == "quoted" else REASON
    fields: dict[str, Any] = {"published": printed, "results": results, "missing": reason}
    return Cell("toy", "8", group, row, column, unit, source, **(fields | changes))


def make_table(cells: list[Cell], **changes: Any) -> TableResult:
    fields: dict[str, Any] = {
        "paper": "toy",
        "table": "8",
        "kind": "table",
        "title": "Relations & phrases, 100 % <toy>",
        "profile": "paper",
        "selection": "last",
        "command": "make table-toy-8",
        "cells": tuple(cells),
        "row_order": tuple(dict.fromkeys((c.group, c.row) for c in cells)),
        "column_order": tuple(dict.fromkeys(c.column for c in cells)),
    }
    return TableResult(**(fields | changes))


def sample() -> TableResult:
    """Two groups x three columns with every verdict, a hole, a stale run, a paired test and awkward characters."""
    lu, own = "w/ Lu's boxes", "own boxes"
    r50, r100, score = "relation_k1/R@50", "relation_k1/R@100", "score*"
    cells = [
        make_cell(lu, "Quoted [3]", r50, "16.89", source="quoted"),
        make_cell(lu, "Quoted [3]", r100, source="quoted"),
        make_cell(lu, "Quoted [3]", score, "7", source="quoted"),
        make_cell(lu, "Base", r50, "17.67", 17.5, 17.7, 18.0, source="baseline"),
        make_cell(lu, "Base", r100, "18.64", 20.0, 20.5, 20.1, std="0.3", source="baseline"),
        make_cell(lu, "Base", score, "", 5.0, 5.5, 6.0, source="baseline"),
        make_cell(lu, "Ours", r50, "24.08", 22.0, deviations=DEVIATIONS),
        make_cell(lu, "Ours", r100, "28.29", 28.5, deviations=DEVIATIONS),
        make_cell(lu, "Ours", score, "9.5", 0.0, deviations=DEVIATIONS[:1]),
        make_cell(own, ODD_ROW, r50, "28.53"),
        make_cell(own, ODD_ROW, r100, ""),
        make_cell(own, ODD_ROW, score, "31.0", missing="labels are on the server"),
        make_cell(own, "Frequency", r50, None, 15.6978, source="added", stale=True),
        make_cell(own, "Frequency", score, None, 16.575, source="added", stale=True),
    ]
    return make_table(
        cells,
        notes=("Ours: `visual` is off <here>.",),
        provenance=PROVENANCE,
        paired_tests=(
            PairedTest(lu, r50, "Base", "Ours", PairedDifference(-1.23456, 3, 0.0004)),
            PairedTest(lu, r100, "Base", "Ours", PairedDifference(0.5, 2, None)),
        ),
    )


def demo() -> TableResult:
    """A small table on generated data."""
    cells = [
        make_cell("", "Base", "R@50", "17.67", 60.0, deviations=DEVIATIONS),
        make_cell("", "Ours", "R@50", "24.08", 62.5, deviations=DEVIATIONS),
        make_cell("", "Theirs", "R@50", "20", source="quoted"),
    ]
    return make_table(cells, profile="demo")


def column_groups() -> TableResult:
    """One row whose columns, not rows, belong to groups, as in affinity Table 2."""
    cells = [
        make_cell("pretrain=ImageNet", "Accuracy", "CNN", "75.1", 75.0),
        make_cell("pretrain=COCO", "Accuracy", "CNN + ROIs", "78.0", std="0.3"),
    ]
    return make_table(cells)


def listed() -> TableResult:
    """Scattered numbers of the running text with units of their own, as in the ablation files."""
    cells = [
        make_cell("Sec. 5", "SVM", "(1) only", "49.0", 49.2, unit="percent_IoU"),
        make_cell("Sec. 5", "loss mix", "UOI weight", "0.7", unit="weight", missing="a setting"),
        make_cell("Sec. 5", "warm-up", "iterations", "4000", unit="iterations", missing="a setting"),
        make_cell("abstract", "full method", "test", "52.5", unit="percent_IoU", missing="labels are on the server"),
    ]
    return make_table(cells, table="ablation", command="make table-toy-ablation")


def mixed_units() -> TableResult:
    """A grid whose columns have different units, as in affinity Table 4."""
    cells = [
        make_cell("VOC07", "Baseline", "runtime", "79.7", 81.25, unit="minutes"),
        make_cell("VOC07", "Baseline", "memory", "3137", unit="MB"),
    ]
    return make_table(cells)
