"""A digest of a tensor."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

__all__ = ["digest_of_tensor"]


def digest_of_tensor(tensor: Tensor) -> bytes:
    """Returns a digest of a tensor's dtype, shape and bits."""
    tensor = tensor.detach()
    kind = f"{tensor.dtype} {tuple(tensor.shape)} {tensor.layout}".encode()
    dense = tensor.to_dense() if tensor.layout != torch.strided else tensor
    plain = dense.cpu().clone(memory_format=torch.contiguous_format).flatten()
    return blake2b(kind + blake2b(plain.view(torch.uint8).numpy().data, digest_size=16).digest(), digest_size=16).digest()
