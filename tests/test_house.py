"""The house: what may import what, and lists that must agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

PACKAGES = ("pipeline", "training", "evaluation", "workflows")


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the house."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever it stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("pipeline", ("training", "evaluation", "workflows")),
        ("training", ("evaluation", "workflows", "detectron2", "dask", "distributed")),
        ("evaluation", ("workflows", "detectron2", "dask", "distributed")),
    ],
)
def test_imports_go_one_way(package: str, forbidden: tuple[str, ...]) -> None:
    for name, path in modules().items():
        if name.split(".")[0] == package:
            crossing = {each for each in imports_of(path) if each.split(".")[0] in forbidden}
            assert not crossing, f"{name} imports {sorted(crossing)}"


# Streetworld's truth is a file format like the shards: numpy and h5py only. Bars and the events that they
# tell are everybody's: the standard library and tqdm. So is the reader of files of tensors that runs no code.
DOORS = (
    "pipeline.shards",
    "pipeline.streetworld.truth",
    "pipeline.errors",
    "pipeline.classes",
    "pipeline.configuration",
    "pipeline.events",
    "pipeline.progress",
    "pipeline.tensor_files",
)


@pytest.mark.parametrize("package", ["training", "evaluation"])
def test_training_and_evaluation_enter_the_pipeline_by_its_doors_only(package: str) -> None:
    for name, path in modules().items():
        if name.split(".")[0] == package:
            inside = {each for each in imports_of(path) if each.split(".")[0] == "pipeline"}
            strange = {
                each
                for each in inside
                if not any(each == door or each.startswith(door + ".") for door in DOORS)
            }
            assert not strange - {"pipeline"}, f"{name} imports {sorted(strange)}"


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("detectron2", {"pipeline.detection"}),
        ("dask", {"pipeline.graph", "pipeline.local_cluster", "workflows.clusters.slurm"}),
    ],
)
def test_a_heavy_library_has_one_home(library: str, homes: set[str]) -> None:
    names = {library, "distributed"} if library == "dask" else {library}
    users = {
        name
        for name, path in modules().items()
        if any(each.split(".")[0] in names for each in _imports_at_run_time(path))
    }
    assert users == homes


def _imports_at_run_time(path: Path) -> set[str]:
    """Imports of a file without those that only the type checker sees."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked_only = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            checked_only |= {id(inner) for inner in ast.walk(node)}
    names = set()
    for node in ast.walk(tree):
        if id(node) not in checked_only:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module))
    return names


def test_reading_shards_loads_neither_torch_nor_the_pipelines_tools() -> None:
    loaded = loaded_by("import pipeline.shards.reader, pipeline.shards.verify, pipeline.streetworld.truth")
    assert not loaded & {"torch", "torchvision", "detectron2", "dask", "distributed", "av", "training"}
    assert "h5py" in loaded


def test_the_pipelines_driver_loads_no_training() -> None:
    assert "training" not in loaded_by("import pipeline.build, pipeline.remask, pipeline.detection")


def test_package_files_hold_a_docstring_only() -> None:
    for name, path in modules().items():
        if path.name == "__init__.py":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert len(body) == 1, f"{name} holds code"
            assert isinstance(body[0], ast.Expr), f"{name} has no docstring"


def test_every_module_begins_with_a_docstring() -> None:
    for name, path in modules().items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{name} has no docstring"


CONDA_NAMES = {"torch": "pytorch", "opencv-python-headless": "opencv"}
CONDA_ONLY = {"python", "pip", "detectron2"}  # detectron2: see Makefile
PIP_ONLY = {"evo"}  # a second opinion for one test, which says so where it is not there


def test_conda_and_pip_state_the_same_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pip = {}
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name, bound = re.fullmatch(r"([A-Za-z0-9_.-]+?)([<>=!~].*)", line).groups()  # type: ignore[union-attr]
        pip[CONDA_NAMES.get(name, name)] = bound
    conda = {}
    for entry in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]:
        if isinstance(entry, str):
            name, _, bound = entry.partition(" ")
            conda[name] = bound
    assert set(conda) >= CONDA_ONLY
    both = {name: bound for name, bound in pip.items() if name not in PIP_ONLY}
    assert {name: bound for name, bound in conda.items() if name not in CONDA_ONLY} == both
    assert conda["python"] == project["requires-python"]


def test_the_top_level_is_as_laid_down() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert top == {
        *("README.md", "environment.yml", "pyproject.toml", "Makefile", "LICENSE", ".gitignore", ".ci"),
        *("pipeline", "training", "evaluation", "workflows", "tests"),
    }  # fmt: skip


def test_no_tracked_file_is_large() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    sizes = {
        name: (ROOT / name).stat().st_size
        for name in listed.stdout.split("\0")
        if name and (ROOT / name).is_file()
    }
    assert not {name: size for name, size in sizes.items() if size > 10 << 20}
