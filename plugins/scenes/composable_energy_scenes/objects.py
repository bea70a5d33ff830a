"""The world `objects`: several solids on a floor, with masks; in the spirit of CLEVR (Johnson et al., 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

import numpy as np

from composable_energy.errors import OptionError
from composable_energy_image.data import Field, Scenes, World
from composable_energy_scenes.one_object import COLORS, PALETTE
from composable_energy_scenes.renderer import FLOOR_CELL, HEAD, KINDS, Camera, picture_size
from composable_energy_scenes.projection import View, visible

__all__ = ["Objects"]

_MOST = 10
_TRIES = 1_000
_SEEN = 16 / 64**2  # of the picture, by rays through the middles of pixels; what renders may find a few pixels less
_GAP = 0.06  # between the circles in which two objects stand
_HEIGHT = np.radians(60)  # of the lamp above the floor
_VIEW = View((0.0, -3.5, 3.5), 46.0, 35.0)


def _xml(most: int, shadows: bool) -> str:
    solids = "".join(f'<geom name="solid{i}" type="box" size="0.2 0.2 0.2" pos="1 1 1" material="solid"/>' for i in range(most))
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
  {solids}
  {_VIEW.xml()}
</worldbody></mujoco>
"""


class Objects(World):
    """Solids that stand apart on a floor of varying grey, with shadows or without.

    Each covers at least 12 of the pixels of a picture of 64 x 64; scenes in which one is hidden more than that are drawn again. The
    scenes of a seed are the same at every `size`.

    Args:
        size: Height and width of the pictures.
        count: The least and the largest number of objects, at most 10.
        shapes: The shapes that are drawn, names among box, sphere and cylinder.
        sizes: The least and the largest half width, between 0.1 and 0.5 in the units of positions.
        shadows: Whether solids cast them.

    Raises:
        OptionError: An option is out of range.
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
        self.size = picture_size(size)
        self.count, self.shapes, self.sizes, self.shadows = tuple(count), tuple(shapes), tuple(sizes), shadows
        if len(self.count) != 2 or not 1 <= self.count[0] <= self.count[1] <= _MOST:
            raise OptionError(f"count is the least and the largest number of objects, 1 to {_MOST}, got {count!r}.")
        if not self.shapes or not set(self.shapes) <= set(KINDS):
            raise OptionError(f"shapes are names among {', '.join(KINDS)}, got {shapes!r}.")
        if len(self.sizes) != 2 or not 0.1 <= self.sizes[0] <= self.sizes[1] <= 0.5:
            raise OptionError(f"sizes are the least and the largest half width, between 0.1 and 0.5, got {sizes!r}.")
        most = self.count[1]
        self.fields = MappingProxyType(
            {
                "present": Field((most,), "bool", "whether there is an i-th object; those that are come first, the others are all 0"),
                "position": Field((most, 2), "float32", "their middles on the floor, right and away, each in [-1, 1]"),
                "size": Field((most,), "float32", f"half of their widths, {self.sizes[0]} to {self.sizes[1]} in the units of positions"),
                "shape": Field((most,), "int64", "their shapes", KINDS),
                "color": Field((most,), "int64", "their colors", COLORS),
                "light": Field((2,), "float32", "where the lamp stands: the cosine and sine of its azimuth, 0 on the right"),
                "floor": Field((3,), "float32", "red, green and blue of the floor, 0.30 to 0.44"),
            }
        )

    def render(self, labels: Mapping[str, np.ndarray], *, masks: bool = False) -> Scenes:
        told = self.checked(labels)
        n, camera = len(told["floor"]), self._camera
        solids, floor = [camera.solid(f"solid{i}") for i in range(self.count[1])], camera.solid("floor")
        images = np.empty((n, 3, self.size, self.size), np.uint8)
        found = np.empty((n, self.size, self.size), np.uint8) if masks else None
        for i in range(n):
            for k, solid in enumerate(solids):
                if told["present"][i, k]:
                    camera.put(solid, told["shape"][i, k], told["position"][i, k], told["size"][i, k], PALETTE[told["color"][i, k]])
                else:
                    camera.hide(solid)
            camera.model.geom_rgba[floor, :3] = told["floor"][i]
            camera.light_from(told["light"][i], _HEIGHT)
            images[i] = camera.picture()
            if found is not None:
                found[i] = camera.mask(solids)
        return Scenes(images, told, found)

    def one(self, random: np.random.Generator) -> dict[str, object]:
        azimuth, floor = random.uniform(0, 2 * np.pi), random.uniform(0.32, 0.42) + random.uniform(-0.02, 0.02, 3)
        n = int(random.integers(self.count[0], self.count[1], endpoint=True))
        solids = next((found for _ in range(_TRIES) if (found := self._solids(random, n))), None)
        if solids is None:
            raise OptionError(f"{n} objects with sizes up to {self.sizes[1]} do not fit on the floor: take fewer or smaller ones.")
        padded = {name: np.concatenate([value, np.zeros((self.count[1] - n, *value.shape[1:]))]) for name, value in solids.items()}
        present = np.arange(self.count[1]) < n
        return {**padded, "present": present, "light": (np.cos(azimuth), np.sin(azimuth)), "floor": floor}

    def _solids(self, random: np.random.Generator, n: int) -> dict[str, np.ndarray] | None:
        """Objects that stand apart; None if the draws did not, or if one is hidden."""
        size = random.uniform(self.sizes[0], self.sizes[1], n)
        shape = np.array([KINDS.index(name) for name in self.shapes])[random.integers(len(self.shapes), size=n)]
        reach = size * np.where(shape == KINDS.index("box"), np.sqrt(2), 1)
        position = np.empty((0, 2))
        for i in range(n):
            tries = random.uniform(-1, 1, (30, 2))
            apart = (np.linalg.norm(tries[:, None] - position, axis=2) > reach[i] + reach[:i] + _GAP).all(1)
            if not apart.any():
                return None
            position = np.concatenate([position, tries[apart.argmax()][None]])
        if visible(_VIEW, shape, position, size).min() < _SEEN * 64**2:
            return None
        return {"position": position, "size": size, "shape": shape, "color": random.integers(len(COLORS), size=n)}

    @cached_property
    def _camera(self) -> Camera:
        return Camera(_xml(self.count[1], self.shadows), self.size)
