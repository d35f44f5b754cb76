from __future__ import annotations

import math
import statistics
import subprocess
import sys
from typing import Any

import pytest

from experiments.cells import (
    Cell,
    Deviation,
    SeedResult,
    TableResult,
    default_tolerance,
    format_value,
    paired_test,
    paired_tests,
)
from experiments.errors import ExperimentError
from experiments.published import PublishedCell


def printed(value: float | None, std: float | None = None, source: str = "ours_in_paper") -> PublishedCell:
    return PublishedCell("reldn", "8", "VRD", "RelDN", "R@50", "percent", source, value, std)


def results(*values: float) -> tuple[SeedResult, ...]:
    return tuple(SeedResult(seed, value, f"run{seed}") for seed, value in enumerate(values))


def cell(value: float | None = 20.0, *values: float, std: float | None = None, **changes: Any) -> Cell:
    source = changes.pop("source", "ours_in_paper")
    reason = None if values else "not run yet"
    fields: dict[str, Any] = {"published": printed(value, std, source), "results": results(*values), "missing": reason}
    return Cell("reldn", "8", "VRD", "RelDN", "R@50", "percent", source, **(fields | changes))


def test_statistics_of_three_runs() -> None:
    three = cell(20.0, 19.0, 20.0, 22.0)
    assert three.n == 3
    assert three.mean == pytest.approx(61 / 3)
    assert three.std == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2))  # ddof = 1
    assert three.difference == pytest.approx(1 / 3)


def test_statistics_of_one_run_and_of_none() -> None:
    assert (cell(20.0, 19.0).std, cell(20.0, 19.0).difference) == (None, -1.0)
    assert (cell(20.0).n, cell(20.0).mean, cell(20.0).std, cell(20.0).difference) == (0, None, None, None)
    assert cell(None, 19.0).difference is None


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [(20.5, "reproduced"), (19.5, "reproduced"), (20.51, "differs"), (19.49, "differs"), (20.0, "reproduced")],
)
def test_one_run_is_held_to_the_tolerance(ours: float, verdict: str) -> None:
    assert cell(20.0, ours).verdict == verdict


def test_tolerance_boundary_survives_binary_rounding() -> None:
    assert abs(24.1 - 24.6) == 0.5
    assert 0.335 - 0.33 > 0.005  # the trap: the printed decimals are exactly 0.005 apart
    assert cell(0.33, 0.335, tolerance=0.005).verdict == "reproduced"
    assert cell(0.33, 0.3351, tolerance=0.005).verdict == "differs"


def test_printed_std_widens_the_band() -> None:
    assert cell(20.0, 20.8, std=0.8).verdict == "reproduced"
    assert cell(20.0, 20.81, std=0.8).verdict == "differs"
    assert cell(20.0, 20.4, std=0.1).verdict == "reproduced"  # the tolerance is larger


def test_two_standard_errors_widen_the_band() -> None:
    offsets = (-2.0, 0.0, 2.0)  # std 2, standard error 2 / sqrt(3), band 2.3094
    band = 2 * statistics.stdev(offsets) / math.sqrt(3)
    assert cell(20.0, *(20.0 + band - 0.001 + o for o in offsets)).verdict == "reproduced"
    assert cell(20.0, *(20.0 + band + 0.001 + o for o in offsets)).verdict == "differs"


def test_tight_runs_still_have_the_tolerance() -> None:
    assert cell(20.0, 20.45, 20.45, 20.45).verdict == "reproduced"


def test_order_of_the_verdicts() -> None:
    deviation = (Deviation("data.train_images", 4000, 400),)
    assert cell(20.0, 20.0, deviations=deviation).verdict == "not-comparable"
    assert cell(None, 20.0).verdict == "not-comparable"
    assert cell(20.0, 20.0, published=None).verdict == "not-comparable"
    assert cell(20.0).verdict == "missing"
    assert cell(None).verdict == "missing"
    assert cell(20.0, deviations=deviation).verdict == "missing"
    for value, ours in ((20.0, ()), (None, ()), (20.0, (20.0,)), (None, (20.0,))):
        assert cell(value, *ours, source="quoted").verdict == "quoted"


def test_quoted_cells_need_no_reason_but_others_do() -> None:
    assert cell(20.0, source="quoted", missing=None).missing is None
    with pytest.raises(ExperimentError, match="neither a result nor a reason"):
        cell(20.0, missing=None)


def test_results_are_validated() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ExperimentError, match="run abc, seed 3"):
            SeedResult(3, value, "abc")
    with pytest.raises(ExperimentError, match="several results for one seed"):
        cell(20.0, results=(SeedResult(1, 2.0, "a"), SeedResult(1, 3.0, "b")), missing=None)


def test_default_tolerance_by_unit() -> None:
    assert [default_tolerance(u) for u in ("percent", "percent_IoU", "fraction", "score_0_1")] == [
        0.5,
        0.5,
        0.005,
        0.005,
    ]


