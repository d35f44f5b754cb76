"""Who may import whom, as CONTRIBUTING.md says it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("experiments", "lit_modules", "data_modules", "scripts")
RECORDS = "data_modules.scene_graph"


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


EVERYTHING = {name_of(path) for package in PACKAGES for path in modules(package)}


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere in it; of `from package import module`, the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in EVERYTHING else str(node.module)


def own(path: Path) -> set[str]:
    """The imports that lie in this project."""
    return {name for name in imports(path) if name.split(".")[0] in PACKAGES or name.startswith("tests")}


def test_the_check_sees_imports(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import os.path\nfrom data_modules import vrd\nfrom data_modules.errors import DataError\n"
        "def f():\n    import experiments.run as r\n"
    )
    assert set(imports(path)) == {"os.path", "data_modules.vrd", "data_modules.errors", "experiments.run"}
    assert own(path) == {"data_modules.vrd", "data_modules.errors", "experiments.run"}
    assert {"experiments.spec", "lit_modules.functional.boxes", "data_modules.synthetic.vrd"} <= EVERYTHING


@pytest.mark.parametrize(("package", "other"), [("lit_modules", "data_modules"), ("data_modules", "lit_modules")])
def test_models_and_data_know_each_other_by_the_scene_graph_only(package: str, other: str) -> None:
    for path in modules(package):
        foreign = {name for name in own(path) if not name.startswith(package)}
        assert foreign <= {RECORDS}, f"{name_of(path)} imports {foreign}"
        assert package != "data_modules" or not any(name.startswith(other) for name in own(path))


def test_the_records_between_them_stand_alone() -> None:
    assert not own(ROOT / "data_modules" / "scene_graph.py")


def test_nothing_imports_the_scripts_or_the_tests() -> None:
    for package in ("experiments", "lit_modules", "data_modules"):
        for path in modules(package):
            assert not {n for n in own(path) if n.split(".")[0] in ("scripts", "tests")}, name_of(path)


LAYERS = {  # folder of lit_modules -> what else of lit_modules it may use
    "functional": {"functional"},
    "layers": {"functional", "layers"},
    "metrics": {"functional", "metrics"},
}


@pytest.mark.parametrize("folder", LAYERS)
def test_lit_modules_are_layered(folder: str) -> None:
    found = modules(f"lit_modules/{folder}")
    assert found
    for path in found:
        used = {name.split(".")[1] for name in own(path) if name.startswith("lit_modules.")}
        assert used <= LAYERS[folder], f"{name_of(path)} uses {used}"


def test_the_maths_is_free_of_lightning_and_files() -> None:
    for path in modules("lit_modules/functional"):
        outside = {name.split(".")[0] for name in imports(path)}
        assert not outside & {"pytorch_lightning", "torchmetrics", "pathlib", "omegaconf"}, name_of(path)


BUILDERS = {path.stem for path in modules("experiments") if path.stem.startswith("build")}


def test_only_the_builders_know_both_sides() -> None:
    for path in modules("experiments"):
        sides = {name.split(".")[0] for name in own(path)} - {"experiments"}
        if path.stem not in BUILDERS:
            assert not sides, f"{name_of(path)} imports {sides}"


def test_planning_rendering_and_configs_import_no_torch() -> None:
    """Whatever is imported, directly or not, by everything but the modules that train."""
    heavy = {f"experiments.{name}" for name in {"run", "callbacks"} | BUILDERS}
    light = sorted({name_of(path) for path in modules("experiments")} - heavy)
    assert "experiments.__main__" in light and "experiments.report" in light
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "found = {'torch', 'pytorch_lightning', 'lit_modules', 'data_modules'} & sys.modules.keys()\n"
    code += "assert not found, found"
    done = subprocess.run([sys.executable, "-c", code, *light], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_optional_packages_are_imported_where_they_are_used_only() -> None:
    """Training must work where wandb, submitit, PyMaxflow and pycocotools are missing."""
    optional = {"wandb", "submitit", "maxflow", "pycocotools"}
    for package in PACKAGES:
        for path in modules(package):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                names = {a.name for a in node.names} if isinstance(node, ast.Import) else set()
                names |= {str(node.module)} if isinstance(node, ast.ImportFrom) else set()
                assert not {n.split(".")[0] for n in names} & optional, name_of(path)


def test_files_are_short() -> None:
    for package in PACKAGES:
        for path in modules(package):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, name_of(path)


def test_no_file_knows_a_machine() -> None:
    """Real data are found through DATA_ROOT only."""
    secret = ["/".join(parts) for parts in (("", "tmp", "data"), ("", "work", ""), ("", "home", ""), ("", "root", ""))]
    secret.append("/".join(("..", "shared")))
    written = (".py", ".yaml", ".md", ".toml", ".cff", ".yml")
    files = [p for folder in (*PACKAGES, "tests") for p in (ROOT / folder).rglob("*") if p.suffix in written]
    files += [p for p in ROOT.iterdir() if p.is_file() and (p.suffix in written or p.name == "Makefile")]
    assert len(files) > 80
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in secret if word in text], path
