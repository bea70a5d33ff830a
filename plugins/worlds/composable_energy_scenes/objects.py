"""The world `objects`: several solids or toys on a floor, with masks, similar to CLEVR (Johnson et al., 2017)."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from composable_energy.errors import OptionError
from composable_energy.options import check_flag, check_integer
from composable_energy_image.data import Field, Scenes, World
from composable_energy_scenes.one_object import COLORS, PALETTE
from composable_energy_scenes.projection import CameraView, count_visible_pixels
from composable_energy_scenes.renderer import FLOOR_CELL, HEAD, KINDS, Camera, check_picture_size

_WHITE, _GREY, _DARK = (0.85, 0.85, 0.85), (0.6, 0.6, 0.6), (0.1, 0.1, 0.1)


class Part(NamedTuple):
    """A solid of a toy, in half widths of the toy."""

    kind: str  # a solid of MuJoCo
    at: tuple[float, float, float]  # its centre: right, away and up, from the middle of the toy on the floor
    size: tuple[float, ...]  # its half sizes, as MuJoCo reads them
    color: tuple[float, float, float] | None = None  # None for the color of the toy


_WHEELS = tuple(Part("ellipsoid", (right, away, 0.28), (0.28, 0.14, 0.28), _DARK) for right in (-0.5, 0.6) for away in (-0.5, 0.5))

_PARTS: Mapping[str, Sequence[Part]] = {
    "pin": (
        Part("ellipsoid", (0, 0, 0.75), (0.6, 0.6, 0.75)),
        Part("cylinder", (0, 0, 1.12), (0.54, 0.1), _WHITE),
        Part("sphere", (0, 0, 1.68), (0.36,)),
    ),
    "truck": (Part("box", (-0.28, 0, 0.85), (0.7, 0.55, 0.6)), Part("box", (0.7, 0, 0.62), (0.28, 0.5, 0.37), _GREY), *_WHEELS),
    "table": (
        Part("cylinder", (0, 0, 1.3), (1.0, 0.15)),
        Part("cylinder", (0, 0, 0.6), (0.16, 0.6), _GREY),
        Part("cylinder", (0, 0, 0.08), (0.6, 0.08), _GREY),
    ),
    "snowman": (
        Part("sphere", (0, 0, 0.6), (0.62,)),
        Part("sphere", (0, 0, 1.35), (0.42,)),
        Part("cylinder", (0, 0, 1.72), (0.45, 0.05), _DARK),
        Part("cylinder", (0, 0, 1.88), (0.28, 0.2), _DARK),
    ),
}

TOYS = tuple(_PARTS)
"""The names of toys."""

SHAPES = (*KINDS, *TOYS)
"""Solids and toys; solids are the classes 0, 1 and 2, as in worlds without toys."""

OUTLINES = np.array([*range(len(KINDS)), *(KINDS.index(kind) for kind in ("cylinder", "box", "cylinder", "sphere"))])
"""The solid, as a class, that stands for each of the shapes where the world draws labels."""


def parts_of(shape: int) -> int:
    """Returns the number of solids of a class in `SHAPES`."""
    return len(_PARTS[SHAPES[shape]]) if shape >= len(KINDS) else 1


def put_shape(camera: Camera, solids: Sequence[int], shape: int, where: np.ndarray, half: float, color: np.ndarray) -> None:
    """Puts a shape, a class in `SHAPES`, on the floor, of at least as many solids as it has; see `Camera.put`."""
    if shape < len(KINDS):
        camera.put(solids[0], shape, where, half, color)
        return
    for solid, part in zip(solids, _PARTS[SHAPES[shape]], strict=False):
        camera.put(solid, 0, where, half, np.array(part.color or color))
        camera.model.geom_type[solid] = getattr(camera.mujoco.mjtGeom, f"mjGEOM_{part.kind.upper()}")
        camera.model.geom_size[solid, : len(part.size)] = np.array(part.size) * half
        camera.model.geom_pos[solid] = np.array(part.at) * half + (*where, 0)


_MOST = 10
_TRIES = 1_000
_LEAST_AREA = 16 / 64**2  # visible share of the picture by ray casting; a renderer may count a few pixels less
_GAP = 0.06  # between the bounding circles of two objects
_HEIGHT = np.radians(60)  # of the lamp above the floor
VIEW = CameraView((0.0, -3.5, 3.5), 46.0, 35.0)
"""The camera."""


def _xml(solids: int, shadows: bool) -> str:
    listed = "".join(f'<geom name="solid{i}" type="box" size="0.2 0.2 0.2" pos="1 1 1" material="solid"/>' for i in range(solids))
    return f"""
<mujoco>{HEAD.format(ambient=0.42, fill=0.1)}
<statistic extent="3"/>
<visual><map zfar="10" shadowclip="2"/></visual>
<asset>
  <material name="solid" specular="0.25" shininess="0.5" rgba="1 1 1 1"/>
  <material name="floor" specular="0" rgba="0.37 0.37 0.37 1"/>
</asset>
<worldbody>
  <light name="lamp" directional="true" castshadow="{str(shadows).lower()}" pos="0 0 4" dir="0 0 -1"
    diffuse="0.6 0.6 0.6" specular="0.3 0.3 0.3"/>
  <geom name="floor" type="plane" size="8 8 {FLOOR_CELL}" material="floor"/>
  {listed}
  {VIEW.xml()}
