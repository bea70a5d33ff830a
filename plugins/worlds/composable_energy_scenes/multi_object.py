"""The trained energies of pictures of one to four objects, and the detector that evaluates them."""

from functools import cache, cached_property
from pathlib import Path

import numpy as np

from composable_energy.errors import OptionError
from composable_energy_scenes import weights
from composable_energy_scenes.judge import Detector
from composable_energy_scenes.objects import Objects
from composable_energy_scenes.patches import PatchEnergy
from composable_energy_scenes.presence import PlaceHead, Presence

COUNT = (1, 4)
"""The smallest and the largest number of objects in a picture."""

MULTI_OBJECT_SIZES = (0.22, 0.30)
"""The smallest and the largest half width of an object, in the units of positions."""

FOLDER = weights.FOLDER / "several"


class MultiObjectEnergies:
    """Trained energies of pictures of one to four objects; weights are loaded on first use.

    Example:
        >>> from composable_energy_scenes import load_multi_object
        >>> objects = load_multi_object()
        >>> images = (objects.presence.near((-0.5, 0.3)) & objects.presence.near((0.6, -0.2))).sample(4, seed=0)
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    @cached_property
    def base(self) -> PatchEnergy:
        base = PatchEnergy()
        weights.read(base.coder, "coder", self.folder)
        weights.read(base.net, "base", self.folder)
        return base.eval()

    @cached_property
    def presence(self) -> Presence:
        """The evidence that an object is near a position, the condition `c`."""
        return Presence(weights.read(PlaceHead(self.base.sigma_min), "place", self.folder), self.base)


@cache
def load_multi_object(folder: Path = FOLDER) -> MultiObjectEnergies:
    """Returns the trained energies. Calls with one folder return the same object, so that expressions share a base."""
    return MultiObjectEnergies(folder)


@cache
def load_detector(folder: Path = FOLDER) -> Detector:
    """Returns the trained detector."""
    return weights.read(Detector(), "detector", folder)


def multi_object_world(**changes: object) -> Objects:
    """Returns the world `Objects` with one to four objects of similar size and no shadows; keyword arguments override its options."""
    return Objects(**{"count": COUNT, "sizes": MULTI_OBJECT_SIZES, "shadows": False, **changes})  # pyright: ignore[reportArgumentType]


def draw_labelled_positions(present: np.ndarray, position: np.ndarray, seed: int) -> np.ndarray:
    """Returns the position of a random object of each picture, the only label of training, by existence $(N, K)$ and places $(N, K, 2)$."""
    if not present.any(1).all():
        raise OptionError("Each picture needs at least one object.")
    return position[np.arange(len(present)), np.where(present, np.random.default_rng([seed, 1]).random(present.shape), -1.0).argmax(1)]
