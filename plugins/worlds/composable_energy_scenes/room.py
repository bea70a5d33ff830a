"""The world `room`: a furnished room with a moving lamp and camera; seven factors, after Falcor3D (Nie et al., 2020).

Falcor3D has a distant light. The three numbers of its direction have only two degrees of freedom, so here the lamp has a position.
"""

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

import numpy as np

from composable_energy.errors import OptionError
from composable_energy_image.data import Field, Scenes, World
from composable_energy_scenes.renderer import FLOOR_CELL, HEAD, Camera, check_picture_size

ROOM_FACTORS = ("lamp intensity", "lamp x", "lamp y", "lamp z", "camera x", "camera y", "camera z")
"""The factors, in order: x is right, y away and z up."""

_INTENSITY = (0.25, 1.0)
_LAMP = np.array([[-1.5, 1.5], [-1.4, 1.0], [2.0, 3.2]])
_CAMERA = np.array([[-1.1, 1.1], [-4.6, -3.6], [1.3, 2.4]])

# Each solid: kind, color, middle, half sizes. The first are the walls.
_SOLIDS = (
    ("box", "0.75 0.72 0.66", "0 2.1 0.95", "2.3 0.05 0.95"),
    ("box", "0.62 0.70 0.72", "-2.25 0.4 0.95", "0.05 1.7 0.95"),
    ("box", "0.62 0.70 0.72", "2.25 0.4 0.95", "0.05 1.7 0.95"),
    ("cylinder", "0.55 0.20 0.22", "0.1 -0.1 0.02", "1.15 0.02"),  # a rug
    ("box", "0.20 0.32 0.58", "-1.35 1.0 0.24", "0.55 0.7 0.24"),  # a sofa: seat, back, two arms, a cushion
    ("box", "0.20 0.32 0.58", "-1.95 1.0 0.5", "0.12 0.7 0.5"),
    ("box", "0.17 0.28 0.52", "-1.4 1.8 0.36", "0.6 0.1 0.36"),
    ("box", "0.17 0.28 0.52", "-1.4 0.2 0.36", "0.6 0.1 0.36"),
    ("sphere", "0.92 0.78 0.25", "-1.45 1.4 0.66", "0.2"),
    ("cylinder", "0.50 0.33 0.18", "0.1 -0.1 0.5", "0.6 0.04"),  # a table with a foot, a bowl, a cup
    ("cylinder", "0.40 0.26 0.14", "0.1 -0.1 0.25", "0.09 0.25"),
    ("sphere", "0.85 0.30 0.20", "0.3 0.05 0.66", "0.14"),
    ("cylinder", "0.90 0.90 0.92", "-0.2 -0.25 0.63", "0.09 0.1"),
    ("box", "0.45 0.30 0.18", "1.75 1.3 1.0", "0.4 0.55 0.03"),  # a shelf: three boards, two sides
    ("box", "0.45 0.30 0.18", "1.75 1.3 0.5", "0.4 0.55 0.03"),
    ("box", "0.45 0.30 0.18", "1.75 1.3 1.5", "0.4 0.55 0.03"),
    ("box", "0.40 0.26 0.15", "1.75 1.88 0.76", "0.4 0.03 0.76"),
    ("box", "0.40 0.26 0.15", "1.75 0.72 0.76", "0.4 0.03 0.76"),
    ("box", "0.20 0.55 0.35", "1.7 1.5 1.19", "0.2 0.13 0.16"),  # things on the shelf
    ("sphere", "0.80 0.80 0.30", "1.65 1.1 0.68", "0.15"),
    ("box", "0.75 0.35 0.55", "1.7 1.35 1.68", "0.14 0.25 0.15"),
    ("box", "0.85 0.55 0.30", "0.2 2.04 1.3", "0.5 0.02 0.36"),  # a picture
    ("box", "0.25 0.45 0.55", "0.2 2.02 1.3", "0.42 0.02 0.28"),
    ("cylinder", "0.60 0.32 0.22", "0.55 1.6 0.18", "0.2 0.18"),  # a plant
    ("sphere", "0.18 0.48 0.20", "0.55 1.6 0.68", "0.36"),
    ("cylinder", "0.80 0.62 0.30", "1.35 -0.75 0.25", "0.27 0.25"),  # a stool
    ("sphere", "0.85 0.20 0.20", "-0.9 -0.9 0.22", "0.22"),  # a ball
)


def _xml() -> str:
    solids = "".join(
        f'<geom name="solid{i}" type="{kind}" rgba="{color} 1" pos="{middle}" size="{half}" material="solid"/>'
        for i, (kind, color, middle, half) in enumerate(_SOLIDS)
    )
    return f"""
<mujoco>{HEAD.format(ambient=0.32, fill=0.1)}
<statistic extent="3"/>
<visual><quality numslices="18" numstacks="9" numquads="3"/><map zfar="6" shadowscale="0.39"/></visual>
<asset>
  <texture type="skybox" builtin="flat" rgb1="0.72 0.80 0.88" rgb2="0.72 0.80 0.88" width="32" height="192"/>
  <material name="solid" specular="0.1" shininess="0.3" rgba="1 1 1 1"/>
  <material name="floor" specular="0" rgba="0.58 0.50 0.42 1"/>
</asset>
<worldbody>
  <light name="lamp" cutoff="180" exponent="0" attenuation="0.5 0 0.08"
    pos="0 0 2" dir="0 0 -1" castshadow="true" specular="0.3 0.3 0.3"/>
  <geom name="floor" type="plane" size="8 8 {FLOOR_CELL}" material="floor"/>
  {solids}
  <body name="aim" pos="0 0.6 0.55"/>
  <camera name="c" mode="targetbody" target="aim" pos="0 -4 2" fovy="49"/>
</worldbody></mujoco>
"""


class Room(World):
    """A room with fixed furniture and a moving lamp and camera; the camera always looks at one point.

    Masks number the solids in order: first the three walls, then the furniture; the floor is 0.
    """

    name = "room"
    fields = MappingProxyType({"factors": Field((len(ROOM_FACTORS),), "float32", f"{', '.join(ROOM_FACTORS)}, each in [0, 1]")})

    def __init__(self, size: int = 64) -> None:
        self.size = check_picture_size(size)

    def sample_labels(self, random: np.random.Generator) -> dict[str, object]:
        return {"factors": random.uniform(0, 1, len(ROOM_FACTORS))}

    def render(self, labels: Mapping[str, np.ndarray], *, masks: bool = False) -> Scenes:
        values = self.check_labels(labels)
        factors = values["factors"]
        if ((factors < 0) | (factors > 1)).any():
            raise OptionError(f"The factors of the room must each be in [0, 1], got {factors.min()} to {factors.max()}.")
        camera, model = self._camera, self._camera.model

        def arrange(i: int) -> None:
            model.light_diffuse[0] = np.interp(factors[i, 0], (0, 1), _INTENSITY)
            model.light_pos[0] = _interpolate(_LAMP, factors[i, 1:4])
            model.cam_pos[0] = _interpolate(_CAMERA, factors[i, 4:7])

        solids = [camera.solid(f"solid{i}") for i in range(len(_SOLIDS))]
        images, found = camera.draw(len(factors), arrange, solids if masks else None)
        return Scenes(images, values, found)

    @cached_property
    def _camera(self) -> Camera:
        return Camera(_xml(), self.size)


def _interpolate(ranges: np.ndarray, factors: np.ndarray) -> np.ndarray:
    return ranges[:, 0] + factors * (ranges[:, 1] - ranges[:, 0])
