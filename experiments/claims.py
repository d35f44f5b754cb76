"""The papers' claims, tested in generated worlds: pairs of runs that differ in what is claimed, and a paired test.

`experiments/<paper>/claims.yaml` lists them. A seed stands for a world, too: seed s trains with seed s in world s, so
that a claim is tested on worlds of a kind and not on one of them; both runs of a pair share their world.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from experiments.cells import PairedDifference, SeedResult, paired_test
from experiments.config import Config, Validator, differences, merge, nested, read_yaml
from experiments.errors import ExperimentError, unknown
from experiments.launch import launch
from experiments.layout import number, p_text
from experiments.machine import Machine
from experiments.methods import methods_of
from experiments.runs import Run, RunFactory
from experiments.schema import HASHLESS, SCHEMAS
from experiments.spec import ROOT
from experiments.store import Store, write_atomically

Verdict = Literal["holds", "fails", "undecided", "not run yet"]

SEEDS = (0, 1, 2, 3, 4)
LEVEL = 0.05  # of the two-sided test
DIRECTIONS = {"higher": 1.0, "lower": -1.0}
HEADINGS = ("claim", "baseline", "treatment", "difference", "p", "seeds", "verdict")
COLUMNS = (
    *("paper", "claim", "metric", "direction", "baseline", "treatment", "baseline_mean", "treatment_mean"),
    *("difference", "p", "n", "verdict", "baseline_runs", "treatment_runs"),
)


@dataclass
class Side:
    """One side of a comparison: its name, and what it changes of the config that both share."""

    label: str
    set: dict[str, Any] = field(default_factory=dict)


@dataclass
class ClaimEntry:
    """One claim: what the paper says and where, the two sides, and the record's metric that must differ.

    Of several metrics (fractions) the mean counts. `direction` is where the treatment's lies: higher or lower. `set` is
    what both sides change of the file's settings; `note` says why they are as they are, and what else was tried.
    """

    name: str
    says: str
    where: str
    baseline: Side
    treatment: Side
    metric: list[str]
    direction: str = "higher"
    set: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass
class ClaimsEntry:
    """A `claims.yaml`: what all its claims change of the paper's demo profile, and the claims."""

    claims: list[ClaimEntry]
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A claim with its runs, a pair for each seed, and the settings in which the sides differ."""

    paper: str
    entry: ClaimEntry
    baseline: tuple[Run, ...]
    treatment: tuple[Run, ...]
    changed: tuple[tuple[str, Any, Any], ...]


@dataclass(frozen=True)
class ClaimResult:
    """What a claim's runs say; means in percent over the pairs that are done, None without one.

    `difference` is treatment minus baseline, None with fewer than two pairs.
    """

    claim: Claim
    n: int
    baseline: float | None
    treatment: float | None
    difference: PairedDifference | None

    @property
    def verdict(self) -> Verdict:
        """Return whether the claim holds.

        It holds if the difference is in its direction and significant, and fails if that is so in the other direction.
        Where the difference is the same on all seeds, there is nothing to test: it is as it is, and none at all fails.
        """
        if self.difference is None:
            return "undecided" if self.n else "not run yet"
        if self.difference.p is not None and self.difference.p >= LEVEL:
            return "undecided"
        gain = self.difference.mean * DIRECTIONS[self.claim.entry.direction]
        return "holds" if gain > 1e-9 else "fails"  # a difference of rounding is none


def claiming_papers(root: Path = ROOT) -> list[str]:
    """Return the papers that have a file of claims."""
    return sorted(path.parent.name for path in root.glob("*/claims.yaml"))


def load_claims(paper: str, seeds: Sequence[int] = SEEDS, root: Path = ROOT) -> list[Claim]:
    """Return a paper's claims with their runs.

    Raises:
        ExperimentError: There is no such paper, the seeds don't make pairs, or the file has an unknown key, method or
        direction, or two claims of one name; the message names it.
    """
    if paper not in claiming_papers(root):
        raise unknown("paper with claims:", paper, claiming_papers(root))
    if len(set(seeds)) < max(2, len(seeds)) or min(seeds) < 0:
        raise ExperimentError(f"seeds {list(seeds)}: a paired test takes two or more different seeds from 0 on")
    path = root / paper / "claims.yaml"
    file = _read(path)
    validator = Validator(SCHEMAS[paper], paper)
    base = read_yaml(root / paper / "base.yaml")
    layers = [base["settings"], base["profiles"]["demo"], file.set]
    shared = merge(validator.defaults(), *(validator.check(nested(layer), path.name) for layer in layers))
    factory = RunFactory(paper)

    def config(claim: ClaimEntry, side: Side) -> Config:
        where = f"claim {claim.name!r}"
        made = merge(shared, *(validator.check(nested(layer), where) for layer in (claim.set, side.set)))
        if made["method"] not in (known := methods_of(made)):
            raise unknown(f"method in {where} of {path}:", made["method"], known)
        return made

    def runs(full: Config) -> tuple[Run, ...]:
        worlds = [merge(full, {"data": {"world": {"seed": seed}}}) for seed in seeds]
        return tuple(factory.make(full["method"], world, seed) for world, seed in zip(worlds, seeds, strict=True))

    found: list[Claim] = []
    for entry in file.claims:
        if entry.direction not in DIRECTIONS:
            raise unknown(f"direction in claim {entry.name!r} of {path}:", entry.direction, DIRECTIONS)
        if not entry.metric or entry.name in [known.entry.name for known in found]:
            raise ExperimentError(f"{path}: claim {entry.name!r} names no metric, or another claim has its name")
        first, second = config(entry, entry.baseline), config(entry, entry.treatment)
        changed = tuple(change for change in differences(second, first) if change[0] not in HASHLESS)
        found.append(Claim(paper, entry, runs(first), runs(second), changed))
    return found


def _read(path: Path) -> ClaimsEntry:
    try:
        entry = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ClaimsEntry), read_yaml(path)))
    except OmegaConfBaseException as error:
        raise ExperimentError(f"{path}: {str(error).splitlines()[0]} (at {error.full_key})") from None
    assert isinstance(entry, ClaimsEntry)
    return entry


def judge(claim: Claim, store: Store) -> ClaimResult:
    """Return what the records of a claim's runs say; pairs of which one isn't done or is stale don't count.

    Raises:
        ExperimentError: A record doesn't hold the metric, or it isn't finite.
    """
    sides = [[_result(claim, run, store) for run in runs] for runs in (claim.baseline, claim.treatment)]
    pairs = [(a, b) for a, b in zip(*sides, strict=True) if a and b]
    if not pairs:
        return ClaimResult(claim, 0, None, None, None)
    first, second = zip(*pairs, strict=True)
    means = [math.fsum(r.value for r in side) / len(pairs) for side in (first, second)]
    return ClaimResult(claim, len(pairs), means[0], means[1], paired_test(first, second))


def _result(claim: Claim, run: Run, store: Store) -> SeedResult | None:
    record = store.record(run)
    if record is None or not store.fresh(run, record):
        return None
    metrics = record["metrics"]
    for name in claim.entry.metric:
        if name not in metrics:
            raise unknown(f"metric in claim {claim.entry.name!r} of {claim.paper}:", name, metrics)
    value = 100 * math.fsum(metrics[name] for name in claim.entry.metric) / len(claim.entry.metric)
    return SeedResult(run.seed, value, run.name)


def write_claims(results: Sequence[ClaimResult], store: Store) -> Path:
    """Write `results/demo/claims.md` and `.csv`; return the former."""
    folder = store.results_dir / "demo"
    write_atomically(folder / "claims.csv", to_csv(results))
    write_atomically(folder / "claims.md", to_markdown(results))
    return folder / "claims.md"


def to_csv(results: Iterable[ClaimResult]) -> str:
    """Return one line a claim with the columns `COLUMNS`: percent, undefined numbers empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in results:
        claim, entry, test = result.claim, result.claim.entry, result.difference
        numbers = (result.baseline, result.treatment, test and test.mean, test and test.p)
        writer.writerow(
            [claim.paper, entry.name, " ".join(entry.metric), entry.direction, entry.baseline.label]
            + [entry.treatment.label, *("" if n is None else f"{n:.6g}" for n in numbers), result.n, result.verdict]
            + [" ".join(run.name for run in runs) for runs in (claim.baseline, claim.treatment)]
        )
    return text.getvalue()


