from __future__ import annotations

import csv
import io
import math
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments import __main__ as command_line
from experiments import claims as claims_module
from experiments.claims import COLUMNS, SEEDS, Claim, claiming_papers, judge, load_claims, to_csv, to_markdown
from experiments.errors import ExperimentError
from experiments.runs import in_order
from experiments.schema import HASHLESS
from experiments.spec import ROOT
from tests.experiments.workspace import Workspace, leave

BASE: dict[str, Any] = {
    "settings": {"method": "frequency", "data": {"proposals": "lu2016"}, "trainer": {"max_epochs": 8}},
    "profiles": {"demo": {"data": {"world": {"version": 2, "seed": 0, "train_images": 40}}}},
}
CLAIM: dict[str, Any] = {
    "name": "background helps",
    "says": "The background of a pair\n  matters.",
    "where": "Section 3",
    "baseline": {"label": "without", "set": {"frequency.background": False}},
    "treatment": {"label": "with"},
    "metric": ["AP/on", "AP/under"],
}
Load = Callable[..., list[Claim]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """A loader of the claims of the paper `reldn` in a folder of its own."""

    def write_and_load(*changes: dict[str, Any], seeds: tuple[int, ...] = SEEDS, **file: Any) -> list[Claim]:
        folder = tmp_path / "papers" / "reldn"
        folder.mkdir(parents=True, exist_ok=True)
        content = {"claims": [CLAIM | change for change in changes or ({},)]} | file
        (folder / "claims.yaml").write_text(yaml.safe_dump(content))
        (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
        return load_claims("reldn", seeds, tmp_path / "papers")

    return write_and_load


def leave_values(space: Workspace, claim: Claim, first: list[float], second: list[float]) -> None:
    """Leave records whose two metrics have these means."""
    for runs, values in ((claim.baseline, first), (claim.treatment, second)):
        for run, value in zip(runs, values, strict=False):
            leave(space.store, run, metrics={"AP/on": value - 0.1, "AP/under": value + 0.1})


def test_the_runs_of_a_pair_differ_in_the_claim_alone_and_each_seed_has_its_world(load: Load) -> None:
    (claim,) = load()
    assert [run.seed for run in claim.baseline] == [run.seed for run in claim.treatment] == [0, 1, 2, 3, 4]
    for first, second in zip(claim.baseline, claim.treatment, strict=True):
        assert first.config["data"] == second.config["data"]
        assert first.config["data"]["world"]["seed"] == first.seed
        assert first.config["data"]["world"]["train_images"] == 40, "the demo profile's"
        assert first.config["data"]["proposals"] == "lu2016", "the paper's"
        assert (first.config["frequency"]["background"], second.config["frequency"]["background"]) == (False, True)
    assert claim.changed == (("frequency.background", False, True),)


def test_layers_win_from_the_file_over_the_claim_to_the_side(load: Load) -> None:
    side = {"label": "x", "set": {"data.world.test_images": 7}}
    world = {"train_images": 1, "test_images": 1, "num_objects": 9}
    (claim,) = load({"set": {"data.world.train_images": 5}, "treatment": side}, set={"data": {"world": world}})
    found = claim.treatment[0].config["data"]["world"]
    assert (found["num_objects"], found["train_images"], found["test_images"]) == (9, 5, 7)


FIRST = [0.20, 0.22, 0.19, 0.25, 0.21]
GAINS = [0.02, 0.03, 0.01, 0.04, 0.02]  # mean 0.024; sum of squared deviations 0.00052


def test_known_records_give_the_right_p_and_verdict(load: Load, workspace: Workspace) -> None:
    (claim,) = load()
    assert judge(claim, workspace.store).verdict == "not run yet"
    leave_values(workspace, claim, FIRST, [a + b for a, b in zip(FIRST, GAINS, strict=True)])
    result = judge(claim, workspace.store)
    assert result.n == 5 and result.verdict == "holds"
    assert result.baseline == pytest.approx(21.4) and result.treatment == pytest.approx(23.8)
    assert result.difference is not None and result.difference.mean == pytest.approx(2.4)
    # With 4 degrees of freedom the two-sided p of t is 1 - sin(a) (1 + cos(a)^2 / 2) for tan(a) = t / 2.
    t = 0.024 / (math.sqrt(0.00052 / 4) / math.sqrt(5))
    angle = math.atan(t / 2)
    expected = 1 - math.sin(angle) * (1 + math.cos(angle) ** 2 / 2)
    assert result.difference.p == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(0.0093, abs=1e-4)


@pytest.mark.parametrize(
    ("gains", "direction", "verdict"),
    [
        (GAINS, "higher", "holds"),
        (GAINS, "lower", "fails"),
        ([-g for g in GAINS], "higher", "fails"),
        ([-g for g in GAINS], "lower", "holds"),
        ([0.05, -0.04, 0.03, -0.02, 0.01], "higher", "undecided"),
        ([0.02] * 5, "higher", "holds"),
        ([0.0] * 5, "higher", "fails"),
        ([0.0] * 5, "lower", "fails"),
        ([0.02], "higher", "undecided"),
    ],
)
def test_verdicts(load: Load, workspace: Workspace, gains: list[float], direction: str, verdict: str) -> None:
    (claim,) = load({"direction": direction})
    leave_values(workspace, claim, FIRST, [a + b for a, b in zip(FIRST, gains, strict=False)])
    result = judge(claim, workspace.store)
    assert (result.verdict, result.n) == (verdict, len(gains))


def test_stale_records_do_not_count(load: Load, workspace: Workspace) -> None:
    (claim,) = load()
    leave_values(workspace, claim, FIRST, FIRST[::-1])
    leave(workspace.store, claim.baseline[2], method_versions={"frequency": 0}, metrics={})
    assert judge(claim, workspace.store).n == 4


@pytest.mark.parametrize(
    ("changes", "file", "message"),
    [
        ({"metrics": ["AP/on"]}, {}, "metrics"),
        ({}, {"worlds": {}}, "worlds"),
        ({"baseline": {"label": "x", "seed": 1}}, {}, "seed"),
        ({"set": {"model.ranks": 2}}, {}, "unknown key in claim 'background helps' of reldn: 'model.ranks'; there is:"),
        ({}, {"set": {"data.worlds": {}}}, "unknown key in claims.yaml of reldn: 'data.worlds'"),
        ({"set": {"method": "frequencies"}}, {}, "unknown method in claim 'background helps'"),
        ({"direction": "up"}, {}, r"unknown direction .* 'up'; there is: higher, lower"),
        ({"metric": []}, {}, "names no metric"),
    ],
)
def test_what_is_unknown_gives_one_clear_error(
    load: Load, changes: dict[str, Any], file: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExperimentError, match=message) as error:
        load(changes, **file)
    assert "\n" not in str(error.value)


def test_missing_fields_papers_names_and_seeds_give_one_clear_error(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="where"):
        load({}, claims=[{key: value for key, value in CLAIM.items() if key != "where"}])
    with pytest.raises(ExperimentError, match="another claim has its name"):
        load({}, {"note": "twice"})
    with pytest.raises(ExperimentError, match="unknown paper with claims: 'lml'; there is: reldn"):
        load_claims("lml", root=tmp_path / "papers")
    for seeds in ((0,), (), (1, 1), (-1, 0)):
        with pytest.raises(ExperimentError, match="two or more different seeds"):
            load(seeds=seeds)


def test_an_unknown_metric_is_named(load: Load, workspace: Workspace) -> None:
    (claim,) = load({"metric": ["AP/on", "AP/of"]})
    leave_values(workspace, claim, FIRST, FIRST)
    with pytest.raises(ExperimentError, match=r"unknown metric .* 'AP/of'; there is: AP/on, AP/under"):
        judge(claim, workspace.store)


def test_files_say_what_was_found(load: Load, workspace: Workspace) -> None:
    claims = load({"note": "Two\n sizes were tried."}, {"name": "not run"})
    leave_values(workspace, claims[0], FIRST, [a + b for a, b in zip(FIRST, GAINS, strict=True)])
    leave_values(workspace, claims[1], [], [])
    results = [judge(claims[0], workspace.store), claims_module.ClaimResult(claims[1], 0, None, None, None)]
    header, first, second = csv.reader(io.StringIO(to_csv(results)))
    assert tuple(header) == COLUMNS
    line = dict(zip(header, first, strict=True))
    assert (line["baseline_mean"], line["treatment_mean"], line["difference"]) == ("21.4", "23.8", "2.4")
    assert (line["verdict"], line["n"], line["metric"]) == ("holds", "5", "AP/on AP/under")
    assert line["baseline_runs"].split() == [run.name for run in claims[0].baseline]
    assert dict(zip(header, second, strict=True))["p"] == "" and second[-3] == "not run yet"
    text = to_markdown(results)
    assert "| reldn | background helps | 21.40 | 23.80 | +2.40 | 0.009 | 5 | holds |" in text
    assert "| reldn | not run |  |  |  | n/a | 0 | not run yet |" in text
    assert "generated data" in text.splitlines()[0] and "> The background of a pair matters.\n" in text
    assert "with against without: `frequency.background` False → True." in text and "Two sizes were tried." in text


PAPERS = claiming_papers()


@pytest.mark.parametrize("paper", PAPERS)
def test_the_real_claims_are_what_they_say(paper: str) -> None:
    """Sides differ in the method alone, never in data, protocol or schedule."""
    for claim in load_claims(paper):
        assert claim.entry.says and claim.entry.where and len(claim.baseline) == len(SEEDS)
        assert claim.changed
        for key, _, _ in claim.changed:
            assert key not in HASHLESS
            assert key.split(".")[0] in ("model", "loss", "scoring"), f"{claim.entry.name}: {key}"
        for run in in_order([*claim.baseline, *claim.treatment]):
            assert run.config["data"]["world"]["seed"] == run.seed
            assert run.config["trainer"].get("limit_train_batches", -1) == -1


def test_the_command_runs_what_is_asked_for_and_writes_all(
    load: Load,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    claims = load(seeds=(0, 1, 2))
    launched = []

    def launch(runs: list[Any], machine: Any, workers: int) -> None:
        launched.append(([run.name for run in runs], workers))
        leave_values(workspace, claims[0], FIRST[:3], [0.3, 0.31, 0.32])

    monkeypatch.setattr(claims_module, "launch", launch)
    arguments = command_line._parser().parse_args(["claims", "--seeds", "0", "1", "2", "--workers", "2"])
    claims_module.claims(arguments, workspace.machine, tmp_path / "papers")
    names = [run.name for pair in zip(claims[0].baseline, claims[0].treatment, strict=True) for run in pair]
    assert launched == [(names, 2)]
    printed = capsys.readouterr().out
    assert "holds" in printed and "claims.md" in printed
    folder = workspace.machine.results_dir / "demo"
    assert "| 3 | holds |" in (folder / "claims.md").read_text()
    assert len((folder / "claims.csv").read_text().splitlines()) == 2


def test_an_unknown_paper_is_one_error(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert workspace.command("claims", "--paper", "segment") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown paper with claims: 'segment'") and len(error.splitlines()) == 1


def test_planning_claims_imports_no_torch() -> None:
    code = "import sys\nfrom experiments.claims import claiming_papers, load_claims\n"
    code += "assert all(load_claims(paper) for paper in claiming_papers())\n"
    code += "found = {'torch', 'pytorch_lightning', 'lit_modules', 'data_modules'} & sys.modules.keys()\n"
    code += "assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_make_passes_on_what_it_is_given() -> None:
    arguments = ["make", "--dry-run", "claims", "PAPER=reldn", "SEEDS=0 1", "WORKERS=2"]
    done = subprocess.run(arguments, cwd=ROOT.parent, capture_output=True, text=True)
    (line,) = [line for line in done.stdout.splitlines() if "-m experiments" in line]
    read = vars(command_line._parser().parse_args(shlex.split(line)[3:]))
    assert {key: read[key] for key in ("command", "paper", "seeds", "workers")} == {
        "command": "claims",
        "paper": "reldn",
        "seeds": [0, 1],
        "workers": 2,
    }
