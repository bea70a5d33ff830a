"""Checks of the input and output of energies: shapes, dtypes and devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from composable_energy.errors import DeviceError, DtypeError, ExpressionError, ShapeError

if TYPE_CHECKING:
    from composable_energy.energies.energy import Energy


def check_points(energy: Energy, x: Tensor) -> None:
    """Raises if points are not a floating batch, or do not fit the shape, dtype or device of an energy."""
    check_batch(energy, x)
    shape = energy.event_shape
    if shape is not None and x.shape[1:] != shape:
        raise ShapeError(
            f"{energy} takes points of shape (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}.{_advise_latents(energy, x)}"
        )
    if not energy.terms:  # the leaves of a node check their own weights
        check_weights(energy, energy, x)


def _advise_latents(energy: Energy, x: Tensor) -> str:
    """Returns how to score decoded points by an energy of latent ones, after a space; empty if they are no decoded points."""
    decoder = energy.decoder
    if decoder is None or (energy.decoded_shape is not None and energy.decoded_shape != x.shape[1:]):
        return ""
    if callable(getattr(decoder, "encode", None)):
        return " It is an energy of latent points; for decoded ones write `E(E.decoder.encode(x))`, which scores their reconstruction."
    return f" It is an energy of latent points of {type(decoder).__name__}, which has no `encode`, so decoded points have no energy."


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
    if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise DtypeError(f"{energy} has {weight.dtype} weights, the points are {x.dtype}; convert one with `.to(...)`.")


def check_energies(energy: Energy, energies: Tensor, x: Tensor) -> Tensor:
    """Returns the energies if they have shape (B,); (B, 1) would broadcast with (B,) to (B, B) without an error.

    Raises:
        ShapeError: The energies have another shape than $(B,)$.
        DtypeError: The energies are not a dense floating tensor on the device of the points.
    """
    same_kind = type(energies) is Tensor and energies.dtype is x.dtype and energies.device == x.device
    if same_kind and energies.shape == x.shape[:1] and energies.layout is torch.strided:  # the usual case, quickly
        return energies
    if not isinstance(energies, Tensor) or not energies.is_floating_point():
        got = energies.dtype if isinstance(energies, Tensor) else type(energies).__name__
        raise DtypeError(f"{energy} must return a floating tensor of energies, got {got}.{advise_output(energies)}")
    if energies.layout != torch.strided or energies.device.type != x.device.type:
        raise DtypeError(
            f"{energy} must return a dense tensor of energies on the device of the points, {x.device}, got layout {energies.layout} on "
            f"{energies.device}."
        )
    if energies.shape != x.shape[:1]:
        raise ShapeError(
            f"{energy} returned energies of shape {tuple(energies.shape)} for points of shape {tuple(x.shape)}; expected ({len(x)},)."
            f"{_advise_shape(energies, len(x))}"
        )
    return energies


def advise_output(output: object) -> str:
    """Returns what to write where a model returns something else than a floating tensor, after a space; empty if there is no advice."""
    name = next((name for name in ("logits", "loss", "last_hidden_state") if isinstance(getattr(output, name, None), Tensor)), None)
    if name is not None:
        return f" It has `.{name}`: write a function that returns a number for each point from `model(x).{name}`."
    if isinstance(output, Mapping):
        key = next((key for key, value in output.items() if isinstance(value, Tensor)), "energy")
        return f" Choose one of its entries, {', '.join(map(repr, output))}: `lambda x: model(x)[{key!r}]`."
    if isinstance(output, Sequence) and any(isinstance(part, Tensor) for part in output):
        shapes = ", ".join(str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in output)
        return f" Choose one of its parts, which are {shapes}: `lambda x: model(x)[0]`."
    if isinstance(output, Distribution):
        return " For the energy of points under it write `lambda x: -distribution(...).log_prob(x)`."
    if type(output).__module__.partition(".")[0] == "numpy":
        return " NumPy and `.item()` cut gradients: compute with torch alone, and return a tensor of shape (B,)."
    if isinstance(output, float | int):
        return " `.item()` and `float(...)` cut gradients: return a tensor of shape (B,), one number for each point."
    if isinstance(output, Tensor):
        return " Return `.float()`, or compute with floating numbers throughout: whole numbers and truth values have no gradient."
    return " Does the function lack a `return`?" if output is None else ""


def _advise_shape(energies: Tensor, count: int) -> str:
    if energies.shape == (count, 1):
        return " If it ends in a layer of one output, add `.squeeze(-1)`."
    if energies.ndim == 0:
        return " Sum over the axes of each point, not over the batch."
    if energies.ndim > 1 and len(energies) == count:
        what = "the energy of a label is `ce.ClassifierEnergy(model, label)`, " if energies.ndim == 2 else ""
        return f" Each point needs one number: {what}a sum over the axes of a point is `.flatten(1).sum(1)`."
    return ""


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
    ways = "with `|` and `~` the sampler `feynman-kac`, which carries log densities along the noise levels; " if has_levels(energy) else ""
    raise ExpressionError(
        f"{use} needs values of an energy, and {energy} has none{cause}: it has only a gradient (`has_value` is False). Use it with `&`, "
        f"weights and samplers that need only gradients, such as `langevin`; {ways}for anything else give the energy a value."
    )


def has_levels(energy: Energy) -> bool:
    """Returns whether all parts without value depend on a noise level, along which a sampler can carry their log densities."""
    parts = [part for part in (*energy.terms, *(base.energy for base in energy.bases)) if not part.has_value]
    return all(map(has_levels, parts)) if parts else "sigma" in energy.conditions


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
