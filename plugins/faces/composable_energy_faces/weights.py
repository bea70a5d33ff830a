"""The shipped weights of the face energies, and functions to read and write them."""

from pathlib import Path

from composable_energy_image.weights import read_weights as read
from composable_energy_image.weights import write_weights as write

__all__ = ["FOLDER", "read", "write"]

FOLDER = Path(__file__).parent / "weights"
"""The folder of the weights that come with the package."""