def row(result: ClaimResult) -> list[str]:
    """Return a claim's line as people read it: name, both means in percent, difference, p, seeds, verdict."""
    test = result.difference
    difference = number(test.mean if test else None, 2, sign=True)
    means = (number(result.baseline, 2), number(result.treatment, 2))
    p = p_text(test.p if test else None)
    return [result.claim.entry.name, *means, difference, p, str(result.n), result.verdict]


def to_markdown(results: Sequence[ClaimResult]) -> str:
    """Return the table of all claims, and below it what each says and how it was tested."""
    lines = [
        "# The papers' claims in generated worlds (generated data)",
        "",
        "Percent. Each seed has a world of its own, which both sides share; p is of the two-sided paired t-test. A",
        f"claim holds if the difference is in its direction and p < {LEVEL}, fails if it is significant the other way,",
        "and is undecided else. Command: `make claims`",
        "",
        f"| paper | {' | '.join(HEADINGS)} |",
        f"|---|---|{'---:|' * 5}---|",
    ]
    lines += [f"| {result.claim.paper} | {' | '.join(row(result))} |" for result in results]
    for result in results:
        claim, entry = result.claim, result.claim.entry
        changed = ", ".join(f"`{key}` {old} → {new}" for key, old, new in claim.changed)
        lines += ["", f"## {claim.paper}: {entry.name}: {result.verdict}", "", f"> {' '.join(entry.says.split())}"]
        lines += [f"> ({entry.where})", "", f"{entry.treatment.label} against {entry.baseline.label}: {changed}."]
        metric = f"the mean of {', '.join(entry.metric)}" if len(entry.metric) > 1 else entry.metric[0]
        lines += [f"Measured: {metric}; {entry.direction} is claimed."]
        lines += [f"\n{' '.join(entry.note.split())}"] if entry.note else []
    return "\n".join(lines) + "\n"


