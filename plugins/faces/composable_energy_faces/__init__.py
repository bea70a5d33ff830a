"""Drawn faces with known attributes, and trained energies of them."""

from composable_energy_faces.draw import ATTRIBUTES, HAIR_COLORS, DrawnFaces, draw
from composable_energy_faces.energies import Faces
from composable_energy_faces.judge import Verdict, judge
from composable_energy_faces.mapping import GeneratedFaces

__all__ = ["ATTRIBUTES", "HAIR_COLORS", "DrawnFaces", "Faces", "GeneratedFaces", "Verdict", "draw", "judge"]
