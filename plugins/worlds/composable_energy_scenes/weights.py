"""The shipped weights of the scene energies, and functions to read and write them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from torch import nn

from composable_energy_image.weights import read_weights, write_weights

FOLDER = Path(__file__).parent / "weights"
"""The folder of the weights that come with the package."""

Network = TypeVar("Network", bound=nn.Module)


def write(network: nn.Module, part: str, folder: Path = FOLDER) -> None:
    """Writes a network's weights; see `write_weights`."""
    write_weights(network, part, folder)


def read(network: Network, part: str, folder: Path = FOLDER) -> Network:
    """Loads weights into a network; see `read_weights`."""
    return read_weights(network, part, folder)
