"""The saved state of a module: its tensors, and the train mode of the modules inside."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from composable_energy.errors import ExpressionError


def tensors_of(module: nn.Module, label: str) -> dict[str, Tensor]:
    """Returns the tensors in the state of a module, by path.

    Raises:
        ExpressionError: The state contains something other than tensors.
    """
    state = module.state_dict(keep_vars=True)
    for path, value in state.items():
        if not isinstance(value, Tensor):
            raise ExpressionError(f"{label} cannot be saved: its state {path} is a {type(value).__name__}, not a tensor.")
    return state


def modes_of(module: nn.Module, prefix: str = "") -> dict[str, bool]:
    """Returns the train mode of a module, and of the modules inside that differ from their parents."""
    result = {prefix.rstrip("."): module.training}
    for path, inner in module.named_modules():
        if path and inherited_mode(result, prefix + path) != inner.training:
            result[prefix + path] = inner.training
    return result


def inherited_mode(modes: Mapping[str, bool], path: str) -> bool | None:
    """Returns the train mode of a module in the result of `modes_of`: its own, or that of the nearest parent."""
    while path not in modes and path:
        path = path.rpartition(".")[0]
    return modes.get(path)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Returns whether two tensors are equal to the bit."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)
