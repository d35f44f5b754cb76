"""The command line: `python -m experiments table <paper> <number>` and its relatives."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.cells import TableResult
from experiments.claims import add_claims_command, claims
from experiments.config import Config, parse_assignments
from experiments.errors import ExperimentError
from experiments.launch import launch
from experiments.machine import Machine
from experiments.predict import add_commands, figure_graphs, predict
from experiments.report import write_all, write_table
from experiments.runs import in_order, load
from experiments.spec import PROFILES, Registry, TableSpec
from experiments.store import Store, read_record

# One table per paper whose model is built, and the columns of it that `make demo` shows.
HEADLINES = (
    ("vrd_tensor", "1", ("relationship_k1/R@50", "relationship_k10/R@50")),
    ("reldn", "8", ("relationship_k1/R@50", "relationship_k10/R@50")),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("table", "train what is missing of one table and write it"),
        ("figure", "train what is missing of one figure and write it"),
        ("plan", "list the runs of one table, what is done, and the expected hours"),
    ):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("paper")
        sub.add_argument("number", help="a number, or `ablation`")
        sub.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides; shown as deviations")
        sub.add_argument("--seeds", nargs="*", type=int, default=None, help="instead of the table's seeds")
        sub.add_argument("--profile", choices=PROFILES, default="paper")
        if name == "plan":
            sub.add_argument("--kind", choices=("table", "figure"), default="table")
        else:
            sub.add_argument("--workers", type=int, default=1, help="local processes (default: this one)")
    commands.add_parser("tables", help="regenerate all tables, figures and the page from the committed records")
    commands.add_parser("status", help="say for each table how many of its runs are done, incomplete or absent")
    commands.add_parser("demo", help="one headline table per paper on generated data, one seed, in this process")
    add_claims_command(commands)
    add_commands(commands)
    run = commands.add_parser("run", help="execute one run from its run.json (what worker processes do)")
    run.add_argument("path", type=Path)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 after one clear error on stderr."""
    arguments = _parser().parse_args(argv)
    machine = Machine.from_environment()
    try:
        match arguments.command:
            case "table" | "figure":
                _table(arguments, machine)
            case "plan":
                _plan(_load(arguments, arguments.kind), machine.store)
            case "tables":
                _tables(machine.store)
            case "status":
                _status(machine.store)
            case "demo":
                _demo(machine)
            case "claims":
                claims(arguments, machine)
            case "predict":
                predict(arguments, machine)
            case "figure-graphs":
                figure_graphs(arguments, machine)
            case "run":
                _run(arguments.path, machine)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        sys.stderr.close()
    except (ExperimentError, ValueError, OSError) as error:  # data modules raise ValueErrors that name file and remedy
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _load(arguments: argparse.Namespace, kind: str) -> TableSpec:
    override = parse_assignments(arguments.set)
    return Registry().load(arguments.paper, kind, arguments.number, arguments.profile, override, arguments.seeds)


def _table(arguments: argparse.Namespace, machine: Machine) -> None:
    _make(_load(arguments, arguments.command), machine, arguments.workers)


def _make(spec: TableSpec, machine: Machine, workers: int) -> TableResult:
    """Execute a table's missing runs and write it; it is written even if runs fail, with what there is."""
    left_out = Counter(
        (cell.published.row, need) for cell in spec.cells for need in cell.requires if not machine.has(need)
    )
    for (row, need), cells in left_out.items():
        print(f"left out: {cells} cells of {row}, which need {need} under DATA_ROOT", flush=True)
    try:
        launch(spec.runnable(machine.has), machine, workers)
    finally:
        if spec.profile == "paper" and not spec.overridden:
            _publish(spec, machine.store)
        result = write_table(spec, machine.store)
        path = machine.results_dir / f"{result.stem}.md"
        print(f"{result.full_title}\nwritten: {path} (and .csv, .tex)", flush=True)
    return result


def _publish(spec: TableSpec, store: Store) -> None:
    """Copy the records that a table reads to where they are committed, so that the table can be made from those."""
    for run in in_order(spec.runs):
        store.publish(run)


