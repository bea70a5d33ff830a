"""Rendered worlds with labels and masks, and energies of what is in their pictures."""

from composable_energy_scenes.concepts import Concepts, load_concepts, load_judge
from composable_energy_scenes.family import SceneFamily
from composable_energy_scenes.judge import Judge, Verdict, judged
from composable_energy_scenes.objects import Objects
from composable_energy_scenes.one_object import COLORS, PALETTE, SIZES, OneObject
from composable_energy_scenes.rendering import KINDS

__all__ = [
    "COLORS",
    "KINDS",
    "PALETTE",
    "SIZES",
    "Concepts",
    "Judge",
    "Objects",
    "OneObject",
    "SceneFamily",
    "Verdict",
    "judged",
    "load_concepts",
    "load_judge",
]
