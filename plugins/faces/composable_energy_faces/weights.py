"""The shipped weights of the face energies, and functions to read and write them."""

from pathlib import Path

from composable_energy_image.weights import Network, read_weights
from composable_energy_image.weights import write_weights as write

__all__ = ["FOLDER", "read", "write"]

FOLDER = Path(__file__).parent / "weights"
"""The folder of the weights that come with the package."""

_RENAMED = {"to_64": "to_pixels"}  # a layer of the autoencoder that was renamed after the shipped weights were written


def read(network: Network, part: str, folder: Path = FOLDER) -> Network:
    """Loads weights into a network; see `read_weights`."""
    return read_weights(network, part, folder, renamed=_RENAMED)
