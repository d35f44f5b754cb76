"""Contracts that every table and figure of the real registry keeps, new ones unasked."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from experiments.__main__ import HEADLINES
from experiments.config import flatten
from experiments.methods import STAGES
from experiments.published import load_published
from experiments.runs import in_order
from experiments.schema import HASHLESS, SCHEMAS
from experiments.spec import PROFILES, ROOT, TableSpec
from tests.experiments.workspace import REGISTRY, TABLES, load, with_runs

PAPERS = {
    "affinity": ([*"12345678", "ablation"], [*"456"]),
    "lml": ([*"12"], [*"3456"]),
    "reldn": ([*"123456789"], []),
    "segnet": ([*"12", "ablation"], [*"26"]),
    "vrd_tensor": ([*"1234"], []),
}

every_table = pytest.mark.parametrize("table", TABLES, ids="-".join)


def test_all_tables_texts_and_figures_of_the_papers_are_there() -> None:
    expected = {(p, "table", n) for p, (tables, _) in PAPERS.items() for n in tables}
    expected |= {(p, "figure", n) for p, (_, figures) in PAPERS.items() for n in figures}
    assert sum(kind == "table" for _, kind, _ in expected) == 25 + 2
    assert {t for t in TABLES if t[0] in PAPERS} >= expected


@every_table
def test_every_printed_cell_has_exactly_one_cell(table: tuple[str, str, str]) -> None:
    spec = load(*table)
    keys = Counter(c.published.key for c in spec.cells)
    assert keys and max(keys.values()) == 1
    assert all((c.published.paper, c.published.table) == (spec.paper, spec.name) for c in spec.cells)
    printed = [c.published for c in spec.cells if c.printed]
    if spec.kind == "table":
        assert spec.entry.published == f"{spec.stem}.csv"
        assert printed == load_published(ROOT / spec.paper / "published" / spec.entry.published)
    else:
        assert not printed and spec.entry.published is None


def test_every_printed_file_belongs_to_a_table() -> None:
    files = {path for paper in REGISTRY.papers for path in (ROOT / paper / "published").glob("*")}
    read = {ROOT / p / "published" / str(load(p, k, n).entry.published) for p, k, n in TABLES if k == "table"}
    assert files == read


@pytest.mark.parametrize("profile", PROFILES)
@every_table
def test_every_cell_that_can_be_trained_has_runs_or_a_reason(table: tuple[str, str, str], profile: str) -> None:
    for cell in load(*table, profile).cells:
        if cell.published.source == "quoted" and not cell.runs:
            assert not cell.missing
        else:
            assert bool(cell.runs) != bool(cell.missing.strip()), cell.published.key
        if cell.runs:
            assert cell.metric and len({run.seed for run in cell.runs}) == len(cell.runs)


@every_table
def test_the_file_says_what_it_is(table: tuple[str, str, str]) -> None:
    paper, kind, name = table
    spec = load(*table)
    text = (ROOT / paper / f"{spec.stem}.yaml").read_text()
    header = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    assert f"make {kind}-{paper}-{name}" in header, "the header names the exact command"
    assert spec.entry.title and spec.entry.selection


@pytest.mark.parametrize("profile", PROFILES)
def test_tables_have_the_same_cells_in_every_profile(profile: str) -> None:
    for table in TABLES:
        assert [(c.published, bool(c.runs), c.missing) for c in load(*table, profile).cells] == [
            (c.published, bool(c.runs), c.missing) for c in load(*table).cells
        ]


def test_seeds_of_the_paper_profile_and_of_the_others() -> None:
    for spec in with_runs("paper"):
        default = set(spec.entry.seeds)
        assert {frozenset(r.seed for r in c.runs) for c in spec.cells if c.runs} <= {frozenset(default), frozenset({0})}
        for profile in ("demo", "smoke"):
            assert {len(c.runs) for c in load(spec.paper, spec.kind, spec.name, profile).cells} <= {0, 1}


@pytest.mark.parametrize("profile", ["demo", "smoke"])
def test_generated_worlds_stand_in_for_all_data_and_nothing_but_size_changes(profile: str) -> None:
    """`demo` and `smoke` may replace data, widths, image size and schedule, never heads, losses, sampling, protocol."""
    allowed = re.compile(
        r"data\.world\..*|trainer\..*|backbone\..*|detector\..*|(model|selector)\.(.*_dim|mask_size|mask_channels)|selector\.max_epochs"
    )
    for spec in with_runs(profile):
        assert all(run.config["data"]["world"]["seed"] >= 0 for run in in_order(spec.runs))
        usual = load(spec.paper, spec.kind, spec.name)
        for cell, paper in zip(spec.cells, usual.cells, strict=True):
            more = {d.key for d in cell.deviations} - {d.key for d in paper.deviations}
            assert all(allowed.fullmatch(key) for key in more), more


def test_deviations_of_the_paper_profile_are_those_of_its_substitutes() -> None:
    for spec in with_runs("paper"):
        substituted = {row.row for row in spec.entry.rows if row.substitute}
        for cell in spec.cells:
            assert bool(cell.deviations) == (bool(cell.runs) and cell.published.row in substituted), cell.published.key
            read = {key for run in in_order(cell.runs) for key, _ in flatten(run.config)} | {"method"}
            assert {d.key for d in cell.deviations} <= read - HASHLESS


def test_names_of_runs_are_unique_and_the_same_in_every_process() -> None:
    for profile in PROFILES:
        for spec in with_runs(profile):
            runs = in_order(spec.runs)
            assert len({r.name for r in runs}) == len(runs)
            again = REGISTRY.load(spec.paper, spec.kind, spec.name, profile)
            assert [r.name for r in in_order(again.runs)] == [r.name for r in runs]


def test_headlines_can_be_shown() -> None:
    assert sorted(paper for paper, _, _ in HEADLINES) == sorted({spec.paper for spec in with_runs("demo")})
    for paper, name, columns in HEADLINES:
        measured = {cell.published.column for cell in load(paper, "table", name, "demo").cells if cell.runs}
        assert set(columns) <= measured


def test_every_stage_names_a_builder_and_sections_that_exist() -> None:
    known = {f"{section}.{key}" for s in SCHEMAS.values() for section, key in _keys(s)}
    for name, stage in STAGES.items():
        module, _, function = stage.builder.partition(":")
        path = ROOT.parent / f"{module.replace('.', '/')}.py"
        assert f"def {function}(run: Run, context: Context)" in path.read_text(), name
        assert stage.ignored <= known, f"{name} ignores keys that do not exist"
        assert "trainer" in stage.sections and stage.version >= 1
        assert {key.split(".")[0] for key in stage.ignored} <= set(stage.sections)


def _keys(schema: type) -> list[tuple[str, str]]:
    from experiments.config import Validator

    leaves = (key.partition(".") for key, _ in flatten(Validator(schema, "").defaults()))
    return [(section, rest) for section, _, rest in leaves]


def test_notes_explain_every_substitute() -> None:
    def said(spec: TableSpec) -> str:
        return " ".join(spec.notes)

    for spec in with_runs("paper"):
        for row in spec.entry.rows:
            if row.substitute:
                assert row.substitute.reason.strip() and row.substitute.reason.strip() in said(spec)
            assert row.note in said(spec)
