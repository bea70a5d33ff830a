"""The trained energies of pictures of one to four objects, and the detector that judges them."""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path

import numpy as np

from composable_energy.errors import OptionError
from composable_energy_scenes import weights
from composable_energy_scenes.detector import Detector
from composable_energy_scenes.objects import Objects
from composable_energy_scenes.patches import PatchEnergy
from composable_energy_scenes.presence import PlaceHead, Presence

__all__ = ["COUNT", "FOLDER", "SEVERAL_SIZES", "Several", "load_detector", "load_several", "several_objects", "told_of"]

COUNT = (1, 4)
"""The least and the largest number of objects of a picture."""

SEVERAL_SIZES = (0.22, 0.30)
"""The least and the largest half width of an object, in the units of positions."""

FOLDER = weights.FOLDER / "several"


class Several:
    """Energies of pictures of one to four objects; weights are read when first asked for.

    Args:
        folder: Where the weights lie.

    Example:
        >>> from composable_energy_scenes import load_several
        >>> several = load_several()
        >>> images = (several.presence.near((-0.5, 0.3)) & several.presence.near((0.6, -0.2))).sample(4, seed=0)
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    @cached_property
    def base(self) -> PatchEnergy:
        """The energy of any picture."""
        base = PatchEnergy()
        weights.read(base.coder, "coder", self.folder)
        weights.read(base.net, "base", self.folder)
        return base.eval()

    @cached_property
    def presence(self) -> Presence:
        """That an object stands near a place, the condition `c`."""
        return Presence(weights.read(PlaceHead(self.base.sigma_min), "place", self.folder), self.base)


@cache
def load_several(folder: Path = FOLDER) -> Several:
    """Returns the trained energies; those of one folder are one object, so their expressions share a base."""
    return Several(folder)


@cache
def load_detector(folder: Path = FOLDER) -> Detector:
    """Returns the trained detector."""
    return weights.read(Detector(), "detector", folder)


def several_objects(**changes: object) -> Objects:
    """Returns the world of these pictures, `Objects` with one to four of about one size, without shadows; or with other options."""
    return Objects(**{"count": COUNT, "sizes": SEVERAL_SIZES, "shadows": False, **changes})  # pyright: ignore[reportArgumentType]


def told_of(present: np.ndarray, position: np.ndarray, seed: int) -> np.ndarray:
    """Returns the position of one object of each picture, drawn by chance: all that training is told of it.

    Args:
        present: Which objects there are, with shape $(N, K)$.
        position: Their positions, with shape $(N, K, 2)$.
        seed: Of the draw.

    Raises:
        OptionError: A picture has no object.
    """
    if not present.any(1).all():
        raise OptionError("Each picture needs an object of which to tell.")
    chance = np.random.default_rng([seed, 1]).random(present.shape)
    return position[np.arange(len(present)), np.where(present, chance, -1.0).argmax(1)]
