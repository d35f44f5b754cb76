from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest

from experiments.errors import ExperimentError
from experiments.methods import STAGES
from experiments.report import Reporter, write_all, write_table
from experiments.runs import Run, in_order
from experiments.spec import TableSpec
from experiments.store import RECORD, write_atomically
from tests.experiments.workspace import REGISTRY, TABLES, Workspace, load, record_of


@pytest.fixture
def spec() -> TableSpec:
    return load("reldn", "table", "8")


def done(space: Workspace, spec: TableSpec, value: float = 0.2, **changes: Any) -> None:
    """Leave the records of all runs of a table; the metric grows with the seed by 0.01."""
    metrics = {cell.metric for cell in spec.cells if cell.runs}
    for run in in_order(spec.runs):
        record = record_of(run, metrics=dict.fromkeys(metrics, value + 0.01 * run.seed), **changes)
        space.store.write_record(run, record)


def lines(space: Workspace, spec: TableSpec) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(space.table_csv(spec).decode())))


def test_records_hold_fractions_and_tables_the_printed_unit(workspace: Workspace, spec: TableSpec) -> None:
    done(workspace, spec)
    table = write_table(spec, workspace.store)
    filled = [cell for cell in table.cells if cell.results]
    assert {cell.unit for cell in filled} == {"percent"}
    for cell in filled:
        expected = [20.0, 21.0, 22.0][: cell.n]
        assert [r.value for r in cell.results] == pytest.approx(expected)
        assert [r.seed for r in cell.results] == list(range(cell.n))
    by_row = {line["row"]: line for line in lines(workspace, spec)}
    assert float(by_row["RelDN (ImageNet)"]["ours_mean"]) == pytest.approx(21.0)
    assert float(by_row["RelDN (ImageNet)"]["ours_std"]) == pytest.approx(1.0)
    assert by_row["RelDN (ImageNet)"]["n"] == "3"


def test_every_cell_says_what_it_is(workspace: Workspace, spec: TableSpec) -> None:
    done(workspace, spec)
    write_table(spec, workspace.store)
    for line, cell in zip(lines(workspace, spec), spec.cells, strict=True):
        if cell.runs:
            assert line["verdict"] == "not-comparable" and line["runs"].split() == [r.name for r in cell.runs]
            assert all(d.key in line["deviations"] for d in cell.deviations)
        elif cell.published.source == "quoted":
            assert (line["verdict"], line["ours_mean"], line["deviations"]) == ("quoted", "", "")
        else:
            assert (line["verdict"], line["ours_mean"]) == ("missing", "") and line["deviations"] == cell.missing


def test_a_cell_without_a_record_says_which_command_makes_it(workspace: Workspace, spec: TableSpec) -> None:
    table = Reporter(workspace.store).table(spec)
    assert {c.missing for c, s in zip(table.cells, spec.cells, strict=True) if s.runs} == {
        "not run yet: make table-reldn-8"
    }
    smoke = Reporter(workspace.store).table(load("reldn", "table", "8", "smoke"))
    assert smoke.command == "make table-reldn-8 PROFILE=smoke"
    assert Reporter(workspace.store).table(load("lml", "figure", "3")).command == "make figure-lml-3"


def test_a_cell_with_some_of_its_seeds_shows_how_many(workspace: Workspace, spec: TableSpec) -> None:
    run = next(run for run in spec.runs if run.seed == 1)
    metrics = {cell.metric: 0.5 for cell in spec.cells if cell.runs}
    workspace.store.write_record(run, record_of(run, metrics=metrics))
    table = Reporter(workspace.store).table(spec)
    assert {(c.n, c.mean) for c in table.cells if c.results} == {(1, 50.0)}


def test_records_are_read_from_the_committed_ones_alone(workspace: Workspace, spec: TableSpec) -> None:
    done(workspace, spec)
    first = write_table(spec, workspace.store)
    csv_bytes = workspace.table_csv(spec)
    for run in in_order(spec.runs):
        workspace.store.publish(run)
        (workspace.store.folder(run) / RECORD).unlink()
    assert write_table(spec, workspace.store) == first
    assert workspace.table_csv(spec) == csv_bytes


