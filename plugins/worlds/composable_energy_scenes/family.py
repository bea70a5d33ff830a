"""The family `scenes`: a base energy of pictures of one object, and named events over it."""

from __future__ import annotations

import math
from pathlib import Path

import composable_energy as ce
from composable_energy.errors import PluginNotFound
from composable_energy_scenes import weights
from composable_energy_scenes.concepts import Concepts, load_concepts
from composable_energy_scenes.one_object import COLORS, SIZES
from composable_energy_scenes.renderer import KINDS

_MIDDLE = sum(SIZES) / 2
_PLACES = {"left": (0, -1), "right": (0, 1), "front": (1, -1), "back": (1, 1)}
_SIZES = {"small": -1, "large": 1}


class SceneFamily(ce.EnergyFamily):
    """Rendered scenes of objects and their attributes; weights are loaded once, on first use.

    `scenes` is the base. Members are events over it: `scenes/color=red`, `scenes/shape=box`, `scenes/left` (half of the floor),
    `scenes/large` (half of the sizes) and so on. For events at any position or size use `composable_energy_scenes.load_concepts`.

    Args:
        folder: The folder of the weights; None for those of the package.

    Example:
        >>> import composable_energy as ce
        >>> images = (ce.get("energy", "scenes/left") & ~ce.get("energy", "scenes/color=red")).sample(4, seed=0)
    """

    comes_trained = True

    def __init__(self, folder: str | None = None) -> None:
        self._folder = weights.FOLDER if folder is None else Path(folder)

    def members(self) -> tuple[str, ...]:
        """Returns the names of the events, without loading weights."""
        return (*(f"color={color}" for color in COLORS), *(f"shape={kind}" for kind in KINDS), *_PLACES, *_SIZES)

    def load(self, member: str | None) -> ce.Energy:
        """Returns the energy of an event, or the base for None.

        Raises:
            PluginNotFound: There is no such event.
        """
        concepts = load_concepts(self._folder)
        if member is None:
            return concepts.base
        if member not in self.members():
            raise PluginNotFound(f"The family scenes has no event {member!r}; known are {', '.join(self.members())}.")
        name, _, value = member.partition("=")
        if value:
            return concepts.color(value) if name == "color" else concepts.shape(value)
        return _half_space(concepts, member)


def _half_space(concepts: Concepts, name: str) -> ce.Energy:
    if name in _SIZES:
        low, high = (-math.inf, _MIDDLE) if _SIZES[name] < 0 else (_MIDDLE, math.inf)
        event = concepts.size.between(low, high)
    else:
        axis, sign = _PLACES[name]
        low, high = [-math.inf, -math.inf], [math.inf, math.inf]
        (high if sign < 0 else low)[axis] = 0.0
        event = concepts.position.between(low, high)
    event.name = name
    return event
