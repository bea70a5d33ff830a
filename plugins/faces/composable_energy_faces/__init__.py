"""Drawn faces with known attributes, and trained energies over them."""

from .draw import ATTRIBUTES, HAIR_COLORS, Drawn, draw
from .energies import Faces
from .judge import Verdict, judge

__all__ = ["ATTRIBUTES", "HAIR_COLORS", "Drawn", "Faces", "Verdict", "draw", "judge"]
