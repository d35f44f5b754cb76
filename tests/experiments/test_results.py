"""A fresh clone regenerates `results/` from the committed records, byte for byte."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.report import write_all
from experiments.runs import in_order
from experiments.store import Store, read_record
from tests.experiments.workspace import REGISTRY, with_runs

RESULTS = Path(__file__).parents[2] / "results"
NOT_RENDERED = ("demo", "smoke", "gallery")  # not committed, or the picture that the README shows


@pytest.fixture(scope="module")
def committed() -> list[str]:
    """The committed tables and records of `results/`, or those that lie there as long as none is committed."""
    listing = subprocess.run(["git", "ls-files", "-z", "."], cwd=RESULTS, capture_output=True, text=True)
    names = [name for name in listing.stdout.split("\0") if name]
    if not names:
        names = [str(path.relative_to(RESULTS)) for path in RESULTS.rglob("*") if path.is_file()]
    return sorted(name for name in names if Path(name).parts[0] not in NOT_RENDERED and not name.endswith(".partial"))


def test_the_committed_records_give_the_committed_tables(committed: list[str], tmp_path: Path) -> None:
    records = [name for name in committed if name.startswith("records/")]
    rendered = [name for name in committed if not name.startswith("records/")]
    assert {"index.html", "overview.csv", "overview.md", "reldn/table8.csv", "vrd_tensor/table1.csv"} <= set(rendered)
    for name in records:
        (tmp_path / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(RESULTS / name, tmp_path / "results" / name)
    write_all(REGISTRY, Store(tmp_path / "no-runs", tmp_path / "results"))
    written = {str(p.relative_to(tmp_path / "results")) for p in (tmp_path / "results").rglob("*") if p.is_file()}
    assert written == set(rendered) | set(records)
    different = [
        name for name in rendered if (tmp_path / "results" / name).read_bytes() != (RESULTS / name).read_bytes()
    ]
    assert not different, f"run `make tables` and commit: {different}"


def test_every_committed_record_is_read_by_a_table(committed: list[str]) -> None:
    """What no table reads any more, because its config changed, is no result: delete it."""
    read = {f"records/{run.paper}/{run.name}.json" for spec in with_runs("paper") for run in in_order(spec.runs)}
    orphans = {name for name in committed if name.startswith("records/")} - read
    assert not orphans


def test_committed_records_name_themselves_and_come_from_committed_code(committed: list[str]) -> None:
    for name in (name for name in committed if name.startswith("records/")):
        record = read_record(RESULTS / name)
        assert name == f"records/{record['paper']}/{record['run']}.json"
        assert record["commit"] != "unknown" and not record["commit"].endswith("-dirty"), name
