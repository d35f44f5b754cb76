from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.cells import TableResult
from experiments.latex import escape
from experiments.layout import Notes, blocks, decimals, header, number, p_text
from experiments.render import CSV_COLUMNS, to_csv, to_latex, to_markdown
from tests.experiments.sample_tables import (
    ODD_ROW,
    REASON,
    column_groups,
    demo,
    listed,
    make_cell,
    make_table,
    mixed_units,
    sample,
)

GOLDEN = Path(__file__).parent / "golden"
SAMPLES = {f.__name__: f for f in (sample, demo, column_groups, listed, mixed_units)}
RENDERERS = {"csv": to_csv, "md": to_markdown, "tex": to_latex}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("suffix", RENDERERS)
def test_golden(name: str, suffix: str) -> None:
    """Set UPDATE_GOLDEN=1 to rewrite the files; read them before committing them."""
    text = RENDERERS[suffix](SAMPLES[name]())
    path = GOLDEN / f"{name}.{suffix}"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(text.encode())
    assert text.encode() == path.read_bytes()


@pytest.mark.parametrize("render", RENDERERS.values())
@pytest.mark.parametrize("make", SAMPLES.values())
def test_order_of_cells_does_not_matter(render: Callable[[TableResult], str], make: Callable[[], TableResult]) -> None:
    table = make()
    fields = {k: getattr(table, k) for k in table.__dataclass_fields__}
    shuffled = TableResult(**(fields | {"cells": tuple(reversed(table.cells))}))
    assert render(shuffled) == render(table)
    assert "\r" not in render(table)
    assert render(table).endswith("\n")


def lines(table: TableResult) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(table))))


def test_csv_columns_are_those_of_the_design() -> None:
    assert ",".join(CSV_COLUMNS) == (
        "paper,table,group,row,column,unit,source,published,published_std,ours_mean,ours_std,n,verdict,deviations,runs"
    )


def test_csv_has_one_line_a_cell_and_survives_odd_names() -> None:
    table = sample()
    found = [(line["group"], line["row"], line["column"]) for line in lines(table)]
    assert found == [c.key for c in table.ordered_cells]
    assert len(set(found)) == len(table.cells)
    assert any(row == ODD_ROW for _, row, _ in found)


def test_csv_missing_is_empty_never_zero_but_a_measured_zero_stays() -> None:
    by_key = {(line["row"], line["column"]): line for line in lines(sample())}
    missing = by_key[ODD_ROW, "relation_k1/R@50"]
    assert (missing["ours_mean"], missing["ours_std"], missing["n"]) == ("", "", "0")
    assert (missing["verdict"], missing["deviations"], missing["runs"]) == ("missing", REASON, "")
    zero = by_key["Ours", "score*"]
    assert (zero["ours_mean"], zero["n"], zero["verdict"]) == ("0.0000", "1", "not-comparable")


def test_csv_fields() -> None:
    by_key = {(line["row"], line["column"]): line for line in lines(sample())}
    base = by_key["Base", "relation_k1/R@100"]
    assert (base["published"], base["published_std"]) == ("18.64", "0.3")
    assert (base["ours_mean"], base["ours_std"], base["n"]) == ("20.2000", "0.2646", "3")
    assert (base["verdict"], base["deviations"], base["runs"]) == ("differs", "", "b0run b1run b2run")
    ours = by_key["Ours", "relation_k1/R@50"]
    assert ours["deviations"] == "data.images=lu2016 (paper: none); model.visual=false (paper: true)"
    assert by_key["Frequency", "score*"]["deviations"] == "stale run f0run"
    assert [by_key["Quoted [3]", c]["published"] for c in ("score*", "relation_k1/R@100")] == ["7", ""]


def test_demo_has_no_verdict_anywhere() -> None:
    assert {line["verdict"] for line in lines(demo())} == {""}
    for render in (to_markdown, to_latex):
        text = render(demo())
        assert "generated data" in text
        assert not re.search(r"✓|✗|◇|checkmark|reproduced|differs", text)


