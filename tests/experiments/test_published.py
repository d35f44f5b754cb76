from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import yaml

import experiments
from experiments.errors import ExperimentError
from experiments.published import COLUMNS, PublishedCell, load_published

ROOT = Path(experiments.__file__).parent
FILES = sorted(ROOT.glob("*/published/*.csv"))
HEAD = ",".join(COLUMNS)
LINE = "reldn,8,RelDN,R@50,VRD,21.50,,percent,ours_in_paper,"


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "table8.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_keeps_the_printed_digits(tmp_path: Path) -> None:
    line = 'affinity,1,mAP,"gamma=2, focal",VOC07,47.0,0.10,percent,baseline,1'
    (cell,) = load_published(write(tmp_path, HEAD, line))
    expected = PublishedCell(
        paper="affinity",
        table="1",
        group="VOC07",
        row="mAP",
        column="gamma=2, focal",
        unit="percent",
        source="baseline",
        value=47.0,
        std=0.1,
        bold=True,
        value_text="47.0",
        std_text="0.10",
    )
    assert cell == expected
    assert cell.key == ("VOC07", "mAP", "gamma=2, focal")


def test_empty_fields_are_none_not_zero(tmp_path: Path) -> None:
    (cell,) = load_published(write(tmp_path, HEAD, "reldn,8,A,R@50,VRD,,,percent,quoted,"))
    assert (cell.value, cell.std, cell.bold, cell.value_text) == (None, None, None, "")


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    (cell,) = load_published(write(tmp_path, ",".join(reversed(COLUMNS)), ",".join(reversed(LINE.split(",")))))
    assert (cell.row, cell.value_text) == ("RelDN", "21.50")


def test_missing_column_lists_the_expected_ones(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD.replace(",unit", ""), LINE.replace(",percent", ""))
    with pytest.raises(ExperimentError, match=re.escape(", ".join(COLUMNS))) as error:
        load_published(path)
    assert "table8.csv" in str(error.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([LINE.replace("21.50", "21,50")], "expected 10 fields"),
        ([LINE[:-1]], "expected 10 fields"),
        ([LINE.replace("21.50", "nan")], "value 'nan' is no number"),
        ([LINE.replace("21.50", "21.5%")], "value '21.5%' is no number"),
        ([LINE.replace("21.50,", "21.50,x")], "std 'x' is no number"),
        ([LINE.replace("21.50,", ",0.1")], "a std without a value"),
        ([LINE.replace("ours_in_paper", "ours")], "source 'ours' is none of ours_in_paper, baseline, quoted"),
        ([LINE + "yes"], "bold 'yes' is none of 0, 1 and empty"),
        ([LINE, LINE.replace("21.50", "3")], "two lines for group 'VRD', row 'RelDN', column 'R@50'"),
        ([LINE, LINE.replace("reldn,8,RelDN", "reldn,7,other")], "lines of several tables: reldn 7, reldn 8"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ExperimentError, match=re.escape(message)):
        load_published(write(tmp_path, HEAD, *lines))


def test_bad_line_is_located(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="line 3"):
        load_published(write(tmp_path, HEAD, LINE, LINE.replace("21.50", "?").replace("RelDN", "X")))


def test_absent_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no such file"):
        load_published(tmp_path / "table1.csv")
    (tmp_path / "table1.csv").write_bytes(HEAD.encode() + b"\n\xff\xfe")
    with pytest.raises(ExperimentError, match="UTF-8"):
        load_published(tmp_path / "table1.csv")


def test_registry_is_complete() -> None:
    """25 tables and the running text of two papers, 1,183 printed cells (dashes included)."""
    counts = {paper: len(list((ROOT / paper / "published").glob("table[0-9].csv"))) for paper in PAPERS}
    assert counts == {"affinity": 8, "lml": 2, "reldn": 9, "segnet": 2, "vrd_tensor": 4}
    assert sorted(p.parent.parent.name for p in FILES if p.stem == "table_ablation") == ["affinity", "segnet"]
    assert sum(len(load_published(path)) for path in FILES) == 1183


PAPERS = ("affinity", "lml", "reldn", "segnet", "vrd_tensor")


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.parent.name}-{p.stem}")
def test_every_file_says_where_it_belongs(path: Path) -> None:
    cells = load_published(path)
    assert {c.paper for c in cells} == {path.parent.parent.name}
    assert {f"table{c.table}" if c.table.isdigit() else f"table_{c.table}" for c in cells} == {path.stem}
    with path.open(newline="") as stream:  # an independent reading of the numbers
        assert [c.value_text for c in cells] == [r["value"] for r in csv.DictReader(stream)]


