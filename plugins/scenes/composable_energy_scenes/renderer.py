"""Pictures by MuJoCo, without a screen.

Two of MuJoCo's defaults make small pictures twenty times slower than they need be: a shadow map of 4096 x 4096, and floors that are drawn
as a mesh whose cells have the size of the third number of a plane's size. `HEAD` and `FLOOR_CELL` are what avoids both.
"""

from __future__ import annotations

import atexit
import ctypes.util
import importlib
import os
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

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

_INSTALL = (
    "On Debian or Ubuntu install one of two: `apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri` (MUJOCO_GL=egl) or "
    "`apt-get install libosmesa6` (MUJOCO_GL=osmesa)"
)


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

    What draws is that of the environment variable `MUJOCO_GL`; on Linux, where it is not set, EGL or else OSMesa, whichever is installed.

    Raises:
        ExtraNotInstalled: MuJoCo is not installed, or nothing that draws is.
    """
    _load_triton_first()
    if not os.environ.get("MUJOCO_GL") and sys.platform == "linux" and "mujoco" not in sys.modules:
        os.environ["MUJOCO_GL"] = _found()  # MuJoCo reads it when it is imported
    os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's threads cost more than they gain on pictures this small
    try:
        import mujoco
    except Exception as error:  # MuJoCo and what it draws by raise what they like
        if isinstance(error, ModuleNotFoundError) and error.name == "mujoco":
            raise ExtraNotInstalled("This world is drawn by MuJoCo: `pip install 'composable-energy[scenes]'`.") from error
        raise ExtraNotInstalled(_cannot_draw(error)) from error
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
        self._renderers: list[Any] = []
        self._colors = self._renderer()
        self._ids = None
        # What was registered last is called first: before MuJoCo gives back EGL's display, and while what OSMesa needs is still there.
        atexit.register(_close, weakref.ref(self))

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

    def _renderer(self) -> Any:
        try:
            renderer = self.mujoco.Renderer(self.model, self._size, self._size)
        except Exception as error:  # what draws raises errors of its own, and plain ones
            raise ExtraNotInstalled(_cannot_draw(error)) from error
        self._renderers.append(renderer)
        return renderer


def _close(camera: weakref.ref[Camera]) -> None:
    for renderer in getattr(camera(), "_renderers", ()):
        renderer.close()


def _load_triton_first() -> None:
    """Triton and Mesa's software renderer each bring an LLVM; loaded after Mesa's, Triton's ends the process without a word."""
    with suppress(ImportError):
        importlib.import_module("triton")


def _found() -> str:
    """The first that is installed; EGL counts if it finds a device, for its library alone draws nothing."""
    if (library := ctypes.util.find_library("EGL")) and _devices(library):
        return "egl"
    if ctypes.util.find_library("OSMesa"):
        return "osmesa"
    raise ExtraNotInstalled(f"Nothing is installed that draws without a screen. {_INSTALL}.")


def _devices(library: str) -> int:
    egl, count = ctypes.CDLL(library), ctypes.c_int(0)
    egl.eglGetProcAddress.restype, egl.eglGetProcAddress.argtypes = ctypes.c_void_p, (ctypes.c_char_p,)
    if address := egl.eglGetProcAddress(b"eglQueryDevicesEXT"):
        query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
        query(0, None, ctypes.byref(count))
    return count.value


def _cannot_draw(error: BaseException) -> str:
    backend = os.environ.get("MUJOCO_GL", "")
    way = "Set it to one that can before MuJoCo is imported"
    return f"MuJoCo cannot draw by MUJOCO_GL={backend} on {sys.platform}: {error}. {way}. {_INSTALL}."