def test_paired_test_uses_shared_seeds_only() -> None:
    first = [SeedResult(s, v, "a") for s, v in ((0, 1.0), (1, 2.0), (2, 4.0), (7, 99.0))]
    second = [SeedResult(s, v, "b") for s, v in ((2, 5.5), (1, 2.5), (0, 2.0), (8, -99.0))]
    test = paired_test(first, second)
    assert test is not None
    differences = [1.0, 0.5, 1.5]
    assert (test.n, test.mean) == (3, pytest.approx(1.0))
    t = 1.0 / (statistics.stdev(differences) / math.sqrt(3))
    two_sided = 1 - t / math.sqrt(2 + t * t)  # Student's distribution with 2 degrees of freedom in closed form
    assert test.p == pytest.approx(two_sided)
    swapped = paired_test(second, first)
    assert swapped is not None
    assert (swapped.mean, swapped.p) == (pytest.approx(-1.0), pytest.approx(two_sided))


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3])
def test_equal_differences_have_no_p(shift: float) -> None:
    values = (0.1, 0.2, 33.3)
    test = paired_test(results(*values), results(*(v + shift for v in values)))
    assert test is not None
    assert test.p is None
    assert test.mean == pytest.approx(shift)


def test_fewer_than_two_shared_seeds_have_no_test() -> None:
    assert paired_test(results(1.0, 2.0), results(1.0)) is None
    assert paired_test(results(1.0, 2.0), ()) is None


def test_paired_tests_of_named_rows() -> None:
    def named(row: str, column: str, *values: float) -> Cell:
        return Cell("p", "1", "g", row, column, "percent", "baseline", None, results(*values), missing="no")

    cells = [
        named(r, c, *v)
        for r, c, v in (("L0", "a", (1, 2)), ("L0", "b", (1, 2)), ("all", "a", (2, 4)), ("all", "b", (1,)))
    ]
    (test,) = paired_tests(cells, [["L0", "all"]])
    assert (test.group, test.column, test.first, test.second, test.difference.mean) == ("g", "a", "L0", "all", 1.5)
    assert paired_tests(cells, [["L0", "other"]]) == ()


def table(**changes: Any) -> TableResult:
    fields: dict[str, Any] = {
        "paper": "reldn",
        "table": "8",
        "kind": "table",
        "title": "VRD",
        "profile": "paper",
        "selection": "last",
        "command": "make table-reldn-8",
        "cells": (cell(20.0, 20.0),),
        "row_order": (("VRD", "RelDN"),),
        "column_order": ("R@50",),
    }
    return TableResult(**(fields | changes))


def test_names_of_tables_and_figures() -> None:
    ablation, figure = table(table="ablation"), table(kind="figure", table="4")
    assert [t.name for t in (table(), ablation, figure)] == ["table8", "table_ablation", "figure4"]
    assert [t.anchor for t in (table(), ablation, figure)] == ["reldn-8", "reldn-ablation", "reldn-figure-4"]
    assert (table().stem, table(profile="demo").stem) == ("reldn/table8", "demo/reldn/table8")


def test_demo_has_no_verdict_and_says_what_it_is() -> None:
    demo = table(profile="demo")
    assert demo.verdict(demo.cells[0]) == ""
    assert demo.full_title == "VRD (generated data)"
    assert table(profile="demo", title="VRD, generated data").full_title == "VRD, generated data"
    assert (table().full_title, table().verdict(cell(20.0, 20.0))) == ("VRD", "reproduced")


def test_table_checks_its_cells() -> None:
    with pytest.raises(ExperimentError, match="occurs twice"):
        table(cells=(cell(20.0, 20.0), cell(20.0, 21.0)))
    with pytest.raises(ExperimentError, match="not in the table's row and column orders"):
        table(column_order=("R@100",))


def test_cells_are_ordered_by_row_then_column() -> None:
    names = [("b", "y"), ("a", "x"), ("b", "x"), ("a", "y")]
    cells = tuple(Cell("p", "1", "", r, c, "percent", "baseline", missing="no") for r, c in names)
    ordered = table(cells=cells, row_order=(("", "b"), ("", "a")), column_order=("x", "y")).ordered_cells
    assert [(c.row, c.column) for c in ordered] == [("b", "x"), ("b", "y"), ("a", "x"), ("a", "y")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "true"),
        (0.001, "0.001"),
        (1e-7, "1e-07"),
        (3, "3"),
        ("lu2016", "lu2016"),
        ([1, "é"], '[1, "é"]'),
    ],
)
def test_config_values_are_readable(value: object, text: str) -> None:
    assert format_value(value) == text


def test_rendering_imports_neither_torch_nor_scipy() -> None:
    heavy = "{'torch', 'scipy', 'pandas', 'numpy'}"
    code = f"import sys, experiments.page, experiments.render; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
