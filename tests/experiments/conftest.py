"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.methods import STAGES, Need, Stage
from tests.experiments.workspace import Workspace, forget_determinism, with_runs


@pytest.fixture(autouse=True)
def _determinism() -> Iterator[None]:
    yield
    forget_determinism()


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where generated worlds lie that all tests share: read them, never write to them."""
    return tmp_path_factory.mktemp("generated")


@pytest.fixture
def workspace(tmp_path: Path, generated: Path) -> Workspace:
    """A machine without any runs."""
    return Workspace(tmp_path, generated)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory, generated: Path) -> Workspace:
    """A machine on which every table that has runs was made in the smoke profile: read it, never write to it."""
    space = Workspace(tmp_path_factory.mktemp("smoke"), generated)
    for spec in with_runs("smoke"):
        assert space.command(spec.kind, spec.paper, spec.name, "--profile", "smoke") == 0
    return space


@pytest.fixture
def fake_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that nothing can build: `fake` evaluates what `fake.training` trains, on top of `fake.features`."""
    stages = {
        "fake.features": Stage("nowhere:features", True, ("data",)),
        "fake.training": Stage(
            "nowhere:train", True, ("data", "model"), needs=lambda config: {"features": Need("fake.features", {})}
        ),
        "fake": Stage(
            "nowhere:test",
            False,
            ("data", "model"),
            frozenset({"model.dropout"}),
            needs=lambda config: {"network": Need("fake.training", {})} | choice(config),
        ),
    }

    def choice(config: dict[str, dict[str, object]]) -> dict[str, Need]:
        return {"choice": Need("fake", {"data": {"split": "held_out"}})} if config["data"]["split"] == "test" else {}

    for name, stage in stages.items():
        monkeypatch.setitem(STAGES, name, stage)
