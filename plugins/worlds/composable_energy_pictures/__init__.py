"""The families `fashion` and `type`: energies of real pictures of clothes, and of letters of fonts.

The recipe `base-and-attributes` trained them; `MODEL_CARD.md` has the commands and scores. The weights of a family are one saved
expression, the conjunction of its energies, which share base, heads and decoder. They are in half precision on disk.
"""

from abc import ABC
from functools import cached_property
from pathlib import Path
from string import ascii_lowercase
from typing import ClassVar

import torch

import composable_energy as ce
from composable_energy.errors import PluginNotFound

__all__ = ["WEIGHTS", "Clothes", "Letters"]

WEIGHTS = Path(__file__).parent / "weights"
"""The folder with a folder of weights for each family."""


class _Pictures(ce.EnergyFamily, ABC):
    """Abstract family of one saved expression; weights are loaded once, on first use."""

    comes_trained = True
    name: ClassVar[str]
    attributes: ClassVar[tuple[str, ...]]

    def members(self) -> tuple[str, ...]:
        return self.attributes

    def load(self, member: str | None) -> ce.Energy:
        if member is not None and member not in self.attributes:
            raise PluginNotFound(f"The family {self.name} has no attribute {member!r}; known are {', '.join(self.attributes)}.")
        return self._energies["base" if member is None else member]

    @cached_property
    def _energies(self) -> dict[str, ce.Energy]:
        whole = ce.load(WEIGHTS / self.name).to(torch.get_default_dtype()).requires_grad_(False)
        energies = {term.name: term for term in whole.terms}
        energies["base"].name = self.name
        return energies


class Clothes(_Pictures):
    """Grey pictures of clothes, 28 x 28, and their attributes: those of Fashion-MNIST, and `bright` and `wide`.

    Example:
        >>> import composable_energy as ce
        >>> images = (ce.load("fashion/dress") & ~ce.load("fashion/wide")).sample(16, seed=0)
    """

    name = "fashion"
    attributes = ("footwear", "upper", "dress", "trousers", "bag", "bright", "wide")


class Letters(_Pictures):
    """White letters of fonts on black, 64 x 64, and their attributes: `letter=a` to `letter=z`, `capital`, and the style of the font.

    Example:
        >>> import composable_energy as ce
        >>> images = (ce.load("type/letter=a") & ce.load("type/bold")).sample(16, seed=0)
    """

    name = "type"
    attributes = ("capital", "bold", "italic", "serif", "monospaced", "handwritten", *(f"letter={letter}" for letter in ascii_lowercase))
