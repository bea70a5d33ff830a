"""What a plug-in made, as far as a file must know it: the tensors inside and the mode of each module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.errors import ExpressionError

__all__ = ["Made", "modes_of", "same_bits", "tensors_of"]


@dataclass
class Made:
    """An object that a plug-in made, with what a file says of it.

    Args:
        module: The object.
        tensors: The file's tensors, by their path in the object.
        modes: Whether a module is in train mode, by its path; it holds for what is inside unless that has its own.
        label: What it is, for messages.
        group: Those of one group share parts.
        more: Attributes of the object that the file tells as well.
    """

    module: nn.Module
    tensors: Mapping[str, Tensor]
    modes: Mapping[str, bool]
    label: str
    group: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)

    def part(self, path: str) -> nn.Module:
        """Returns a module inside the object.

        Raises:
            ValueError: There is none.
        """
        found = dict(self.module.named_modules(remove_duplicate=False)).get(path)
        if found is None:
            raise ValueError(f"{self.label} has no part {path!r}")
        return found

    def check(self) -> None:
        """Raises unless the object has all tensors of the file, with their shapes.

        Raises:
            ValueError: It has not.
        """
        own = self.module.state_dict(keep_vars=True)
        for path, tensor in self.tensors.items():
            if path not in own or own[path].shape != tensor.shape:
                here = f"the shape {tuple(own[path].shape)}" if path in own else "no such tensor"
                raise ValueError(
                    f"{self.label} was written with a tensor {path} of shape {tuple(tensor.shape)}; what is installed (version "
                    f"{getattr(self.module.origin, 'version', None)}) has {here}. Install the version that wrote it"
                )

    @property
    def as_written(self) -> bool:
        """Whether modes, tensors and what else is told are those of the file."""
        if any(getattr(self.module, name, None) != value for name, value in self.more.items()):
            return False
        return all(module.training == mode for module, mode in self._modes()) and all(same_bits(*pair) for pair in self._pairs())

    def restore(self) -> None:
        """Takes over all that the file tells."""
        for name, value in self.more.items():
            setattr(self.module, name, value)
        for module, mode in self._modes():
            module.training = mode
        dtypes = {tensor.dtype for tensor in self.tensors.values() if tensor.is_floating_point()}
        if len(dtypes) == 1:
            self.module.to(dtype=dtypes.pop())
        for own, written in self._pairs():
            if not same_bits(own, written):
                own.data = written.to(own.device, copy=True)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        own = self.module.state_dict(keep_vars=True)
        return [(own[path], tensor) for path, tensor in self.tensors.items()]

    def _modes(self) -> list[tuple[nn.Module, bool]]:
        result = []
        for path, module in self.module.named_modules():
            mode = _inherited(self.modes, path)
            if mode is not None:
                result.append((module, mode))
        return result


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
        if path and _inherited(result, prefix + path) != inner.training:
            result[prefix + path] = inner.training
    return result


def _inherited(modes: Mapping[str, bool], path: str) -> bool | None:
    while path not in modes and path:
        path = path.rpartition(".")[0]
    return modes.get(path)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the bit; a NaN is equal to itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)
