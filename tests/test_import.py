"""Importing costs little and reaches only downwards."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import composable_energy as ce

CORE = Path(ce.__file__).parent

# Files stand in floors and import downwards only; those of one floor may import each other.
FLOORS = [
    {
        "errors",
        "arguments",
        "arithmetic",
        "captures",
        "checks",
        "conditions",
        "files",
        "gradients",
        "grids",
        "identity",
        "lazy",
        "noise",
        "sharing",
        "twins",
    },
    {"energy", "events", "lifting", "distributions", "algebra", "explain", "inference", "parsing"},
    {"sampling", "diagnostics"},
    {"normalizers"},
    {"registry"},
    {"kernels", "saving"},
    {"testing"},
    {"cli", "__main__"},
]
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}
# Methods of an energy, and drawing by a sampler's name, reach upwards when they are called.
UPWARDS = {("energy.py", "sampling"), ("energy.py", "saving"), ("sampling/selection.py", "registry")}
FILES = sorted(path for path in CORE.rglob("*.py") if path != CORE / "__init__.py")


def imported(code: ast.AST) -> set[str]:
    """The modules that code imports, with full names."""
    found = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports in the core are absolute"
            found |= {node.module or ""} | (
                {f"{node.module}.{a.name}" for a in node.names} if node.module == "composable_energy" else set()
            )
    return found


def parts_of(modules: set[str]) -> set[str]:
    """The parts of the core among modules."""
    return {module.split(".")[1] for module in modules if module.startswith("composable_energy.")} & FLOOR.keys()


def without_type_checking(code: ast.Module) -> ast.Module:
    class Remove(ast.NodeTransformer):
        def visit_If(self, node: ast.If):
            return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else self.generic_visit(node)

    return Remove().visit(code)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CORE).as_posix())
def test_floors_import_downwards(path):
    place = path.relative_to(CORE)
    part = place.parts[0].removesuffix(".py")
    assert part in FLOOR, f"{place} stands on no floor: say on which in this test"
    code = without_type_checking(ast.parse(path.read_text(encoding="utf-8")))
    higher = {other for other in parts_of(imported(code)) if FLOOR[other] > FLOOR[part]}
    assert {(place.as_posix(), other) for other in higher} <= UPWARDS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CORE).as_posix())
def test_the_core_knows_no_plugin(path):
    assert not [module for module in imported(ast.parse(path.read_text(encoding="utf-8"))) if module.startswith("composable_energy_")]


def loaded_by(statement: str) -> set[str]:
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    path = ":".join(part for part in sys.path if part)
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        "import composable_energy",
        "import composable_energy as ce; [getattr(ce, name) for name in ce.__all__]",
        "import composable_energy as ce; (ce.as_energy(lambda x: x.sum(1)) & (lambda x: x.sum(1))); ce.plugins()",
    ],
)
def test_importing_loads_nothing_that_is_not_needed(statement):
    loaded = loaded_by(statement) - loaded_by("import torch")  # torch itself takes tqdm where it is
    heavy = {
        "matplotlib",
        "triton",
        "tqdm",
        "scipy",
        "pandas",
        "PIL",
        "einops",
        "safetensors",
        "pytest",
        "mujoco",
        "arviz_stats",
        "xarray",
        "sklearn",
    }
    assert {name.split(".")[0] for name in loaded} & heavy == set()
    assert not [name for name in loaded if name.startswith("composable_energy_")]


def test_the_bare_import_does_not_wait_for_torch():
    assert "torch" not in loaded_by("import composable_energy, composable_energy.registry; composable_energy.plugins()")


def test_every_public_name_is_there():
    assert len(set(ce.__all__)) == len(ce.__all__)
    assert [name for name in ce.__all__ if not hasattr(ce, name)] == []
    assert set(ce.__all__) <= set(dir(ce))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ce.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
