"""Reading and writing trained weights: safetensors, half precision on disk, single precision in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from composable_energy.errors import FileFormatError

__all__ = ["FOLDER", "read", "write"]

FOLDER = Path(__file__).parent / "weights"
"""Where the weights lie that come with the package."""

Network = TypeVar("Network", bound=nn.Module)


def write(network: nn.Module, part: str, folder: Path = FOLDER) -> None:
    """Writes a network's weights in half precision; running statistics stay in single precision.

    Args:
        network: The network.
        part: Its name.
        folder: Where to write `part.safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().half().contiguous() for name, value in network.named_parameters()}
    tensors |= {name: value for name, value in network.state_dict().items() if name not in tensors and value.is_floating_point()}
    half = folder / f"{part}.half"
    save_file(tensors, half, metadata={"part": part})
    half.chmod(0o644)  # safetensors makes files that only their owner reads
    half.replace(folder / f"{part}.safetensors")


def read(network: Network, part: str, folder: Path = FOLDER) -> Network:
    """Fills a network with weights, in single precision; returns it frozen and in eval mode.

    Args:
        network: A network of the kind that `write` got.
        part: Its name.
        folder: Where `part.safetensors` lies.

    Raises:
        FileFormatError: The file is missing or damaged, or belongs to another network.
    """
    path = folder / f"{part}.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise FileFormatError(f"Cannot read the weights {path}: {error}. Install the package again, or train them anew.") from error
    wanted = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in wanted.items()}:
        differing = sorted(name for name in tensors.keys() | wanted.keys() if name not in tensors or name not in wanted)
        raise FileFormatError(f"The weights {path} are not those of {type(network).__name__}; differing: {differing or 'shapes'}.")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(tensors[name])
    return network.requires_grad_(False).eval()
