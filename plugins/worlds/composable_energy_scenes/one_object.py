"""The world `one-object`: one solid on a floor, with varying position, size, shape, color and lamp direction.

Positions, sizes and the three shapes have the ranges of the scenes of Compositional Visual Generation with Energy Based Models (Du et al.,
2020). There are eight colors, far from each other and from the floor, and the lamp's direction is a label.
"""

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

import numpy as np

from composable_energy_image.data import Field, Scenes, World
from composable_energy_scenes.renderer import FLOOR_CELL, HEAD, KINDS, Camera, check_picture_size

COLORS = ("red", "green", "blue", "yellow", "magenta", "cyan", "white", "black")
"""The colors of solids, as their classes."""

PALETTE = np.array(
    [
        [0.90, 0.08, 0.08],
        [0.10, 0.62, 0.12],
        [0.12, 0.20, 0.92],
        [0.95, 0.86, 0.08],
        [0.85, 0.10, 0.82],
        [0.08, 0.80, 0.86],
        [1.00, 1.00, 1.00],
        [0.06, 0.06, 0.06],
    ]
)
"""Red, green and blue of each of `COLORS`."""

SIZES = (0.3, 0.7)
"""The smallest and the largest half width of a solid, in the units of positions."""

_HEIGHT = np.radians(50)  # of the lamp above the floor
_XML = f"""
<mujoco>{HEAD.format(ambient=0.46, fill=0.1)}
<asset>
  <material name="solid" specular="0.25" shininess="0.5" rgba="1 1 1 1"/>
  <material name="floor" specular="0" rgba="0.37 0.37 0.37 1"/>
</asset>
<worldbody>
  <light name="lamp" directional="true" castshadow="false" dir="0 0 -1" diffuse="0.56 0.56 0.56" specular="0.3 0.3 0.3"/>
  <geom name="floor" type="plane" size="8 8 {FLOOR_CELL}" material="floor"/>
  <geom name="solid" type="box" size="0.5 0.5 0.5" pos="1 1 1" material="solid"/>
  <camera name="c" pos="0 -3.5 3.3" fovy="46" xyaxes="1 0 0 0 0.67 0.74"/>
</worldbody></mujoco>
"""


class OneObject(World):
    """One solid on a floor of varying grey."""

    name = "one-object"
    fields = MappingProxyType(
        {
            "position": Field((2,), "float32", "centre of the solid on the floor, right and away, each in [-1, 1]"),
            "size": Field((), "float32", "half width, 0.3 to 0.7 in the units of positions"),
            "shape": Field((), "int64", "shape", KINDS),
            "color": Field((), "int64", "color", COLORS),
            "light": Field((2,), "float32", "direction of the lamp: cosine and sine of its azimuth, 0 on the right"),
            "floor": Field((3,), "float32", "color of the floor: red, green and blue, 0.30 to 0.44"),
        }
    )

    def __init__(self, size: int = 64) -> None:
        self.size = check_picture_size(size)

    def sample_labels(self, random: np.random.Generator) -> dict[str, object]:
        azimuth = random.uniform(0, 2 * np.pi)
        return {
            "light": (np.cos(azimuth), np.sin(azimuth)),
            "position": random.uniform(-1, 1, 2),
            "size": random.uniform(*SIZES),
            "shape": random.integers(len(KINDS)),
            "color": random.integers(len(COLORS)),
            "floor": random.uniform(0.32, 0.42) + random.uniform(-0.02, 0.02, 3),
        }

    def render(self, labels: Mapping[str, np.ndarray], *, masks: bool = False) -> Scenes:
        values = self.check_labels(labels)
        camera = self._camera
        solid, floor = camera.solid("solid"), camera.solid("floor")

        def arrange(i: int) -> None:
            camera.put(solid, values["shape"][i], values["position"][i], values["size"][i], PALETTE[values["color"][i]])
            camera.model.geom_rgba[floor, :3] = values["floor"][i]
            camera.light_from(values["light"][i], _HEIGHT)

        images, found = camera.draw(len(values["size"]), arrange, [solid] if masks else None)
        return Scenes(images, values, found)

    @cached_property
    def _camera(self) -> Camera:
        return Camera(_XML, self.size)
