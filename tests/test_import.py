"""Importing the library loads only what is needed; the layers themselves are checked by `lint-imports`."""

import functools
import json
import subprocess
import sys

import pytest

import composable_energy as ce


@functools.cache
def loaded_by(statement: str) -> frozenset[str]:
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    path = ":".join(part for part in sys.path if part)
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    return frozenset(json.loads(done.stdout))


@pytest.mark.full
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