def test_stale_results_are_marked(workspace: Workspace, spec: TableSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    done(workspace, spec)
    assert not any(c.stale for c in Reporter(workspace.store).table(spec).cells)
    monkeypatch.setitem(STAGES, "reldn.training", replace(STAGES["reldn.training"], version=2))
    newer = REGISTRY.load("reldn", "table", "8")
    table = Reporter(workspace.store).table(newer)
    trained = {cell.published.key for cell in newer.cells if cell.runs and cell.runs[0].stage_name == "reldn"}
    assert {c.key for c in table.cells if c.stale} == trained
    assert {p.stage for p in table.provenance if p.stale} == {"reldn", "reldn.training"}


def test_a_metric_that_a_record_lacks_is_named(workspace: Workspace, spec: TableSpec) -> None:
    run = spec.runs[0]
    workspace.store.write_record(run, record_of(run, metrics={"some/R@50": 0.1}))
    with pytest.raises(ExperimentError, match=rf"metric in the record of run {run.name}: '.*'; there is: some/R@50"):
        Reporter(workspace.store).table(spec)


def test_a_damaged_record_is_named_when_tables_are_made(workspace: Workspace, spec: TableSpec) -> None:
    write_atomically(workspace.store.published(spec.runs[0]), "{")
    with pytest.raises(ExperimentError, match=rf"records/reldn/{spec.runs[0].name}\.json: not a complete record"):
        write_all(REGISTRY, workspace.store)


def test_the_provenance_lists_every_run_with_what_it_needs(workspace: Workspace, spec: TableSpec) -> None:
    done(workspace, spec, hardware={"cpu": "C", "cores": 2, "gpu": "G"}, data={"dataset": "VRD", "official": False})
    table = Reporter(workspace.store).table(spec)
    assert [p.run for p in table.provenance] == [run.name for run in in_order(spec.runs)]
    assert {(p.hardware, p.data) for p in table.provenance} == {("G", "VRD, not the official files")}


def test_compared_rows_get_a_paired_test(workspace: Workspace, spec: TableSpec) -> None:
    done(workspace, spec)
    table = Reporter(workspace.store).table(spec)
    assert {(t.first, t.second) for t in table.paired_tests} == {tuple(pair) for pair in spec.entry.compare}
    assert all(t.difference.n == 3 for t in table.paired_tests)


def test_equal_runs_of_two_papers_keep_their_own_records(workspace: Workspace) -> None:
    """Same config, same name, but another folder: one being absent must not hide the other."""
    first, second = (Run(paper, "frequency", 0, {"data": {}}, {}) for paper in ("affinity", "reldn"))
    workspace.store.write_record(second, record_of(second))
    reporter = Reporter(workspace.store)
    assert reporter.record(first) is None
    assert (reporter.record(second) or {})["paper"] == "reldn"


def test_each_record_is_read_once(workspace: Workspace, spec: TableSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    done(workspace, spec)
    reads: list[Any] = []
    from experiments import store

    read = store.read_record
    monkeypatch.setattr(store, "read_record", lambda path: reads.append(path) or read(path))
    Reporter(workspace.store).table(spec)
    assert len(reads) == len(in_order(spec.runs))


def test_all_tables_the_page_and_the_overview_are_written(workspace: Workspace, spec: TableSpec) -> None:
    done(workspace, spec)
    results = write_all(REGISTRY, workspace.store)
    assert [(r.paper, r.kind, r.table) for r in results] == TABLES
    folder = workspace.machine.results_dir
    written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    stems = {f"{p}/{load(p, k, n).stem}" for p, k, n in TABLES}
    assert written == {"index.html", "overview.csv", "overview.md"} | {
        f"{stem}.{suffix}" for stem in stems for suffix in ("csv", "md", "tex")
    }
    overview = list(csv.DictReader((folder / "overview.csv").open()))
    (line,) = [x for x in overview if (x["paper"], x["table"]) == ("reldn", "table8")]
    assert int(line["cells"]) == len(spec.cells)
    assert int(line["measured"]) == sum(bool(cell.runs) for cell in spec.cells)
    assert sum(int(x["cells"]) for x in overview) == sum(len(load(*t).cells) for t in TABLES)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    write_all(REGISTRY, workspace.store)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_records_with_other_keys_too_are_read(workspace: Workspace, spec: TableSpec) -> None:
    """A newer suite may add keys."""
    run = spec.runs[0]
    path = workspace.store.folder(run) / RECORD
    write_atomically(path, json.dumps(record_of(run) | {"energy_wh": 1}))
    assert (workspace.store.record(run) or {})["energy_wh"] == 1
