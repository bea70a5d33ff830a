"""Off-screen rendering by MuJoCo.

Two of MuJoCo's defaults make small pictures twenty times slower: a shadow map of 4096 x 4096, and floors as fine meshes, with cells of the
third number of a plane's size. `HEAD` and `FLOOR_CELL` avoid both.
"""

import atexit
import ctypes.util
import importlib
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np

from composable_energy.errors import ExtraNotInstalled, OptionError

FLOOR_CELL = 8.0
"""The size of the cells of a floor: that of the floor."""

HEAD = """
<visual>
  <quality shadowsize="512" offsamples="4" numslices="24" numstacks="12"/>
  <global offwidth="256" offheight="256"/>
  <map znear="0.01" zfar="40" shadowclip="1"/>
  <headlight ambient="{ambient} {ambient} {ambient}" diffuse="{fill} {fill} {fill}" specular="0 0 0"/>
</visual>
"""
"""The settings of all worlds; `ambient` and `fill` are the ambient light and the light from the camera."""

KINDS = ("box", "sphere", "cylinder")
"""The solids of the worlds, as classes 0, 1 and 2."""

_INSTALL = (
    "On Debian or Ubuntu install one of two: `apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri` (MUJOCO_GL=egl) or "
    "`apt-get install libosmesa6` (MUJOCO_GL=osmesa)"
)


def check_picture_size(size: int) -> int:
    """Returns the height and width of pictures, 8 to 256."""
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or not 8 <= size <= 256:
        raise OptionError(f"size must be the height and width of pictures, a whole number from 8 to 256, got {size!r}.")
    return int(size)


def load_mujoco() -> ModuleType:
    """Imports MuJoCo for off-screen rendering by the backend `MUJOCO_GL`; on Linux, if it is not set, by EGL if installed, else OSMesa."""
    with suppress(ImportError):  # both Triton and Mesa's software renderer contain LLVM, and importing Triton later crashes the process
        importlib.import_module("triton")
    if not os.environ.get("MUJOCO_GL") and sys.platform == "linux" and "mujoco" not in sys.modules:
        os.environ["MUJOCO_GL"] = _find_backend()  # MuJoCo reads it at import
    os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's threads cost more than they gain on pictures this small
    try:
        import mujoco
    except Exception as error:  # MuJoCo and its backends do not document their errors
        if isinstance(error, ModuleNotFoundError) and error.name == "mujoco":
            raise ExtraNotInstalled("This world needs MuJoCo: `pip install 'composable-energy-worlds[mujoco]'`.") from error
        raise ExtraNotInstalled(_render_error(error)) from error
    return mujoco


class Camera:
    """Renders the scenes of one MuJoCo model with a camera named `c`, which may be changed in place between pictures."""

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
        # Exit handlers run in reverse order: this one runs before MuJoCo frees EGL's display, and while OSMesa is still loaded.
        atexit.register(_close, weakref.ref(self))

    def picture(self) -> np.ndarray:
        """Renders the current model: bytes with shape $(3, H, W)$."""
        self.mujoco.mj_kinematics(self.model, self.data)
        self.mujoco.mj_camlight(self.model, self.data)
        self._colors.update_scene(self.data, camera="c")
        return self._colors.render().transpose(2, 0, 1)

    def mask(self, solids: Sequence[int]) -> np.ndarray:
        """Returns the mask of the last picture, bytes with shape $(H, W)$: $i$ for the $i$-th of the given solids, 0 elsewhere."""
        if self._ids is None:
            self._ids = self._renderer()
            self._ids.enable_segmentation_rendering()
        self._ids.update_scene(self.data, camera="c")
        order = np.zeros(self.model.ngeom + 1, np.uint8)  # the last entry is for pixels of no solid, -1
        order[list(solids)] = np.arange(1, len(solids) + 1)
        return order[self._ids.render()[..., 0]]

    def draw(self, n: int, arrange: Callable[[int], None], solids: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns pictures, bytes with shape $(N, 3, H, W)$, and the masks of some solids, with shape $(N, H, W)$; no masks for None.
        `arrange` changes the model for the picture of an index."""
        images = np.empty((n, 3, self._size, self._size), np.uint8)
        masks = None if solids is None else np.empty((n, self._size, self._size), np.uint8)
        for i in range(n):
            arrange(i)
            images[i] = self.picture()
            if masks is not None and solids is not None:
                masks[i] = self.mask(solids)
        return images, masks

    def solid(self, name: str) -> int:
        """Returns the id of a solid."""
        return self.model.geom(name).id

    def put(self, solid: int, kind: int, where: np.ndarray, half: float, color: np.ndarray) -> None:
        """Puts a solid of a class in `KINDS` on the floor; `half` is half of its height and width, and `color` is in [0, 1]."""
        if not half > 0:
            raise OptionError(f"The half width of a solid must be positive, got {half}.")
        model = self.model
        model.geom_type[solid] = self._types[kind]
        model.geom_size[solid] = half
        model.geom_rbound[solid] = 2 * half  # beyond the corners, so that it is not culled
        model.geom_pos[solid] = (where[0], where[1], half)
        model.geom_rgba[solid, :3] = color

    def light_from(self, azimuth: np.ndarray, height: float) -> None:
        """Sets the direction of the distant lamp: cosine and sine of its azimuth, and the angle above the floor, in radians."""
        direction = np.array([np.cos(height) * azimuth[0], np.cos(height) * azimuth[1], np.sin(height)])
        self.model.light_dir[0] = -direction
        self.model.light_pos[0] = 4 * direction  # the viewpoint of the shadow map

    def hide(self, solid: int) -> None:
        """Hides a solid far below the floor."""
        self.model.geom_pos[solid] = (0, 0, -20)

    def _renderer(self) -> Any:
        try:
            renderer = self.mujoco.Renderer(self.model, self._size, self._size)
        except Exception as error:  # backends do not document their errors
            raise ExtraNotInstalled(_render_error(error)) from error
        self._renderers.append(renderer)
        return renderer


def _close(camera: weakref.ref[Camera]) -> None:
    for renderer in getattr(camera(), "_renderers", ()):
        renderer.close()


def _find_backend() -> str:
    """Returns the first installed backend. EGL needs a device, too."""
    if (library := ctypes.util.find_library("EGL")) and _count_devices(library):
        return "egl"
    if ctypes.util.find_library("OSMesa"):
        return "osmesa"
    raise ExtraNotInstalled(f"No backend for off-screen rendering is installed. {_INSTALL}.")


def _count_devices(library: str) -> int:
    egl, count = ctypes.CDLL(library), ctypes.c_int(0)
    egl.eglGetProcAddress.restype, egl.eglGetProcAddress.argtypes = ctypes.c_void_p, (ctypes.c_char_p,)
    if address := egl.eglGetProcAddress(b"eglQueryDevicesEXT"):
        query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
        query(0, None, ctypes.byref(count))
    return count.value


def _render_error(error: BaseException) -> str:
    backend = os.environ.get("MUJOCO_GL", "")
    advice = "Set it to a working backend before MuJoCo is imported"
    return f"MuJoCo cannot render with MUJOCO_GL={backend} on {sys.platform}: {error}. {advice}. {_INSTALL}."