def scores(paper: str, table: int) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for cell in load_published(ROOT / paper / "published" / f"table{table}.csv"):
        assert cell.value is not None
        rows.setdefault(cell.row, {})[cell.column] = cell.value
    return rows


@pytest.mark.parametrize(("table", "suffix", "total"), [(1, "w", "score_wtd"), (5, "", "score"), (6, "", "score")])
def test_reldn_scores_follow_from_their_parts(table: int, suffix: str, total: str) -> None:
    """Score = 0.2 R@50 + 0.4 mAP_rel + 0.4 mAP_phr: a transcription error in any of the four shows."""
    for row in scores("reldn", table).values():
        parts = 0.2 * row["R@50"] + 0.4 * row[f"{suffix}mAP_rel"] + 0.4 * row[f"{suffix}mAP_phr"]
        assert row[total] == pytest.approx(parts, abs=0.0101)


def test_reldn_map_is_the_mean_of_nine_predicates() -> None:
    nine, means = scores("reldn", 1), scores("reldn", 5)
    for row, columns in nine.items():
        aps = [v for c, v in columns.items() if c.startswith("AP_rel/")]
        assert len(aps) == 9
        assert means[row]["mAP_rel"] == pytest.approx(sum(aps) / 9, abs=0.0101)


def test_segnet_average_is_the_mean_of_21_classes() -> None:
    for row in scores("segnet", 1).values():
        classes = [v for c, v in row.items() if c != "Average"]
        assert len(classes) == 21
        assert row["Average"] == pytest.approx(sum(classes) / 21, abs=0.051)


YAMLS = [p for p in sorted(ROOT.glob("*/*.yaml")) if p.stem.startswith(("table", "figure")) and p.parent.name in PAPERS]


def test_every_table_and_numeric_figure_has_a_file() -> None:
    found = {f"{p.parent.name}/{p.stem}" for p in YAMLS}
    tables = {f"{p.parent.parent.name}/{p.stem}" for p in FILES}
    figures = {f"lml/figure{n}" for n in (3, 4, 5, 6)} | {f"affinity/figure{n}" for n in (4, 5, 6)}
    assert found == tables | figures | {"segnet/figure2", "segnet/figure6"}


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_yaml_has_its_header_and_its_numbers(path: Path) -> None:
    text = path.read_text()
    header = " ".join(line[2:] for line in text.splitlines() if line.startswith("# "))
    command = f"make {path.stem[:5] if path.stem.startswith('table') else 'figure'}-{path.parent.name}-"
    number = re.sub(r"^(table_?|figure)", "", path.stem)
    assert f"Command: {command}{number}" in header
    entry = yaml.safe_load(text)
    if path.stem.startswith("table"):
        assert entry["published"] == f"{path.stem}.csv"
    else:
        assert all(len(set(s["columns"])) == len(s["columns"]) > 0 for s in entry["series"])


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_headline_numbers_of_the_header_are_printed(path: Path) -> None:
    """Every number with two decimals that a header expects stands in the table's CSV."""
    header = " ".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    expected = re.search(r"(?:Expected|Headline printed): (.*?)(?:GPU time|Time):", header)
    assert expected, "the header must say what to expect, then the time"
    published = path.parent / "published" / f"{path.stem}.csv"
    if published.exists():
        printed = {c.value_text for c in load_published(published)}
        assert set(re.findall(r"(?<![\d.])\d+\.\d\d(?!\d)", expected[1])) - printed <= set()
