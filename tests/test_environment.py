"""The files that say what to install agree with each other."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"yaml": "pyyaml", "PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn"} | {
    "maxflow": "pymaxflow"
}
LOCK = (ROOT / "requirements.lock").read_text().splitlines()


def locked() -> dict[str, Version]:
    return {canonicalize_name(name): Version(pin) for name, _, pin in (line.partition("==") for line in LOCK if line)}


def requirements() -> list[Requirement]:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_the_lock_pins_every_package_once_and_holds_no_address() -> None:
    for line in LOCK:
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[A-Za-z0-9.!+]+", line), line
    names = [canonicalize_name(line.partition("==")[0]) for line in LOCK]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert not any("+" in line for line in LOCK), "a local version can be had from one index only"


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_lock_satisfies_every_range(requirement: Requirement) -> None:
    pins = locked()
    name = canonicalize_name(requirement.name)
    assert name in pins, "not in requirements.lock"
    assert requirement.specifier.contains(pins[name], prereleases=True)
    assert re.match(r">=\d", str(requirement.specifier)), "a range has a lower end"


def test_conda_users_get_the_same_set() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    (pip,) = [entry for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip["pip"] == [line for line in LOCK if line]
    (python,) = [e for e in environment["dependencies"] if isinstance(e, str) and e.startswith("python=")]
    assert Version(python.removeprefix("python=")) in Requirement(f"python{PROJECT['requires-python']}").specifier


def test_what_is_installed_is_in_range() -> None:
    """Not the lock's exact set: the suite works with other versions within the ranges too."""
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(version(requirement.name), prereleases=True), text


def test_every_package_that_the_code_imports_is_a_dependency() -> None:
    declared = {canonicalize_name(r.name) for r in requirements()}
    own = {"experiments", "lit_modules", "data_modules", "scripts", "tests", "__future__"}
    for folder in ("experiments", "lit_modules", "data_modules", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                found += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
                for top in {name.split(".")[0] for name in found} - own - sys.stdlib_module_names:
                    assert canonicalize_name(DISTRIBUTIONS.get(top, top)) in declared, f"{path} imports {top}"


def test_the_citation_names_the_five_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["title"] and citation["authors"]
    titles = [reference["title"] for reference in citation["references"]]
    assert len(titles) == len(set(titles)) == 5
    for reference in citation["references"]:
        assert all(author["family-names"] and author["given-names"] for author in reference["authors"])
        assert 2014 <= reference["year"] <= 2020 and reference["type"] in ("conference-paper", "report")


def test_the_license_is_the_one_that_is_declared() -> None:
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_linters_are_the_same_everywhere() -> None:
    """pre-commit runs what `make lint` runs, from the same environment."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = " ".join(str(hook) for repository in hooks for hook in repository["hooks"])
    assert all(tool in entries for tool in ("ruff check", "ruff format", "mypy"))
    assert all(repository["repo"] == "local" for repository in hooks)
