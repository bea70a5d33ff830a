"""Pictures by MuJoCo, without a screen.

Two of MuJoCo's defaults make small pictures twenty times slower than they need be: a shadow map of 4096 x 4096, and floors that are drawn
as a mesh whose cells have the size of the third number of a plane's size. `HEAD` and `FLOOR_CELL` are what avoids both.
"""

from __future__ import annotations

import ctypes.util
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType

import numpy as np

from composable_energy.errors import ExtraNotInstalled, OptionError

__all__ = ["FLOOR_CELL", "HEAD", "KINDS", "Camera", "load_mujoco", "picture_size"]

FLOOR_CELL = 8.0
"""The size of the cells of a floor, as large as floors are."""

HEAD = """
<visual>
  <quality shadowsize="512" offsamples="4" numslices="24" numstacks="12"/>
  <global offwidth="256" offheight="256"/>
  <map znear="0.01" zfar="40" shadowclip="1"/>
  <headlight ambient="{ambient} {ambient} {ambient}" diffuse="{fill} {fill} {fill}" specular="0 0 0"/>
</visual>
"""
"""The settings of all worlds; `ambient` and `fill` are how much light there is without the lamp, from everywhere and from the camera."""

KINDS = ("box", "sphere", "cylinder")
"""The solids of the worlds, as their classes 0, 1 and 2."""

_PACKAGES = {"egl": "libegl1 libegl-mesa0 libgl1-mesa-dri", "osmesa": "libosmesa6"}
_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}


def picture_size(size: int) -> int:
    """Returns the height and width of pictures, 8 to 256.

    Raises:
        OptionError: It is something else.
    """
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or not 8 <= size <= 256:
        raise OptionError(f"size is the height and width of pictures, a whole number from 8 to 256, got {size!r}.")
    return int(size)


def load_mujoco() -> ModuleType:
    """Imports MuJoCo for pictures without a screen.

    What draws is that of the environment variable `MUJOCO_GL`, else EGL, else OSMesa, whichever is installed.

    Raises:
        ExtraNotInstalled: MuJoCo is not installed, or nothing that draws is.
    """
    backend = os.environ.get("MUJOCO_GL") or next((name for name, library in _LIBRARIES.items() if ctypes.util.find_library(library)), "")
    if not backend:
        raise ExtraNotInstalled(
            "Nothing is installed that draws without a screen. On Debian or Ubuntu install one of the two: "
            + " or ".join(f"`apt-get install {packages}` ({name})" for name, packages in _PACKAGES.items())
            + "."
        )
    _load_triton_first()
    os.environ["MUJOCO_GL"] = backend  # MuJoCo reads it when it is imported
    os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's threads cost more than they gain on pictures this small
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise ExtraNotInstalled("This world is drawn by MuJoCo: `pip install 'composable-energy[scenes]'`.") from error
    except (ImportError, AttributeError, OSError) as error:
        raise ExtraNotInstalled(_cannot_draw(backend, error)) from error
    return mujoco


class Camera:
    """Draws the scenes of one model.

    Args:
        xml: The model, with a camera `c`.
        size: Height and width of the pictures.

    Attributes:
        mujoco: The package.
        model: What there is, which may be changed in place between pictures.
        data: Where it is.

    Raises:
        ExtraNotInstalled: As `load_mujoco`, or what draws does not start.
    """

    def __init__(self, xml: str, size: int) -> None:
        self.mujoco = load_mujoco()
        self.model = self.mujoco.MjModel.from_xml_string(xml)
        self.data = self.mujoco.MjData(self.model)
        self._size = size
        self._types = [getattr(self.mujoco.mjtGeom, f"mjGEOM_{kind.upper()}") for kind in KINDS]
        self.mujoco.mj_forward(self.model, self.data)
        self._colors = self._renderer()
        self._ids = None

    def picture(self) -> np.ndarray:
        """Returns the picture of the model as it is now: bytes with shape $(3, H, W)$."""
        self.mujoco.mj_kinematics(self.model, self.data)
        self.mujoco.mj_camlight(self.model, self.data)
        self._colors.update_scene(self.data, camera="c")
        return self._colors.render().transpose(2, 0, 1)

    def solids(self) -> np.ndarray:
        """Returns which solid each pixel of the last picture shows: identities with shape $(H, W)$, -1 for none."""
        if self._ids is None:
            self._ids = self._renderer()
            self._ids.enable_segmentation_rendering()
        self._ids.update_scene(self.data, camera="c")
        return self._ids.render()[..., 0]

    def mask(self, solids: Sequence[int]) -> np.ndarray:
        """Returns the mask of the last picture, bytes with shape $(H, W)$: $i$ for the $i$-th of some solids, 0 for all else."""
        order = np.zeros(self.model.ngeom + 1, np.uint8)  # the last for what is -1
        order[list(solids)] = np.arange(1, len(solids) + 1)
        return order[self.solids()]

    def solid(self, name: str) -> int:
        """Returns the identity of a solid."""
        return self.model.geom(name).id

    def put(self, solid: int, kind: int, where: np.ndarray, half: float, color: np.ndarray) -> None:
        """Puts a solid on the floor.

        Args:
            solid: Its identity.
            kind: Its class in `KINDS`.
            where: Its middle on the floor, two numbers.
            half: Half of its height and width.
            color: Red, green and blue in [0, 1].

        Raises:
            OptionError: The half is not positive.
        """
        if not half > 0:
            raise OptionError(f"The half width of a solid must be positive, got {half}.")
        model = self.model
        model.geom_type[solid] = self._types[kind]
        model.geom_size[solid] = half
        model.geom_rbound[solid] = 2 * half  # beyond the corners, so that the camera does not leave it out
        model.geom_pos[solid] = (where[0], where[1], half)
        model.geom_rgba[solid, :3] = color

    def light_from(self, azimuth: np.ndarray, height: float) -> None:
        """Turns the lamp, which is far away.

        Args:
            azimuth: Where it stands, seen from above: cosine and sine.
            height: Its angle above the floor, in radians.
        """
        from_middle = np.array([np.cos(height) * azimuth[0], np.cos(height) * azimuth[1], np.sin(height)])
        self.model.light_dir[0] = -from_middle
        self.model.light_pos[0] = 4 * from_middle  # the map of shadows is drawn from there

    def hide(self, solid: int) -> None:
        """Puts a solid far below the floor."""
        self.model.geom_pos[solid] = (0, 0, -20)

    def close(self) -> None:
        """Gives back what draws; OSMesa complains at exit otherwise."""
        for renderer in (self._colors, self._ids):
            if renderer is not None:
                with suppress(Exception):
                    renderer.close()

    def _renderer(self):
        try:
            return self.mujoco.Renderer(self.model, self._size, self._size)
        except Exception as error:  # the back ends raise errors of their own, and plain ones
            raise ExtraNotInstalled(_cannot_draw(os.environ.get("MUJOCO_GL", ""), error)) from error


def _load_triton_first() -> None:
    """Triton and Mesa's software renderer each bring an LLVM; loaded after Mesa's, Triton's ends the process without a word."""
    with suppress(ImportError):
        importlib.import_module("triton")


def _cannot_draw(backend: str, error: BaseException) -> str:
    packages = _PACKAGES.get(backend)
    other = next(name for name in _PACKAGES if name != backend)
    advice = f"On Debian or Ubuntu `apt-get install {packages}`, or " if packages else ""
    return (
        f"MuJoCo cannot draw by MUJOCO_GL={backend} on {sys.platform}: {error}. {advice}set MUJOCO_GL={other} "
        f"(packages {_PACKAGES[other]}) before Python starts."
    )
