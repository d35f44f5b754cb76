from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.__main__ import _make, main
from experiments.runs import in_order
from experiments.spec import PROFILES
from experiments.store import RECORD, read_record
from tests.experiments.workspace import TABLES, Workspace, load, record_of, with_runs

ROOT = Path(__file__).parents[2]


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of stderr, which is where all errors go."""
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("table rel 8", "unknown paper 'rel'; there is: affinity, lml, reldn, segnet, vrd_tensor"),
        (
            "table reldn 10",
            "unknown table 'reldn-10'; there is: reldn-1, reldn-2, reldn-3, reldn-4, reldn-5, reldn-6, ",
        ),
        ("figure reldn 1", "unknown figure 'reldn-1'; there is: nothing"),
        ("figure lml 2", "unknown figure 'lml-2'; there is: lml-3, lml-4, lml-5, lml-6"),
        (
            "plan reldn 8 --set trainer.epochs=3",
            "unknown key in the command line of reldn: 'trainer.epochs'; there is: ",
        ),
        ("plan reldn 8 --set trainer.max_epochs=x", "the command line of reldn: trainer.max_epochs: Value 'x'"),
        ("plan reldn 8 --set max_epochs", "override 'max_epochs' is not of the form key.path=value, e.g. trainer."),
        (
            "plan lml 2 --set trainer.max_epochs=1",
            "table2.yaml of lml has no runs yet, so there is nothing to override",
        ),
        ("run nowhere/run.json", "nowhere/run.json: not a run "),
    ],
)
def test_a_mistake_gets_one_clear_error(
    workspace: Workspace, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workspace.command(*arguments.split()) == 2
    (line,) = errors(capsys)
    assert line.startswith(f"error: {message}")
    assert not (workspace.folder / "runs").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["tabel"], ["table", "reldn"], ["table", "reldn", "8", "--profile", "quick"]]
)
def test_a_command_that_does_not_exist_gets_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert errors(capsys)[0].startswith("usage: python -m experiments")


def test_debug_shows_where_an_error_comes_from(workspace: Workspace) -> None:
    with pytest.raises(Exception, match="unknown paper"):
        workspace.command("--debug", "table", "rel", "8")


def test_every_table_with_runs_is_filled_in_the_smoke_profile(smoke: Workspace) -> None:
    for spec in with_runs("smoke"):
        lines = smoke.table_csv(spec).decode().splitlines()
        assert len(lines) == len(spec.cells) + 1
        measured = [cell for cell in spec.cells if cell.runs]
        filled = [line for line in lines[1:] if line.rpartition(",")[2] != ""]
        # The generated worlds have predicates of their own.
        unnamed = [
            line for line in lines[1:] if re.search(r"generated data have no (AP_(rel|phr)/|mAP\*_|score\*)", line)
        ]
        assert filled and len(filled) + len(unnamed) == len(measured)
        for suffix in ("csv", "md", "tex"):
            path = smoke.machine.results_dir / "smoke" / spec.paper / f"{spec.stem}.{suffix}"
            assert path.read_text()
        assert "(generated data)" in path.with_suffix(".md").read_text()
    assert not (smoke.machine.results_dir / "records").exists()  # generated data make no committed records
    assert not list(smoke.folder.rglob("*.partial"))


def test_a_second_command_does_nothing_again_and_needs_no_torch(smoke: Workspace) -> None:
    before = smoke.modified()
    code = (
        "import sys\n"
        "from experiments.__main__ import main\n"
        "for arguments in sys.argv[1:]:\n"
        "    assert main(arguments.split()) == 0, arguments\n"
        "heavy = {'torch', 'pytorch_lightning', 'matplotlib', 'sklearn', 'skimage', 'timm', 'wandb', 'submitit'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    commands = [f"{s.kind} {s.paper} {s.name} --profile smoke" for s in with_runs("smoke")]
    commands += [f"plan {s.paper} {s.name}" for s in with_runs("paper")]
    commands += ["table lml 2", "figure lml 3", "plan lml 3 --kind figure", "status", "tables"]
    # Its own results folder: the shared one is not written to.
    environment = os.environ | smoke.variables | {"RESULTS_DIR": str(smoke.folder / "other-results")}
    done = subprocess.run([sys.executable, "-c", code, *commands], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert smoke.modified() == before
    for spec in with_runs("smoke"):
        other = Workspace(smoke.folder, smoke.generated).machine.results_dir.with_name("other-results")
        assert (other / "smoke" / spec.paper / f"{spec.stem}.csv").read_bytes() == smoke.table_csv(spec)


def test_the_plan_says_what_is_to_do_and_does_nothing(smoke: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    spec = load("reldn", "table", "8")
    runs = in_order(spec.runs)
    assert smoke.command("plan", "reldn", "8") == 0
    out = capsys.readouterr().out
    assert f"{len(runs)} runs, {len(runs)} to do, 0.000 h expected for 0 of those" in out
    assert all(f"{run.name}  absent" in out for run in runs)
    assert "no run for 16 cells of VRD / RelDN (COCO): needs VRD images and a detector" in out
    assert smoke.command("plan", "reldn", "8", "--profile", "smoke") == 0
    out = capsys.readouterr().out
    done = in_order(load("reldn", "table", "8", "smoke").runs)
    assert f"{len(done)} runs, 0 to do" in out
    assert all(f"{run.name}  done" in out for run in done)
    assert not any(smoke.store.folder(run).exists() for run in runs)


def test_the_plan_expects_what_committed_records_took(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    spec = load("reldn", "table", "8")
    trainings = [run for run in in_order(spec.runs) if run.stage_name == "reldn.training"]
    for run, seconds in zip(trainings[:3], (1800.0, 3600.0, 36000.0), strict=True):
        workspace.store.write_record(run, record_of(run, duration_s=seconds))
        workspace.store.publish(run)
    assert workspace.command("plan", "reldn", "8") == 0
    out = capsys.readouterr().out
    assert f"{trainings[-1].name}  absent      reldn.training" in out and "expected 1.000 h" in out  # the median
    # The records came without weights, which the evaluations need: all trainings are to do.
    assert f"{len(trainings):.3f} h expected for {len(trainings)} of those" in out
    assert workspace.command("plan", "reldn", "7") == 0
    assert "expected 1.000 h" not in capsys.readouterr().out  # those see pixels, of which no record tells


def test_the_status_counts_the_runs_of_every_table(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    spec = load("reldn", "table", "8")
    runs = in_order(spec.runs)
    for run, versions in ((runs[0], runs[0].method_versions), (runs[1], {})):
        workspace.store.write_record(run, record_of(run, method_versions=versions))
    checkpoint = workspace.store.folder(runs[2]) / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"half-way")
    assert workspace.command("status") == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines.keys() == {f"{kind}-{paper}-{name}" for paper, kind, name in TABLES}
    assert lines["table-reldn-8"] == f"1 done, 1 stale, 1 incomplete, {len(runs) - 3} absent"
    assert lines["table-lml-1"] == "no runs yet"


def test_without_data_the_table_is_written_with_reasons(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workspace.command("table", "reldn", "8") == 2
    lines = errors(capsys)
    spec = load("reldn", "table", "8")
    count = len(in_order(spec.runs))
    assert lines[0] == f"error: {count} of {count} runs are not done:"
    told = [
        line
        for line in lines
        if line.endswith(
            "needs the data set vrd: set DATA_ROOT to the folder that holds vrd/, "
            "or use PROFILE=demo, which generates its data"
        )
    ]
    assert len(told) == 1 and len(lines) == 3
    text = workspace.table_csv(spec).decode()
    assert text.count("not run yet: make table-reldn-8") == sum(bool(cell.runs) for cell in spec.cells)
    assert not workspace.modified()


def test_data_that_are_not_where_data_root_says_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = Workspace(tmp_path, tmp_path / "generated", data_root=tmp_path / "data")
    assert space.command("table", "reldn", "8") == 2
    assert f"needs the data set vrd: {tmp_path / 'data' / 'vrd'} does not exist; put it there, or" in "\n".join(
        errors(capsys)
    )


def test_a_damaged_data_file_costs_only_the_runs_that_read_it(
    tmp_path: Path, smoke: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trainings do not read the detections. What they did is kept, and not done again after the repair."""
    space = Workspace(tmp_path, tmp_path / "generated")
    shutil.copytree(smoke.generated, space.generated)
    damaged = list(space.generated.glob("*/lu2016/objectDetRCNN.mat"))
    whole = {path: path.read_bytes() for path in damaged}
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
    assert space.command("table", "reldn", "8", "--profile", "smoke") == 2
    lines = errors(capsys)
    spec = load("reldn", "table", "8", "smoke")
    runs = in_order(spec.runs)
    evaluations = [run for run in runs if not run.stage.fits]
    assert lines[0] == f"error: {len(evaluations)} of {len(runs)} runs are not done:"
    assert len(lines) == 2 and "objectDetRCNN.mat: " in lines[1] and all(run.name in lines[1] for run in evaluations)
    kept = space.modified()
    assert {path.parent.name for path in kept} == {run.name for run in runs if run.stage.fits}
    assert "not run yet" in space.table_csv(spec).decode()
    for path, content in whole.items():
        path.write_bytes(content)
    assert space.command("table", "reldn", "8", "--profile", "smoke") == 0
    assert space.table_csv(spec) == smoke.table_csv(spec)
    assert kept.items() <= space.modified().items()


