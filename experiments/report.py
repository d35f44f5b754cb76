"""From records to tables: a pure reading of what runs left, without torch."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.cells import Cell, RunSummary, SeedResult, TableResult, default_tolerance, paired_tests
from experiments.errors import unknown
from experiments.page import render_overview_csv, render_overview_markdown, render_page
from experiments.render import to_csv, to_latex, to_markdown
from experiments.runs import Run, in_order
from experiments.spec import CellSpec, Registry, TableSpec
from experiments.store import Record, Store, write_atomically


class Reporter:
    """Reads each record once, and renders tables and the overview."""

    def __init__(self, store: Store):
        """Take the store whose records are read."""
        self._store = store
        self._records: dict[tuple[str, str], Record | None] = {}

    def record(self, run: Run) -> Record | None:
        """Return the run's record, or None."""
        key = run.paper, run.name  # two papers may name the same run, each with a folder of its own
        if key not in self._records:
            self._records[key] = self._store.record(run)
        return self._records[key]

    def table(self, spec: TableSpec) -> TableResult:
        """Return the table's result, filled as far as records go."""
        cells = [self._cell(spec, cell) for cell in spec.cells]
        return TableResult(
            paper=spec.paper,
            table=spec.name,
            kind=spec.kind,
            title=spec.entry.title,
            profile=spec.profile,
            selection=spec.entry.selection,
            command=_command(spec),
            cells=tuple(cells),
            row_order=tuple(dict.fromkeys((c.group, c.row) for c in cells)),
            column_order=tuple(dict.fromkeys(c.column for c in cells)),
            notes=spec.notes,
            provenance=tuple(self._summaries(in_order(spec.runs))),
            paired_tests=paired_tests(cells, spec.entry.compare),
        )

    def _cell(self, spec: TableSpec, cell: CellSpec) -> Cell:
        results = []
        for run in cell.runs:
            record = self.record(run)
            if record is not None and (spec.profile == "paper" or cell.metric in record["metrics"]):
                value = _metric(record, cell.metric) * _scale(cell.published.unit)
                results.append(SeedResult(run.seed, value, run.name, not self._store.fresh(run, record)))
        missing: str | None = None
        if cell.missing and not cell.runs:
            missing = cell.missing
        elif cell.runs and not results and all(map(self.record, cell.runs)):
            missing = f"the generated data have no {cell.metric}"
        elif cell.runs and not results:
            missing = f"not run yet: {_command(spec)}"
            if cell.requires:
                missing += f", which needs {' and '.join(cell.requires)} under DATA_ROOT"
        printed = cell.published
        tolerance = spec.entry.tolerance
        return Cell(
            paper=printed.paper,
            table=printed.table,
            group=printed.group,
            row=printed.row,
            column=printed.column,
            unit=printed.unit,
            source=printed.source,
            published=printed if cell.printed else None,
            results=tuple(results),
            deviations=cell.deviations,
            missing=missing,
            tolerance=default_tolerance(printed.unit) if tolerance is None else tolerance,
        )

    def _summaries(self, runs: Iterable[Run]) -> Iterable[RunSummary]:
        for run in runs:
            record = self.record(run)
            if record is not None:
                hardware, data = record["hardware"], record["data"]
                yield RunSummary(
                    run=run.name,
                    seed=run.seed,
                    stage=run.stage_name,
                    commit=record["commit"],
                    hardware=str(hardware["gpu"] or hardware["cpu"]),
                    data=f"{data['dataset']}, {'official' if data['official'] else 'not the official'} files",
                    duration_s=record["duration_s"],
                    peak_memory_mb=record["peak_memory_mb"],
                    stale=not self._store.fresh(run, record),
                )


def _command(spec: TableSpec) -> str:
    profile = "" if spec.profile == "paper" else f" PROFILE={spec.profile}"
    return f"make {spec.kind}-{spec.paper}-{spec.name}{profile}"


def _metric(record: Record, name: str) -> float:
    if name not in record["metrics"]:
        raise unknown(f"metric in the record of run {record['run']}:", name, record["metrics"])
    return float(record["metrics"][name])


def _scale(unit: str) -> float:
    """Return the factor from the fraction that records hold to the printed unit."""
    return 100.0 if unit.startswith("percent") else 1.0


def write_table(spec: TableSpec, store: Store, reporter: Reporter | None = None) -> TableResult:
    """Write `results/[demo/]<paper>/<table>.{csv,md,tex}` from records and return the table."""
    result = (reporter or Reporter(store)).table(spec)
    for suffix, render in (("csv", to_csv), ("md", to_markdown), ("tex", to_latex)):
        write_atomically(store.results_dir / f"{result.stem}.{suffix}", render(result))
    return result


def write_all(registry: Registry, store: Store, profile: str = "paper") -> list[TableResult]:
    """Regenerate every table, figure and the overview from records."""
    reporter = Reporter(store)
    tables = [(p, k, n) for p in registry.papers for k, n in registry.tables(p)]
    results = [write_table(registry.load(p, k, n, profile), store, reporter) for p, k, n in tables]
    folder = store.results_dir if profile == "paper" else store.results_dir / profile
    write_atomically(folder / "index.html", render_page(results))
    write_atomically(folder / "overview.csv", render_overview_csv(results))
    write_atomically(folder / "overview.md", render_overview_markdown(results))
    return results
