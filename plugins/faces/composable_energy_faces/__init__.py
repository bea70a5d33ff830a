"""Drawn faces with known attributes, and trained energies over them."""

from composable_energy_faces.draw import ATTRIBUTES, HAIR_COLORS, Drawn, draw
from composable_energy_faces.energies import Faces
from composable_energy_faces.judge import Verdict, judge

__all__ = ["ATTRIBUTES", "HAIR_COLORS", "Drawn", "Faces", "Verdict", "draw", "judge"]