def test_markdown_has_no_blank_cells_and_even_tables() -> None:
    for make in SAMPLES.values():
        grid = [line for line in to_markdown(make()).splitlines() if line.startswith("|")]
        for line in grid:
            cells = [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert all(cells[1:]), line
        bars = {
            len(re.findall(r"(?<!\\)\|", line))
            for line in to_markdown(sample()).split("## ")[1].splitlines()
            if "|" in line
        }
        assert len(bars) == 1


def test_notes_are_shared_and_stand_where_they_apply() -> None:
    table = sample()
    notes = Notes(table)
    assert [mark for mark, _ in notes.items] == ["1", "2", "3", "a", "b"]
    rows = {row.label: row for block in blocks(table) for row in block.rows}
    assert notes.of_row(rows["Ours"]) == []  # its cells deviate differently
    assert [notes.beside(rows["Ours"], c) for c in rows["Ours"].present] == ["2", "2", "3"]
    assert notes.of_row(rows["Frequency"]) == ["1"]  # the paper prints no value, in all of its cells
    assert [notes.beside(rows[ODD_ROW], c) for c in rows[ODD_ROW].present] == ["a", "a", "b"]


def test_row_of_one_reason_has_its_mark_at_the_label() -> None:
    table = make_table([make_cell("g", "Ours", c, "1.0") for c in ("x", "y")])
    assert "| Ours<sup>a</sup> | 1.0 → ○ | 1.0 → ○ |" in to_markdown(table)


def test_mark_is_at_the_cell_when_the_row_is_partly_measured() -> None:
    table = make_table([make_cell("g", "Ours", "x", "1.0", 1.0), make_cell("g", "Ours", "y", "1.0")])
    assert "| Ours | 1.0 → 1.0 (1) ✓ | 1.0 → ○<sup>a</sup> |" in to_markdown(table)


def test_more_notes_than_letters() -> None:
    table = make_table([make_cell("g", "Ours", str(i), "1.0", missing=f"reason {i}") for i in range(28)])
    assert [mark for mark, _ in Notes(table).items][24:] == ["y", "z", "aa", "ab"]


def test_header_levels() -> None:
    levels = header(["R@50", "relation_free_k/R@50", "relation_free_k/R@100", "a/b/c", "a/b/d", "a / b"])
    seen = [[(c.text, c.start, c.columns, c.levels) for c in level] for level in levels]
    assert seen == [
        [("R@50", 0, 1, 3), ("relation free k", 1, 2, 1), ("a", 3, 2, 1), ("a / b", 5, 1, 3)],
        [("R@50", 1, 1, 2), ("R@100", 2, 1, 2), ("b", 3, 2, 1)],
        [("c", 3, 1, 1), ("d", 4, 1, 1)],
    ]


def test_equal_outer_headings_that_are_apart_stay_apart() -> None:
    (top, _) = header(["a/x", "b/x", "a/y"])
    assert [(c.text, c.columns) for c in top] == [("a", 1), ("b", 1), ("a", 1)]


def test_layouts() -> None:
    (grid,) = blocks(sample())
    assert [p.heading for p in grid.parts] == ["w/ Lu's boxes", "own boxes"]
    assert [row.cells.count(None) for row in grid.rows] == [0, 0, 0, 0, 1]
    (merged,) = blocks(column_groups())
    assert merged.column_notes == ("pretrain=ImageNet", "pretrain=COCO")
    (flat,) = blocks(listed())
    assert flat.listed
    assert len(flat.rows) == 4
    names = [("CIFAR", "R20"), ("CIFAR", "R56"), ("Tiny", "R18"), ("Tiny", "R20"), ("Last", "R18"), ("Last", "R20")]
    split = blocks(make_table([make_cell(group, "base", column, "1.0") for group, column in names]))
    assert [(b.columns, [p.heading for p in b.parts]) for b in split] == [
        (("R20", "R56"), ["CIFAR"]),
        (("R20", "R18"), ["Tiny", "Last"]),
    ]


@pytest.mark.parametrize("make", SAMPLES.values())
def test_every_cell_is_laid_out_once(make: Callable[[], TableResult]) -> None:
    table = make()
    shown = [c.key for block in blocks(table) for row in block.rows for c in row.present]
    assert sorted(shown) == sorted(c.key for c in table.cells)


def test_digits_follow_the_paper() -> None:
    cells = [
        make_cell("g", "a", "x", "46.3"),
        make_cell("g", "b", "x", "46.30"),
        make_cell("g", "c", "x", "3137", unit="MB"),
        make_cell("g", "d", "x", None, unit="ms"),
        make_cell("g", "e", "x", None, unit="fraction", tolerance=0.005),
    ]
    assert decimals(make_table(cells)) == {"percent": 2, "MB": 1, "ms": 2, "fraction": 4}


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (None, 2, False, ""),
        (23.456, 2, False, "23.46"),
        (-0.004, 2, False, "0.00"),
        (-0.004, 2, True, "0.00"),
        (-0.006, 2, True, "−0.01"),
        (1.5, 1, True, "+1.5"),
        (-1.5, 1, False, "-1.5"),
    ],
)
def test_numbers(value: float | None, digits: int, sign: bool, text: str) -> None:
    assert number(value, digits, sign) == text


def test_p_values() -> None:
    assert [p_text(p) for p in (None, 0.0004, 0.001, 0.04951)] == ["n/a", "< 0.001", "0.001", "0.050"]


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("a_b % c & d # e $ f", r"a\_b \% c \& d \# e \$ f"),
        ("{x} ~ ^ \\", r"\{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}"),
        ("[3] *", "{[}3{]} {*}"),
        ("1 < 2 > 0 ± −é", r"1 \textless{} 2 \textgreater{} 0 $\pm$ $-$é"),
        ("a--b---c -1", "a-{}-b-{}-{}-c -1"),
        ("γ λ ✓ 猫", r"$\gamma$ $\lambda$ $\checkmark$ U+732B"),
        ('say "x"', "say ''x''"),
    ],
)
def test_latex_escapes(text: str, latex: str) -> None:
    assert escape(text) == latex


@pytest.mark.parametrize("make", SAMPLES.values())
def test_latex_rows_fit_their_tables(make: Callable[[], TableResult]) -> None:
    text = to_latex(make())
    for columns, body in re.findall(r"\\begin\{tabular\}\{ll\*\{(\d+)\}\{r\}\}(.*?)\\end\{tabular\}", text, re.S):
        for line in (part for part in body.splitlines() if part.endswith(r"\\")):
            spans = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert len(re.findall(r"(?<!\\)&", line)) + spans == int(columns) + 1, line
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_wide_latex_tables_are_cut_between_headings() -> None:
    columns = [f"{outer}/{k}" for outer in "abc" for k in range(4)]
    text = to_latex(make_table([make_cell("g", "Ours", c, "1.0") for c in columns]))
    assert re.findall(r"ll\*\{(\d+)\}", text) == ["8", "4"]
    text = to_latex(make_table([make_cell("g", "Ours", str(c), "1.0") for c in range(17)]))
    assert re.findall(r"ll\*\{(\d+)\}", text) == ["8", "8", "1"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path: Path) -> None:
    body = "\n".join(to_latex(make()) for make in SAMPLES.values())
    document = (
        rf"\documentclass{{article}}\usepackage{{booktabs,graphicx,amssymb}}\begin{{document}}{body}\end{{document}}"
    )
    (tmp_path / "all.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
