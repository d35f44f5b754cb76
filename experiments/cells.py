"""What a rendered table is made of: cells with printed and measured values, verdicts and paired tests."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from experiments.errors import ExperimentError
from experiments.published import PublishedCell

VERDICTS = ("reproduced", "differs", "not-comparable", "quoted", "missing")

_FRACTION_UNITS = frozenset({"fraction", "score_0_1"})
_ROUNDING = 1e-9  # printed decimals are not exact in binary: |24.1 - 24.6| must still count as 0.5


def default_tolerance(unit: str) -> float:
    """Return the difference that still counts as reproduced: 0.005 for values in [0, 1], else 0.5 points."""
    return 0.005 if unit in _FRACTION_UNITS else 0.5


@dataclass(frozen=True)
class SeedResult:
    """One run's value of one cell, in the published unit; `run` is the run's hash.

    A stale run was made by an older version of its method.

    Raises:
        ExperimentError: The value is not finite; a diverged run is no result, its cell is missing with that reason.
    """

    seed: int
    value: float
    run: str
    stale: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ExperimentError(
                f"run {self.run}, seed {self.seed}: the value is {self.value}, which no table can show"
            )


@dataclass(frozen=True)
class Deviation:
    """One config key whose value in the run differs from the `paper` profile's."""

    key: str
    paper: object
    ours: object

    def __str__(self) -> str:
        return f"{self.key}={format_value(self.ours)} (paper: {format_value(self.paper)})"


@dataclass(frozen=True)
class Cell:
    """One row x one column: what the paper prints and what our runs gave, both in `unit`.

    `missing` is the reason why there are no results. `published` is None for rows that the paper doesn't print;
    a published cell whose value is None is a printed dash.

    Raises:
        ExperimentError: Two results share a seed, or there are neither results nor a reason for their absence.
    """

    paper: str
    table: str
    group: str
    row: str
    column: str
    unit: str
    source: str
    published: PublishedCell | None = None
    results: tuple[SeedResult, ...] = ()
    deviations: tuple[Deviation, ...] = ()
    missing: str | None = None
    tolerance: float = 0.5

    def __post_init__(self) -> None:
        seeds = [r.seed for r in self.results]
        if len(set(seeds)) < len(seeds):
            raise ExperimentError(f"{self.label}: several results for one seed, of seeds {seeds}")
        if not self.results and not self.missing and self.source != "quoted":
            raise ExperimentError(f"{self.label}: neither a result nor a reason why it is missing")

    @property
    def key(self) -> tuple[str, str, str]:
        """Return (group, row, column), unique within a table."""
        return self.group, self.row, self.column

    @property
    def label(self) -> str:
        """Return the cell's full name, for messages."""
        return f"{self.paper} table {self.table}, {self.group!r}, {self.row!r}, {self.column!r}"

    @property
    def printed(self) -> float | None:
        """Return the printed value, None for a dash or a cell that the paper doesn't have."""
        return self.published.value if self.published else None

    @property
    def n(self) -> int:
        """Return the number of runs."""
        return len(self.results)

    @property
    def mean(self) -> float | None:
        """Return the mean over seeds, None without results."""
        return math.fsum(r.value for r in self.results) / self.n if self.results else None

    @property
    def std(self) -> float | None:
        """Return the sample standard deviation (ddof = 1), None with fewer than two runs."""
        return statistics.stdev(r.value for r in self.results) if self.n > 1 else None

    @property
    def difference(self) -> float | None:
        """Return ours - paper, None where either is absent."""
        return None if self.mean is None or self.printed is None else self.mean - self.printed

    @property
    def stale(self) -> bool:
        """Return whether any of the runs was made by an older version of its method."""
        return any(r.stale for r in self.results)

    @property
    def verdict(self) -> str:
        """Return one of `VERDICTS`.

        The difference may be as large as the largest of: two standard errors of our mean (0 with one run), the printed
        standard deviation, the tolerance.
        """
        if self.source == "quoted":
            return "quoted"
        if self.mean is None:
            return "missing"
        if self.deviations or self.difference is None:
            return "not-comparable"
        assert self.published is not None
        standard_error = 0.0 if self.std is None else self.std / math.sqrt(self.n)
        allowed = max(2 * standard_error, self.published.std or 0.0, self.tolerance)
        return "reproduced" if abs(self.difference) <= allowed + _ROUNDING else "differs"


@dataclass(frozen=True)
class PairedDifference:
    """Second minus first over `n` shared seeds; `p` is None where all differences are equal and t is undefined."""

    mean: float
    n: int
    p: float | None


@dataclass(frozen=True)
class PairedTest:
    """The paired t-test of two rows in one column."""

    group: str
    column: str
    first: str
    second: str
    difference: PairedDifference


