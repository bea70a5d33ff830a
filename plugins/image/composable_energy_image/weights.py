"""Reads and writes trained weights: safetensors, half precision or less on disk, single precision in memory."""

from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from composable_energy.errors import FileFormatError
from composable_energy.files import replace_file

Network = TypeVar("Network", bound=nn.Module)


def write_weights(network: nn.Module, part: str, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes the file PART.safetensors of a folder with weights in half precision or less; running statistics stay in single precision."""
    tensors = {name: value.detach().to(dtype).contiguous() for name, value in network.named_parameters()}
    tensors |= {name: value for name, value in network.state_dict().items() if name not in tensors and value.is_floating_point()}
    replace_file(folder / f"{part}.safetensors", save(tensors, {"part": part}))


def read_weights(network: Network, part: str, folder: Path) -> Network:
    """Loads PART.safetensors into a network, in single precision, frozen, in eval mode."""
    path = folder / f"{part}.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise FileFormatError(f"Cannot read the weights {path}: {error}. Install the package again, or train again.") from error
    expected = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in expected.items()}:
        differing = sorted(name for name in tensors.keys() | expected.keys() if name not in tensors or name not in expected)
        raise FileFormatError(f"The weights {path} are not those of {type(network).__name__}; differing: {differing or 'shapes'}.")
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(tensors[name])
    return network.requires_grad_(False).eval()
