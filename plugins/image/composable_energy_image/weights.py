"""Reading and writing trained weights: safetensors, half precision on disk, single precision in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from composable_energy.errors import FileFormatError

__all__ = ["read_weights", "write_weights"]

Network = TypeVar("Network", bound=nn.Module)


def write_weights(network: nn.Module, part: str, folder: Path) -> None:
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


def read_weights(network: Network, part: str, folder: Path, *, renamed: Mapping[str, str] | None = None) -> Network:
    """Fills a network with weights, in single precision; returns it frozen and in eval mode.

    Args:
        network: A network of the kind that `write_weights` got.
        part: Its name.
        folder: Where `part.safetensors` lies.
        renamed: What layers are called now, by the names that they had when the file was written.

    Raises:
        FileFormatError: The file is missing or damaged, or belongs to another network.
    """
    path = folder / f"{part}.safetensors"
    try:
        tensors = {_now(name, renamed or {}): value for name, value in load_file(path).items()}
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


def _now(name: str, renamed: Mapping[str, str]) -> str:
    layer, dot, rest = name.partition(".")
    return renamed.get(layer, layer) + dot + rest
