"""Checks of the input and output of energies: shapes, dtypes and devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from composable_energy.errors import DeviceError, DtypeError, ExpressionError, ShapeError

if TYPE_CHECKING:
    from composable_energy.energy import Energy

__all__ = ["check_batch", "check_energies", "check_points", "check_value", "check_weights"]


def check_points(energy: Energy, x: Tensor) -> None:
    """Raises if points are not a floating batch, or do not fit the shape, dtype or device of an energy."""
    check_batch(energy, x)
    if energy.event_shape is not None and x.shape[1:] != energy.event_shape:
        raise ShapeError(f"{energy} takes points of shape (B, {', '.join(map(str, energy.event_shape))}), got {tuple(x.shape)}.")
    if not energy.terms:  # the leaves of a node check their own weights
        check_weights(energy, energy, x)


def check_batch(energy: Energy, x: Tensor) -> None:
    """Raises if points are not a batch of a floating dtype."""
    if not isinstance(x, Tensor):
        raise DtypeError(f"{energy} takes a tensor of points, got {type(x).__name__}; use torch.as_tensor.")
    if not x.is_floating_point():
        raise DtypeError(f"{energy} takes points of a floating dtype, got {x.dtype}; for images write `x.float() / 255`.")
    if x.ndim < 1:
        raise ShapeError(f"{energy} takes a batch of points of shape (B, *), got a single number; write `x.unsqueeze(0)`.")


def check_weights(energy: object, module: nn.Module, x: Tensor) -> None:
    """Raises if points do not fit the dtype or device of the weights of a module.

    Args:
        energy: The energy, for the message.
        module: The energy or a part of it.
        x: The points.
    """
    weight = _first_weight(module)
    if weight is None:
        return
    if weight.device != x.device:
        raise DeviceError(f"{energy} is on {weight.device}, the points are on {x.device}; move one with `.to(...)`.")
    if weight.dtype != x.dtype and not torch.is_autocast_enabled():
        raise DtypeError(f"{energy} has {weight.dtype} weights, the points are {x.dtype}; convert one with `.to(...)`.")


def check_energies(energy: Energy, energies: Tensor, x: Tensor) -> Tensor:
    """Returns the energies if they have shape (B,); (B, 1) would broadcast with (B,) to (B, B) without an error.

    Raises:
        ShapeError: The energies have another shape than $(B,)$.
        DtypeError: The energies are not a floating tensor.
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
        use: The operation that needs the value, for the message.
        evidence: Whether a value of the evidence is enough.

    Raises:
        ExpressionError: There is no value.
    """
    if energy.evidence_has_value if evidence else energy.has_value:
        return
    leaf = _find_valueless(energy)
    cause = "" if leaf is energy else f", because of {leaf}"
    raise ExpressionError(
        f"{use} needs values of an energy, and {energy} has none{cause}: it has only a gradient (`has_value` is False). Use it with `&`, "
        "weights and samplers that need only gradients, such as `langevin`; for anything else give the energy a value."
    )


def _find_valueless(energy: Energy) -> Energy:
    """Returns the deepest term without value."""
    parts = (*energy.terms, *(base.energy for base in energy.bases))
    part = next((part for part in parts if not part.has_value), None)
    return energy if part is None else _find_valueless(part)


def _first_weight(module: nn.Module) -> Tensor | None:
    """Returns the first floating parameter; `module.parameters()` is slower, as it hashes all modules at each evaluation."""
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            return parameter
    for part in module._modules.values():
        found = None if part is None else _first_weight(part)
        if found is not None:
            return found
    return None