def add_claims_command(commands: Any) -> None:
    """Add `claims` to the command line's subparsers."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "claims", help="test the papers' claims in generated worlds, over paired seeds"
    )
    parser.add_argument("--paper", default=None, help="run the claims of this paper only")
    parser.add_argument(
        "--seeds", nargs="*", type=int, default=list(SEEDS), help="of runs and worlds (default: 0 to 4)"
    )
    parser.add_argument("--workers", type=int, default=1, help="local processes (default: this one)")


def claims(arguments: argparse.Namespace, machine: Machine, root: Path = ROOT) -> None:
    """Execute the missing runs of the claims, write what they say and print it; it is written even if runs fail."""
    papers = claiming_papers(root)
    planned = {paper: load_claims(paper, arguments.seeds, root) for paper in papers}
    if arguments.paper is not None and arguments.paper not in planned:
        raise unknown("paper with claims:", arguments.paper, papers)
    asked = [claim for paper in papers for claim in planned[paper] if arguments.paper in (None, paper)]
    try:
        pairs = [pair for claim in asked for pair in zip(claim.baseline, claim.treatment, strict=True)]
        launch([run for pair in pairs for run in pair], machine, arguments.workers)
    finally:
        # One file for all papers: those that weren't asked for keep what their records say.
        results = [judge(claim, machine.store) for paper in papers for claim in planned[paper]]
        path = write_claims(results, machine.store)
        _show([result for result in results if result.claim in asked])
        print(f"written: {path} (and .csv)", flush=True)


def _show(results: Sequence[ClaimResult]) -> None:
    view = Table(title="The papers' claims (generated data, percent)", title_justify="left")
    for heading in HEADINGS:
        view.add_column(heading, justify="left" if heading in ("claim", "verdict") else "right", overflow="fold")
    for result in results:
        view.add_row(*row(result))
    Console().print(view)
