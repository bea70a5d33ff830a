"""What a file holds of a module: its tensors, and whether each module inside is in train mode."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from composable_energy.errors import ExpressionError

__all__ = ["inherited_mode", "modes_of", "same_bits", "tensors_of"]


def tensors_of(module: nn.Module, label: str) -> dict[str, Tensor]:
    """Returns the tensors of a module's state by path.

    Raises:
        ExpressionError: Something in its state is no tensor.
    """
    state = module.state_dict(keep_vars=True)
    for path, value in state.items():
        if not isinstance(value, Tensor):
            raise ExpressionError(f"{label} has a state {path} that is a {type(value).__name__} and no tensor, and cannot be saved.")
    return state


def modes_of(module: nn.Module, prefix: str = "") -> dict[str, bool]:
    """Returns whether modules are in train mode: the module itself, and those inside that differ from what they are in."""
    result = {prefix.rstrip("."): module.training}
    for path, inner in module.named_modules():
        if path and inherited_mode(result, prefix + path) != inner.training:
            result[prefix + path] = inner.training
    return result


def inherited_mode(modes: Mapping[str, bool], path: str) -> bool | None:
    """Returns whether a module is in train mode, where only those that differ from what they are in have an entry."""
    while path not in modes and path:
        path = path.rpartition(".")[0]
    return modes.get(path)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the bit; a NaN is equal to itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)