def _plan(spec: TableSpec, store: Store) -> None:
    runs = in_order(spec.runs)
    hours = _median_hours(store, spec.paper)
    if not runs:
        print(f"{spec.paper} {spec.stem}: no cell has a run yet")
    for run in runs:
        kind = _kind(run.stage_name, run.config)
        cost = f"{hours[kind]:.3f} h" if kind in hours else "unknown, none was measured yet"
        print(f"{run.name}  {store.state(run):<10}  {run.stage_name:<20} seed {run.seed}  expected {cost}")
    todo = list({r.name: r for run in runs for r in store.missing(run)}.values())
    kinds = [_kind(run.stage_name, run.config) for run in todo]
    known = [hours[kind] for kind in kinds if kind in hours]
    print(f"{len(runs)} runs, {len(todo)} to do, {sum(known):.3f} h expected for {len(known)} of those")
    missing = Counter((c.published.group, c.published.row, c.missing) for c in spec.cells if c.missing)
    for (group, row, reason), cells in missing.items():
        print(f"no run for {cells} cells of {group} / {row}: {reason}")


def _kind(stage: str, config: Config) -> tuple[str, str, bool]:
    """Return what decides how long a run takes, roughly: its stage, its data set, and whether it sees pixels."""
    return stage, config["data"]["dataset"], bool(config.get("model", {}).get("visual"))


def _median_hours(store: Store, paper: str) -> dict[tuple[str, str, bool], float]:
    """Return the median duration of each kind of run in the committed records, in hours."""
    seconds: dict[tuple[str, str, bool], list[float]] = {}
    for path in sorted((store.results_dir / "records" / paper).glob("*.json")):
        record = read_record(path)
        seconds.setdefault(_kind(record["stage"], record["config"]), []).append(record["duration_s"])
    return {kind: statistics.median(values) / 3600 for kind, values in seconds.items()}


def _tables(store: Store) -> None:
    registry = Registry()
    for paper in registry.papers:
        for kind, name in registry.tables(paper):
            _publish(registry.load(paper, kind, name), store)
    results = write_all(registry, store)
    cells = [cell for result in results for cell in result.cells]
    measured = sum(cell.n > 0 for cell in cells)
    print(f"{len(results)} tables and figures, {len(cells)} cells, {measured} measured")
    print(f"written: {store.results_dir / 'index.html'}, {store.results_dir / 'overview.md'}")


def _status(store: Store) -> None:
    registry = Registry()
    for paper in registry.papers:
        for kind, name in registry.tables(paper):
            spec = registry.load(paper, kind, name)
            states = [store.state(run) for run in in_order(spec.runs)]
            counts = ", ".join(
                f"{states.count(s)} {s}" for s in ("done", "stale", "incomplete", "absent") if s in states
            )
            print(f"{kind}-{paper}-{name:<10} {counts or 'no runs yet'}")


def _demo(machine: Machine) -> None:
    made = []
    for paper, number, columns in HEADLINES:
        spec = Registry().load(paper, "table", number, "demo")
        made.append((_make(spec, machine, workers=1), columns))
    for table, columns in made:
        _show(table, columns)


def _show(table: TableResult, columns: Sequence[str]) -> None:
    """Print the measured rows of a table under some of its columns."""
    view = Table(title=f"{table.paper}, Table {table.table}: {table.full_title}", title_justify="left")
    view.add_column("percent", no_wrap=True)
    for column in columns:
        view.add_column(column, justify="right", overflow="fold")
    by_row: dict[str, dict[str, str]] = {}
    for cell in table.ordered_cells:
        if cell.mean is not None:
            by_row.setdefault(cell.row, {})[cell.column] = f"{cell.mean:.2f}"
    for row, values in by_row.items():
        view.add_row(row, *(values.get(column, "") for column in columns))
    Console().print(view)


def _run(path: Path, machine: Machine) -> None:
    run = load(path)
    from experiments.run import execute  # imports torch, which no other command here needs

    execute(run, machine)


if __name__ == "__main__":
    sys.exit(main())
