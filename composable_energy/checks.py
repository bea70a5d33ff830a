"""What an energy is given and what it returns: shapes, dtypes and devices, each mistake told with both sides."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from composable_energy.errors import DeviceError, DtypeError, ExpressionError, OptionError, ShapeError

if TYPE_CHECKING:
    from composable_energy.energy import Energy

__all__ = ["check_batch", "check_count", "check_energies", "check_flag", "check_points", "check_value", "check_weights"]


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Returns an argument as a whole number.

    Raises:
        OptionError: It is no whole number, or below the least one.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)
    except TypeError:
        raise OptionError(f"{name} must be a whole number, got {value!r}.") from None
    if number < least:
        raise OptionError(f"{name} must be at least {least}, got {number}.")
    return number


def check_flag(name: str, value: Any) -> None:
    """Raises `OptionError` unless an argument is True or False: text such as 'no' would count as True."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, got {value!r}.")


def check_points(energy: Energy, x: Tensor) -> None:
    """Raises if points are no batch, cannot have a gradient, or do not fit an energy's shape, dtype or device."""
    check_batch(energy, x)
    if energy.event_shape is not None and x.shape[1:] != energy.event_shape:
        raise ShapeError(f"{energy} takes points of shape (B, {', '.join(map(str, energy.event_shape))}), got {tuple(x.shape)}.")
    if not energy.terms:  # of a node each leaf checks its own weights
        check_weights(energy, energy, x)


def check_batch(energy: Energy, x: Tensor) -> None:
    """Raises if points are no batch or cannot have a gradient."""
    if not isinstance(x, Tensor):
        raise DtypeError(f"{energy} takes a tensor of points, got {type(x).__name__}; use torch.as_tensor.")
    if not x.is_floating_point():
        raise DtypeError(f"{energy} takes points of a floating dtype, got {x.dtype}; for images write `x.float() / 255`.")
    if x.ndim < 1:
        raise ShapeError(f"{energy} takes a batch of points of shape (B, *), got a single number; write `x.unsqueeze(0)`.")


def check_weights(energy: object, module: nn.Module, x: Tensor) -> None:
    """Raises if points do not fit the dtype or device of the weights of an energy, or of a part of it."""
    weight = _first_weight(module)
    if weight is None:
        return
    if weight.device != x.device:
        raise DeviceError(f"{energy} is on {weight.device}, the points are on {x.device}; move one with `.to(...)`.")
    if weight.dtype != x.dtype and not torch.is_autocast_enabled():
        raise DtypeError(f"{energy} has {weight.dtype} weights, the points are {x.dtype}; convert one with `.to(...)`.")


def check_energies(energy: Energy, energies: Tensor, x: Tensor) -> Tensor:
    """Returns the energies; a (B, 1) result beside a (B,) one would broadcast to (B, B) and still look like numbers.

    Raises:
        ShapeError: They have another shape than $(B,)$.
        DtypeError: They are not a floating tensor.
    """
    if not isinstance(energies, Tensor) or not energies.is_floating_point():
        got = energies.dtype if isinstance(energies, Tensor) else type(energies).__name__
        raise DtypeError(f"{energy} must return a floating tensor of energies, got {got}.")
    if energies.shape != x.shape[:1]:
        hint = " If it ends in a layer of one output, add `.squeeze(-1)`." if energies.shape == (len(x), 1) else ""
        hint = hint or (" Sum over the axes of each point, not over the batch." if energies.ndim == 0 else "")
        raise ShapeError(
            f"{energy} returned energies of shape {tuple(energies.shape)} for points of shape {tuple(x.shape)}; expected ({len(x)},).{hint}"
        )
    return energies


def check_value(energy: Energy, use: str, *, evidence: bool = False) -> None:
    """Raises if an energy, or its evidence, has no value.

    Args:
        energy: The energy.
        use: What needs the value, for the message.
        evidence: Whether the evidence is enough.

    Raises:
        ExpressionError: It has none.
    """
    if energy.evidence_has_value if evidence else energy.has_value:
        return
    leaf = _valueless(energy)
    which = f"{energy} has none" if leaf is energy else f"{energy} has none, because of {leaf}"
    raise ExpressionError(
        f"{use} needs values of an energy, and {which}: it has a gradient alone (`has_value` is False). `&`, weights and samplers that "
        "follow gradients alone, such as `langevin`, take it; for anything else give it an energy whose gradient it is."
    )


def _valueless(energy: Energy) -> Energy:
    """Returns the deepest term without value."""
    parts = (*energy.terms, *(base.energy for base in energy.bases))
    part = next((part for part in parts if not part.has_value), None)
    return energy if part is None else _valueless(part)


def _first_weight(module: nn.Module) -> Tensor | None:
    """The first floating parameter; `module.parameters()` would list and hash modules, at each evaluation."""
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            return parameter
    for part in module._modules.values():
        found = None if part is None else _first_weight(part)
        if found is not None:
            return found
    return None