def paired_test(first: Sequence[SeedResult], second: Sequence[SeedResult]) -> PairedDifference | None:
    """Return the two-sided paired t-test of second - first on the seeds they share, None for fewer than two."""
    ours = {r.seed: r.value for r in first}
    pairs = [(ours[r.seed], r.value) for r in sorted(second, key=lambda r: r.seed) if r.seed in ours]
    if len(pairs) < 2:
        return None
    differences = [b - a for a, b in pairs]
    mean = math.fsum(differences) / len(differences)
    scale = max(1.0, *(abs(value) for pair in pairs for value in pair))
    if statistics.stdev(differences) <= 1e-12 * scale:  # equal but for rounding: t would be a ratio of rounding errors
        return PairedDifference(mean, len(pairs), None)
    from scipy.stats import ttest_rel  # slow to import, and only tables with several seeds need it

    result = ttest_rel([b for _, b in pairs], [a for a, _ in pairs])
    return PairedDifference(mean, len(pairs), float(result.pvalue))


def paired_tests(cells: Iterable[Cell], pairs: Iterable[Sequence[str]]) -> tuple[PairedTest, ...]:
    """Return the tests of the (first row, second row) pairs, in every group and column where they share two seeds."""
    by_key = {cell.key: cell for cell in cells}
    tests: list[PairedTest] = []
    for first, second in pairs:
        for (group, row, column), cell in by_key.items():
            other = by_key.get((group, second, column)) if row == first else None
            difference = paired_test(cell.results, other.results) if other else None
            if difference:
                tests.append(PairedTest(group, column, first, second, difference))
    return tuple(tests)


@dataclass(frozen=True)
class RunSummary:
    """What a table says of one run: its record's identity, machine, cost and data. Duration in s, memory in MB."""

    run: str
    seed: int
    stage: str
    commit: str
    hardware: str
    data: str = ""
    duration_s: float | None = None
    peak_memory_mb: float | None = None
    stale: bool = False


@dataclass(frozen=True)
class TableResult:
    """A table or figure, ready to render.

    `kind` is "table" or "figure"; `table` its number or "ablation"; `row_order` lists (group, row) pairs.

    Raises:
        ExperimentError: Two cells share a key, or a cell's row or column is not in the orders.
    """

    paper: str
    table: str
    kind: str
    title: str
    profile: str
    selection: str
    command: str
    cells: tuple[Cell, ...]
    row_order: tuple[tuple[str, str], ...]
    column_order: tuple[str, ...]
    notes: tuple[str, ...] = ()
    provenance: tuple[RunSummary, ...] = ()
    paired_tests: tuple[PairedTest, ...] = ()

    def __post_init__(self) -> None:
        seen: set[tuple[str, str, str]] = set()
        rows, columns = set(self.row_order), set(self.column_order)
        for cell in self.cells:
            if cell.key in seen:
                raise ExperimentError(f"{cell.label}: the cell occurs twice")
            seen.add(cell.key)
            if (cell.group, cell.row) not in rows or cell.column not in columns:
                raise ExperimentError(f"{cell.label}: row or column is not in the table's row and column orders")

    @property
    def generated(self) -> bool:
        """Return whether the numbers come from generated data, of which there is no verdict."""
        return self.profile != "paper"

    @property
    def full_title(self) -> str:
        """Return the title; it says so where the data are generated."""
        marked = self.generated and "generated data" not in self.title
        return f"{self.title} (generated data)" if marked else self.title

    @property
    def short_name(self) -> str:
        """Return e.g. Table 4, Figure 5, or Text for the numbers of the running text."""
        return "Text" if self.table == "ablation" else f"{self.kind.capitalize()} {self.table}"

    @property
    def name(self) -> str:
        """Return the file name without suffix: table<N>, table_ablation or figure<N>."""
        return f"{self.kind}_{self.table}" if self.table == "ablation" else f"{self.kind}{self.table}"

    @property
    def stem(self) -> str:
        """Return the path under `results/` without suffix; other profiles than `paper` have their own folder."""
        return f"{self.profile}/{self.paper}/{self.name}" if self.generated else f"{self.paper}/{self.name}"

    @property
    def anchor(self) -> str:
        """Return the HTML id, e.g. reldn-8, lml-figure-4 or demo-reldn-8."""
        kind = f"{self.kind}-" if self.kind != "table" else ""
        return f"{self.profile + '-' if self.generated else ''}{self.paper}-{kind}{self.table}"

    @property
    def ordered_cells(self) -> list[Cell]:
        """Return the cells by row, then column."""
        rows = {key: i for i, key in enumerate(self.row_order)}
        columns = {key: i for i, key in enumerate(self.column_order)}
        return sorted(self.cells, key=lambda c: (rows[c.group, c.row], columns[c.column]))

    def verdict(self, cell: Cell) -> str:
        """Return the cell's verdict, empty for generated data."""
        return "" if self.generated else cell.verdict


def format_value(value: object) -> str:
    """Return a config value as a YAML reader would write it: bare words, true/false/none, lists in brackets."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    return json.dumps(value, default=str, ensure_ascii=False)
