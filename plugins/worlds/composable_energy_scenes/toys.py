"""Toys: objects of several solids, for the world `objects`, like those of CLEVR Toy (Du et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from composable_energy_scenes.renderer import KINDS, Camera

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
    "truck": (
        Part("box", (-0.28, 0, 0.85), (0.7, 0.55, 0.6)),
        Part("box", (0.7, 0, 0.62), (0.28, 0.5, 0.37), _GREY),
        *_WHEELS,
    ),
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
