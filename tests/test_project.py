"""The project's own machinery: packaging, the table of mutants, and rules about the tree that nothing else checks."""

from __future__ import annotations

import ast
import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dtc_jax"
# The code that exported folders bring along is PyTorch's and runs without this package.
TEMPLATE = PACKAGE / "weights" / "export_pytorch" / "template"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if TEMPLATE not in path.parents)
# The one program of the package that is PyTorch's; it runs as a process of its own.
PYTORCH_PROGRAMS = [PACKAGE / "bench" / name for name in ("pytorch_train.py", "pytorch_sample.py")]


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


mutants = load_script(ROOT / "scripts" / "mutants.py")
TABLE = mutants.load_mutants()


@pytest.mark.parametrize("mutant", TABLE, ids=lambda mutant: mutant.name)
def test_mutant_applies(mutant: mutants.Mutant) -> None:  # type: ignore[name-defined]
    text = mutants.applied(mutant, ROOT)
    if mutant.file.endswith(".py"):
        ast.parse(text)
    for test in mutant.tests:
        path, _, function = test.partition("::")
        assert (ROOT / path).is_file(), f"{path} does not exist"
        assert f"def {function}" in (ROOT / path).read_text(), f"{path} has no {function}"


def test_there_are_mutants_for_every_part() -> None:
    assert len(TABLE) >= 24
    parts = {mutant.file.split("/")[1] for mutant in TABLE if mutant.file.startswith("dtc_jax/")}
    assert {"data", "diffusion", "evaluation", "inference", "models", "training", "weights"} <= parts


def test_mutant_tool_refuses_what_it_cannot_apply(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("a = 1\nb = 1\n")
    twice = mutants.Mutant(name="n", file="code.py", find="= 1", replace="= 2", tests=("t",))
    with pytest.raises(ValueError, match="occurs 2 times"):
        mutants.applied(twice, tmp_path)
    absent = mutants.Mutant(name="n", file="other.py", find="= 1", replace="= 2", tests=("t",))
    with pytest.raises(ValueError, match="does not exist"):
        mutants.applied(absent, tmp_path)
    table = tmp_path / "table.toml"
    table.write_text('[[mutant]]\nname = "n"\nfile = "f"\nfind = "x"\nreplace = "x"\ntests = ["t"]\n')
    with pytest.raises(ValueError, match="changes nothing"):
        mutants.load_mutants(table)


def imported(path: Path, in_functions: bool = True) -> set[str]:
    """Names of all modules that a file imports: anywhere in it, or outside of functions only."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and not in_functions]
    left_out = {id(node) for function in functions for node in ast.walk(function)}
    names = set()
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_package_imports_no_other_framework(path: Path) -> None:
    # Importing the package needs no PyTorch; reading a pickle of weights does.
    roots = {
        name.split(".")[0] for name in imported(path, in_functions="weights" not in path.relative_to(PACKAGE).parts)
    }
    if path in PYTORCH_PROGRAMS:
        roots -= {"torch", "diffusers", "transformers"}
    assert not roots & {"torch", "tensorflow", "diffusers", "transformers"}
    if path not in PYTORCH_PROGRAMS:
        assert not {"dtc_jax.bench.pytorch_train", "dtc_jax.bench.pytorch_sample"} & set(imported(path))


# config < data, models, diffusion < weights < inference < evaluation < training < tables (docs/architecture.md).
LAYERS = {
    **{"data": 1, "models": 1, "diffusion": 1, "weights": 2},
    **{"inference": 3, "evaluation": 4, "training": 5, "tables": 6},
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0]
    if own not in LAYERS:
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "dtc_jax" or len(parts) == 1 or parts[1] not in LAYERS or parts[1] == own:
            continue
        assert LAYERS[parts[1]] < LAYERS[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_console_scripts_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, target in project["scripts"].items():
        module, function = target.split(":")
        source = ROOT / (module.replace(".", "/") + ".py")
        defined = {node.name for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert function in defined, f"{name}: {source} has no {function}"


def test_licence_is_complete() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert "Copyright 2026 The dtc-jax authors" in text