@pytest.fixture
def small_disk(workspace: Workspace) -> Iterator[Path]:
    """A disk of 100 kB for the runs, on which one training and little more finds room."""
    disk = workspace.machine.runs_dir
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_loses_nothing_that_was_done(
    small_disk: Path, workspace: Workspace, smoke: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("table", "reldn", "8", "--profile", "smoke")
    assert workspace.command(*command) == 2
    reasons = [line.partition(": ")[2] for line in errors(capsys)[1:]]
    expected = (f"no space left while writing {small_disk}", "needs a run that failed")
    assert all(reason.startswith(expected) for reason in reasons)
    assert "free some space" in reasons[0]
    spec = load("reldn", "table", "8", "smoke")
    kept = workspace.modified()
    assert 0 < len(kept) < len(in_order(spec.runs))
    assert not list(small_disk.rglob("*.partial"))
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    assert workspace.command(*command) == 0
    assert workspace.table_csv(spec) == smoke.table_csv(spec)
    assert kept.items() <= workspace.modified().items()


def test_an_override_stands_under_the_table(tmp_path: Path, smoke: Workspace) -> None:
    space = Workspace(tmp_path, smoke.generated)
    shutil.copytree(smoke.machine.runs_dir, space.machine.runs_dir)
    before = space.modified()
    assert space.command("table", "reldn", "8", "--profile", "smoke", "--set", "evaluation.tops=[50,100,20]") == 0
    spec = load("reldn", "table", "8", "smoke")
    folder = space.machine.results_dir / "smoke" / "reldn"
    assert "evaluation.tops=[50, 100, 20] (paper: [50, 100])" in (folder / "table8.md").read_text()
    lines = (folder / "table8.csv").read_text().splitlines()
    assert sum("evaluation.tops" in line for line in lines) == sum(bool(cell.runs) for cell in spec.cells)
    new = {path.parent.name for path in space.modified().keys() - before.keys()}
    records = [read_record(space.machine.runs_dir / "reldn" / name / RECORD) for name in new]
    assert {record["stage"] for record in records} == {"reldn", "frequency", "vtranse"}  # nothing was trained again


@pytest.mark.parametrize("overridden", [False, True])
def test_only_tables_of_the_paper_profile_without_overrides_publish_records(
    workspace: Workspace, overridden: bool
) -> None:
    spec = load("reldn", "table", "8")
    for run in in_order(spec.runs):
        workspace.store.write_record(run, record_of(run, metrics=_metrics(spec)))
        (workspace.store.folder(run) / "last.ckpt").write_bytes(b"weights")
    _make(type(spec)(**vars(spec) | {"overridden": overridden}), workspace.machine, workers=1)
    published = list((workspace.machine.results_dir / "records").glob("*/*.json"))
    assert sorted(p.stem for p in published) == ([] if overridden else sorted(r.name for r in in_order(spec.runs)))


def test_tables_are_made_of_published_records_only(workspace: Workspace) -> None:
    """A run that was done, but not published because its command was killed, is published before it is shown."""
    spec = load("reldn", "table", "8")
    run = spec.runs[0]
    workspace.store.write_record(run, record_of(run, metrics=_metrics(spec)))
    assert workspace.command("tables") == 0
    assert run.name in workspace.table_csv(spec).decode()
    assert workspace.store.published(run).exists()


def _metrics(spec: object) -> dict[str, float]:
    from experiments.spec import TableSpec

    assert isinstance(spec, TableSpec)
    return {cell.metric: 0.25 for cell in spec.cells if cell.runs}


def test_profiles_are_those_of_the_makefile() -> None:
    assert PROFILES == ("paper", "demo", "smoke")
