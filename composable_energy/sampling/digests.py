"""A digest of an energy: whether its numbers are those of another time."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

from composable_energy.energy import Energy
from composable_energy.sampling.freezing import reachable

__all__ = ["digest", "digest_of_tensor"]


def digest(energy: Energy, *points: Tensor) -> str:
    """Returns a digest of the expression, of every tensor that it reaches, and of some points.

    Args:
        energy: The energy.
        *points: Points that belong to it.
    """
    whole = blake2b(str(energy).encode(), digest_size=16)
    for part in sorted(digest_of_tensor(tensor) for tensor in reachable(energy)[0]) + [digest_of_tensor(tensor) for tensor in points]:
        whole.update(part)
    return whole.hexdigest()


def digest_of_tensor(tensor: Tensor) -> bytes:
    """Returns a digest of a tensor's dtype, shape and bits."""
    tensor = tensor.detach()
    kind = f"{tensor.dtype} {tuple(tensor.shape)} {tensor.layout}".encode()
    dense = tensor.to_dense() if tensor.layout != torch.strided else tensor
    plain = dense.cpu().clone(memory_format=torch.contiguous_format).flatten()
    return blake2b(kind + blake2b(plain.view(torch.uint8).numpy().data, digest_size=16).digest(), digest_size=16).digest()