</worldbody></mujoco>
"""


class Objects(World):
    """Separate solids on a floor of varying grey, with or without shadows; or toys of several solids, or both.

    Each solid covers at least 12 pixels of a picture of 64 x 64; scenes with a more hidden one are redrawn. Of a toy its outline counts, a
    solid of its width and height. The scenes of a seed do not depend on `size`.

    Args:
        count: The smallest and the largest number of objects, at most 10.
        shapes: Names of shapes, among box, sphere and cylinder, and the toys pin, truck, table and snowman.
        sizes: The smallest and the largest half width, between 0.1 and 0.5 in the units of positions.
        shadows: Whether solids cast shadows.
    """

    name = "objects"

    def __init__(
        self,
        size: int = 64,
        count: tuple[int, int] = (3, 6),
        shapes: tuple[str, ...] = KINDS,
        sizes: tuple[float, float] = (0.16, 0.30),
        shadows: bool = True,
    ) -> None:
        self.size = check_picture_size(size)
        self.count = tuple(check_integer("count", end, 0) for end in count)
        self.shapes, self.sizes, self.shadows = tuple(shapes), tuple(sizes), check_flag("shadows", shadows)
        if len(self.count) != 2 or not 1 <= self.count[0] <= self.count[1] <= _MOST:
            raise OptionError(f"count must be the smallest and the largest number of objects, 1 to {_MOST}, got {count!r}.")
        if not self.shapes or not set(self.shapes) <= set(SHAPES):
            raise OptionError(f"shapes must be names among {', '.join(SHAPES)}, got {shapes!r}.")
        if len(self.sizes) != 2 or not 0.1 <= self.sizes[0] <= self.sizes[1] <= 0.5:
            raise OptionError(f"sizes must be the smallest and the largest half width, between 0.1 and 0.5, got {sizes!r}.")
        most, known = self.count[1], KINDS if set(self.shapes) <= set(KINDS) else SHAPES
        self._each = max(parts_of(shape) for shape in range(len(known)))  # solids; any labels of known shapes can be rendered
        self.fields = MappingProxyType(
            {
                "present": Field((most,), "bool", "whether the i-th object exists; existing objects come first, the others have values 0"),
                "position": Field((most, 2), "float32", "centres on the floor, right and away, each in [-1, 1]"),
                "size": Field((most,), "float32", f"half widths, {self.sizes[0]} to {self.sizes[1]} in the units of positions"),
                "shape": Field((most,), "int64", "shapes", known),
                "color": Field((most,), "int64", "colors", COLORS),
                "light": Field((2,), "float32", "direction of the lamp: cosine and sine of its azimuth, 0 on the right"),
                "floor": Field((3,), "float32", "color of the floor: red, green and blue, 0.30 to 0.44"),
            }
        )

    def render(self, labels: Mapping[str, np.ndarray], *, masks: bool = False) -> Scenes:
        values = self.check_labels(labels)
        camera, each = self._camera, self._each
        floor, solids = camera.solid("floor"), [camera.solid(f"solid{i}") for i in range(self.count[1] * each)]

        def arrange(i: int) -> None:
            for solid in solids:
                camera.hide(solid)
            for k in np.flatnonzero(values["present"][i]):
                where, half, color = values["position"][i, k], values["size"][i, k], PALETTE[values["color"][i, k]]
                put_shape(camera, solids[k * each : (k + 1) * each], int(values["shape"][i, k]), where, half, color)
            camera.model.geom_rgba[floor, :3] = values["floor"][i]
            camera.light_from(values["light"][i], _HEIGHT)

        images, found = camera.draw(len(values["floor"]), arrange, solids if masks else None)
        return Scenes(images, values, None if found is None else (found + np.uint8(each - 1)) // np.uint8(each))

    def sample_labels(self, random: np.random.Generator) -> dict[str, object]:
        azimuth, floor = random.uniform(0, 2 * np.pi), random.uniform(0.32, 0.42) + random.uniform(-0.02, 0.02, 3)
        n = int(random.integers(self.count[0], self.count[1], endpoint=True))
        if (solids := next((found for _ in range(_TRIES) if (found := self._sample_solids(random, n))), None)) is None:
            raise OptionError(f"{n} objects with sizes up to {self.sizes[1]} do not fit on the floor: use fewer or smaller ones.")
        padded = {name: np.concatenate([value, np.zeros((self.count[1] - n, *value.shape[1:]))]) for name, value in solids.items()}
        return {**padded, "present": np.arange(self.count[1]) < n, "light": (np.cos(azimuth), np.sin(azimuth)), "floor": floor}

    def _sample_solids(self, random: np.random.Generator, n: int) -> dict[str, np.ndarray] | None:
        """Returns separate objects; None if they do not fit, or if one is hidden."""
        size = random.uniform(self.sizes[0], self.sizes[1], n)
        shape = np.array([SHAPES.index(name) for name in self.shapes])[random.integers(len(self.shapes), size=n)]
        outline = OUTLINES[shape]
        reach = size * np.where(outline == KINDS.index("box"), np.sqrt(2), 1)
        position = np.empty((0, 2))
        for i in range(n):
            tries = random.uniform(-1, 1, (30, 2))
            if not (apart := (np.linalg.norm(tries[:, None] - position, axis=2) > reach[i] + reach[:i] + _GAP).all(1)).any():
                return None
            position = np.concatenate([position, tries[apart.argmax()][None]])
        if count_visible_pixels(VIEW, outline, position, size).min() < _LEAST_AREA * 64**2:
            return None
        return {"position": position, "size": size, "shape": shape, "color": random.integers(len(COLORS), size=n)}

    @cached_property
    def _camera(self) -> Camera:
        return Camera(_xml(self.count[1] * self._each, self.shadows), self.size)
