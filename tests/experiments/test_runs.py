from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.config import merge
from experiments.errors import ExperimentError
from experiments.runs import Run, RunFactory, in_order, load, to_json
from tests.experiments.workspace import REGISTRY, with_runs

CONFIG: dict[str, Any] = {
    "data": {"split": "test", "size": 2},
    "model": {"width": 8, "dropout": 0.5},
    "loss": {"margin": 0.2},
}


@pytest.fixture
def factory(fake_stages: None) -> RunFactory:
    return RunFactory("paper")


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    return merge(CONFIG, sections)


def test_the_name_of_a_run_is_stable() -> None:
    """If this changes, every committed record is an orphan."""
    config = {"evaluation": {"ks": [1, 10]}, "data": {"proposals": "lu2016"}, "trainer": {"num_workers": 4}}
    assert Run("reldn", "frequency", 0, config, {}).name == "c67a16708f14"


def test_what_is_read_and_what_is_needed_names_a_run(factory: RunFactory) -> None:
    run = factory.make("fake", CONFIG, 0)
    assert factory.make("fake", CONFIG, 0).name == run.name
    for other in (
        factory.make("fake", CONFIG, 1),
        factory.make("fake", changed(data={"size": 3}), 0),
        factory.make("fake", changed(model={"width": 9}), 0),
        factory.make("fake.training", CONFIG, 0),
    ):
        assert other.name != run.name


def test_a_need_s_name_is_part_of_its_user_s(factory: RunFactory) -> None:
    """The evaluation does not read the dropout, but what it evaluates was trained with it."""
    run, other = factory.make("fake", CONFIG, 0), factory.make("fake", changed(model={"dropout": 0.1}), 0)
    assert run.config == other.config
    assert run.needs["network"].name != other.needs["network"].name
    assert run.name != other.name
    assert run.needs["network"].needs["features"].name == other.needs["network"].needs["features"].name


def test_keys_that_are_not_read_or_cannot_change_a_result_do_not_name_it(factory: RunFactory) -> None:
    name = factory.make("fake", CONFIG, 0).name
    assert factory.make("fake", changed(loss={"margin": 0.9}), 0).name == name
    assert factory.make("fake", changed(another={"key": 1}), 0).name == name
    trainer = {"num_workers": 3, "accelerator": "cpu", "checkpoint_seconds": 1.0}
    plain = Run("paper", "fake", 0, CONFIG, {})
    assert Run("paper", "fake", 0, CONFIG | {"trainer": trainer}, {}).name == plain.name
    assert Run("paper", "fake", 0, CONFIG | {"trainer": {"threads": 2}}, {}).name != plain.name


def test_equal_runs_are_one_object(factory: RunFactory) -> None:
    first, second = factory.make("fake", CONFIG, 0), factory.make("fake", changed(loss={"margin": 0.9}), 0)
    assert first is second
    assert first.needs["network"] is factory.make("fake.training", CONFIG, 0)


def test_needs_come_before_their_users_and_only_once(factory: RunFactory) -> None:
    runs = [factory.make("fake", CONFIG, seed) for seed in (0, 1)]
    ordered = in_order(runs)
    place = {run.name: i for i, run in enumerate(ordered)}
    assert len(place) == len(ordered) == 12  # test and choice, each with a training and its features, two seeds
    assert all(place[need.name] < place[run.name] for run in ordered for need in run.needs.values())
    assert {run.name for run in runs} < place.keys()
    assert in_order([]) == []


def test_versions_are_those_of_the_stage_and_of_all_it_needs(factory: RunFactory) -> None:
    assert factory.make("fake", CONFIG, 0).method_versions == {"fake": 1, "fake.training": 1, "fake.features": 1}
    assert factory.make("fake.features", CONFIG, 0).method_versions == {"fake.features": 1}


def test_load_reads_what_to_json_wrote(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for spec in with_runs("smoke"):
        for run in spec.runs:
            path.write_text(json.dumps(to_json(run)))
            read = load(path)
            assert (read, read.name) == (run, run.name)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"paper": "reldn"}', '{"needs": []}'])
def test_a_damaged_run_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ExperimentError, match=r"run\.json: not a run .* give the table's command again"):
        load(path)


def test_an_absent_run_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"run\.json: not a run"):
        load(tmp_path / "run.json")


def test_ten_thousand_runs_are_planned_in_seconds() -> None:
    """A tenth of them here, of the largest table with 30 seeds."""
    largest = max(with_runs("paper"), key=lambda spec: len(in_order(spec.runs)))
    count = 0
    started = time.process_time()
    while count < 1000:
        spec = REGISTRY.load(largest.paper, largest.kind, largest.name, seeds=list(range(30)))
        count += len(in_order(spec.runs))
    assert time.process_time() - started < 3 * count / 1000  # measured: 0.4 s per 1,000
