"""How weights of convolutions lie in memory while a model is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["channels_last"]


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """A context in which the weights of a model's convolutions are channels last; afterwards each is where it was, with its new values.

    CPUs multiply such weights faster, by a fifth or more. A tensor whose storage others share stays as it is.

    Args:
        model: What is trained; models that are on no CPU are left alone.
    """
    tensors = [*model.parameters(), *model.buffers()]
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors)
    before: list[tuple[Tensor, Tensor]] = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        alone = users[storage.data_ptr()] == 1 and storage.nbytes() == tensor.numel() * tensor.element_size()
        if tensor.ndim == 4 and tensor.is_floating_point() and tensor.device.type == "cpu" and alone:
            before.append((tensor, tensor.data))
    try:
        for tensor, data in before:
            tensor.data = data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for tensor, data in before:
            if tensor.data.data_ptr() != data.data_ptr():
                data.copy_(tensor.data)
                tensor.data = data
