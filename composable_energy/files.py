"""What files have in common: the digest by which damage is found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b

import torch
from torch import Tensor

__all__ = ["digest_of"]


def digest_of(tensors: Mapping[str, Tensor], metadata: object = None) -> str:
    """Returns a digest of the content of a file, in hexadecimal digits.

    Args:
        tensors: Dense tensors by name. Names, dtypes, shapes and bits count, the order does not.
        metadata: Plain data, as JSON has it; None adds nothing.
    """
    whole = blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    if metadata is not None:
        whole.update(json.dumps(metadata, sort_keys=True).encode())
    return whole.hexdigest()
