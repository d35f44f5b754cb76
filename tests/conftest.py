"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_modules.synthetic.vrd import write_vrd_world


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data that DATA_ROOT names; tests that want it are skipped where it is absent."""
    root = os.environ.get("DATA_ROOT")
    if not root or not (Path(root) / "vrd" / "json_dataset").is_dir():
        pytest.skip("DATA_ROOT is unset or holds no vrd/json_dataset")
    return Path(root)


@pytest.fixture(scope="session")
def vrd_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated VRD world, shared by all tests: read it, never write to it."""
    return write_vrd_world(tmp_path_factory.mktemp("generated") / "vrd", train_images=40, test_images=24)
