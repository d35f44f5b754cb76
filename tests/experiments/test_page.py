from __future__ import annotations

import csv
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.cells import TableResult
from experiments.overview import Counts, count, missing_reasons
from experiments.page import render_overview_csv, render_overview_markdown, render_page
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
VOID = {"meta", "br"}


def every_kind() -> list[TableResult]:
    return [demo(), sample(), column_groups_of_paper("other"), listed(), figure()]


def column_groups_of_paper(paper: str) -> TableResult:
    table = column_groups()
    return make_table(list(table.cells), paper=paper, table="2")


def figure() -> TableResult:
    return make_table([make_cell("", "LML", f"k={k}", None) for k in (5, 50)], kind="figure", table="3", title="Time")


class Parsed(HTMLParser):
    """Checks nesting, and collects the elements by tag and the text of every table cell."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and {"td", "th"} & set(self.open):
            self.cells[-1] += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attrs[name] or "" for element, attrs in self.elements if element == tag and name in attrs]


@pytest.mark.parametrize(
    ("suffix", "render"), [("html", render_page), ("csv", render_overview_csv), ("md", render_overview_markdown)]
)
def test_golden(suffix: str, render: object) -> None:
    """Set UPDATE_GOLDEN=1 to rewrite the files; look at them before committing them."""
    assert callable(render)
    text = render(every_kind())
    path = GOLDEN / f"page.{suffix}"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(text.encode())
    assert text.encode() == path.read_bytes()


def test_page_is_well_formed_and_self_contained() -> None:
    text = render_page(every_kind())
    page = Parsed(text)
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert not re.search(r"https?://|url\(|@import", text)
    assert all(target.startswith("#") for target in page.attributes("a", "href"))
    assert text.startswith("<!doctype html>\n<html lang=")


def test_links_lead_to_unique_anchors() -> None:
    page = Parsed(render_page(every_kind()))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {f"#{i}" for i in ids if i != "overview"} == set(page.attributes("a", "href"))
    assert {"toy-8", "toy-figure-3", "toy-ablation", "other-2", "demo-toy-8", "toy", "demo-toy"} <= set(ids)


def test_headings_of_tables_have_scopes_and_every_table_has_a_name() -> None:
    page = Parsed(render_page(every_kind()))
    assert all(attrs.get("scope") for tag, attrs in page.elements if tag == "th")
    grids = sum(tag == "caption" for tag, _ in page.elements)
    regions = [attrs for tag, attrs in page.elements if tag == "div" and attrs.get("role") == "region"]
    assert grids == len(regions) == 5
    assert all(attrs["aria-label"] and attrs["tabindex"] == "0" for attrs in regions)


@pytest.mark.parametrize("make", [sample, demo, column_groups, listed, mixed_units])
def test_every_cell_appears_with_its_numbers(make: object) -> None:
    assert callable(make)
    table = make()
    text = render_page([table])
    shown = re.findall(r'<td class="cell [^"]*">(.*?)</td>', text)
    assert len(shown) == len(table.cells)
    assert all(re.sub(r"<[^>]+>", "", cell).strip() for cell in shown), "a blank cell"
    values = [c.published.value_text for c in table.cells if c.published and c.published.value_text]
    for value in values:
        assert any(re.search(rf"(?<![\d.]){re.escape(value)}(?![\d])", cell) for cell in shown), value


def row_of(text: str, label: str) -> str:
    match = re.search(rf'<tr><th scope="row">{re.escape(label)}.*?</tr>', text)
    assert match, label
    return match[0]


def test_a_measured_cell_has_mean_std_count_difference_and_verdict_in_words() -> None:
    base = row_of(render_page([sample()]), "Base")
    text = re.sub(r"<[^>]+>", " ", base)
    assert re.sub(r"\s+", " ", text).strip() == (
        "Base 17.73 ± 0.25 n=3 paper 17.67 Δ +0.06 ✓ reproduced "
        "20.20 ± 0.26 n=3 paper 18.64 ± 0.3 Δ +1.56 ✗ differs "
        "5.50 ± 0.50 n=3 paper — ◇ not comparable 1"
    )


def test_rows_of_one_verdict_say_it_once_at_their_heading() -> None:
    text = render_page([sample()])
    assert re.findall(r'class="tag (\S+?)"', row_of(text, "Quoted [3]")) == ["quoted"]
    assert re.findall(r'class="tag (\S+?)"', row_of(text, "Ours")) == ["not-comparable"]
    assert len(re.findall("stale: run again", row_of(text, "Frequency"))) == 2


def test_odd_characters_are_escaped() -> None:
    page = Parsed(render_page([sample()]))
    assert any(ODD_ROW in cell for cell in page.cells)


def test_reasons_and_deviations_are_readable_without_opening_anything() -> None:
    text = render_page([make_table([make_cell("g", "Ours", "x", "1.0")])])
    folded = re.sub(r"<details>.*?</details>", "", text, flags=re.S)
    assert "needs <code>images</code>, a detector &amp; 50 % more" in folded


def test_unmeasured_tables_are_folded_and_measured_ones_open() -> None:
    measured, empty = sample(), figure()
    assert "No cell measured yet" not in render_page([measured])
    assert "No cell measured yet (2 cells)" in render_page([empty])


def test_demo_has_no_verdicts_and_comes_last() -> None:
    text = render_page([demo(), sample()])
    section = text[text.index('id="demo-toy-8"') :]
    assert "generated data" in section
    assert not re.search("reproduced|differs|not comparable", section)
    assert text.index('id="toy-8"') < text.index('id="demo-toy-8"')


def test_counts() -> None:
    assert count([sample()]) == Counts(
        cells=14, published=9, measured=8, reproduced=1, differs=1, not_comparable=6, quoted=3, missing=3
    )
    assert count([demo()]) == Counts(
        cells=3, published=3, measured=2, reproduced=0, differs=0, not_comparable=0, quoted=1, missing=0
    )
    assert count([]) == Counts(0, 0, 0, 0, 0, 0, 0, 0)
    assert missing_reasons([sample(), figure()]) == [(REASON, 4), ("labels are on the server", 1)]


def test_overview_csv_agrees_with_the_cells() -> None:
    tables = every_kind()
    records = list(csv.DictReader(io.StringIO(render_overview_csv(tables))))
    assert [(r["paper"], r["table"], r["profile"]) for r in records] == [
        ("toy", "table8", "paper"),
        ("toy", "table_ablation", "paper"),
        ("toy", "figure3", "paper"),
        ("other", "table2", "paper"),
        ("toy", "table8", "demo"),
    ]
    for record in records[:-1]:
        verdicts = ("reproduced", "differs", "not-comparable", "quoted", "missing")
        assert sum(int(record[v]) for v in verdicts) == int(record["cells"])
    assert records[2]["reasons"] == f"{REASON} (2)"


def test_overview_markdown_totals_and_links() -> None:
    text = render_overview_markdown(every_kind())
    assert "[table8](toy/table8.md)" in text
    assert "[table8](demo/toy/table8.md)" in text
    assert "[table8](toy/table8.md)" in render_overview_markdown([demo()])  # written to results/demo/
    assert "| **all** | 20 | 13 | 9 | 2 | 1 | 6 | 3 | 8 |" in text
    assert "- 1 cell: labels are on the server" not in text  # two tables give this reason: 2 cells
    assert "- 2 cells: labels are on the server" in text
