"""Backends for rendering: found automatically, reported when missing, and equal in their pictures."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.processes import run_code

DRAW = """
import sys
import numpy as np
import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled
try:
    for name in ("one-object", "objects", "room"):
        drawn = ce.get("world", name).draw(16, seed=4, masks=True)
        np.savez(f"{name}.npz", images=drawn.images, masks=drawn.masks, **drawn.labels)
except ExtraNotInstalled as error:
    print(error)
    sys.exit(7)
"""
HIDE = """
import ctypes.util
find = ctypes.util.find_library
ctypes.util.find_library = lambda name: None if name in {hidden} else find(name)
"""
ONE = """
import os
import composable_energy as ce
from composable_energy.errors import ComposableEnergyError
try:
    print(ce.get("world", "one-object").draw(2).images.shape, os.environ.get("MUJOCO_GL"))
except ComposableEnergyError as error:
    print(type(error).__name__, error)
"""


def python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs code; what draws is chosen when MuJoCo is imported, once for each process."""
    return run_code(code, folder, **{"MUJOCO_GL": None, "PYOPENGL_PLATFORM": None, **variables})


def needs_mujoco() -> None:
    if importlib.util.find_spec("mujoco") is None:  # without importing it: what draws is chosen by who does
        pytest.skip("MuJoCo is not installed: pip install 'composable-energy-worlds[mujoco]'")


@pytest.mark.full
def test_egl_and_osmesa_draw_the_same(tmp_path):
    needs_mujoco()
    for backend in ("egl", "osmesa"):
        folder = tmp_path / backend
        folder.mkdir()
        done = python(DRAW, folder, MUJOCO_GL=backend)
        if done.returncode == 7:
            pytest.skip(f"{backend} does not draw here: {done.stdout}")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "nothing is said at the end of the process"
    for name in ("one-object", "objects", "room"):
        with np.load(tmp_path / "egl" / f"{name}.npz") as one, np.load(tmp_path / "osmesa" / f"{name}.npz") as other:
            assert np.abs(one["images"].astype(int) - other["images"]).max() <= 2
            for array in one.files:
                if array != "images":
                    np.testing.assert_array_equal(one[array], other[array])


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="MuJoCo draws by itself on other systems")
@pytest.mark.parametrize(
    ("before", "variables", "message"),
    [
        (HIDE.format(hidden={"EGL", "OSMesa"}), {}, "ExtraNotInstalled No backend for off-screen rendering is installed."),
        ("", {"MUJOCO_GL": "rubbish"}, "ExtraNotInstalled MuJoCo cannot render with MUJOCO_GL=rubbish"),
        ("import mujoco\n", {"DISPLAY": "", "WAYLAND_DISPLAY": ""}, "ExtraNotInstalled MuJoCo cannot render with MUJOCO_GL= on linux"),
        ("", {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "egl"}, "ExtraNotInstalled MuJoCo cannot render with MUJOCO_GL=osmesa"),
    ],
    ids=["nothing", "rubbish", "imported before", "contradiction"],
)
def test_the_error_names_the_packages(tmp_path, before, variables, message):
    needs_mujoco()
    told = python(before + ONE, tmp_path, **variables).stdout
    assert told.startswith(message), told
    assert "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri" in told and "apt-get install libosmesa6" in told


@pytest.mark.full
def test_the_error_names_the_extra(tmp_path):
    told = python("import sys\nsys.modules['mujoco'] = None\nimport os\nos.environ['MUJOCO_GL'] = 'egl'\n" + ONE, tmp_path).stdout
    assert told.startswith("ExtraNotInstalled This world needs MuJoCo: `pip install 'composable-energy-worlds[mujoco]'`."), told
