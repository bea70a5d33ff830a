"""What is asked for: shapes, latent spaces, dtypes and devices, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.captures import tensors_of
from composable_energy.checks import check_value
from composable_energy.conditions import CHAINS
from composable_energy.energy import Energy
from composable_energy.errors import ContradictionError, DeviceError, DtypeError, ExpressionError, OptionError, ShapeError, UngroundedError
from composable_energy.sampling.sampler import Sampler

__all__ = ["Asked", "ask", "check_density", "count", "decode", "flag"]

_DECODED_AT_ONCE = 128


@dataclass(frozen=True)
class Asked:
    """How many points, of which shape, where.

    Args:
        n: How many are returned.
        event: The shape of one point of the energy.
        shape: The shape of what is returned.
        decoder: What decodes the points at the end, if anything.
        dtype: Of the points.
        device: Of the points.
    """

    n: int
    event: torch.Size
    shape: tuple[int, ...]
    decoder: nn.Module | None
    dtype: torch.dtype
    device: torch.device


def count(name: str, value: Any, least: int = 1) -> int:
    """Returns a whole number; raises if it is none or below the least."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)
    except TypeError:
        raise OptionError(f"{name} must be a whole number, got {value!r}.") from None
    if number < least:
        raise OptionError(f"{name} must be at least {least}, got {number}.")
    return number


def flag(name: str, value: Any) -> None:
    """Raises unless a value is True or False: text such as 'no' would count as True."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, got {value!r}.")


def ask(
    energy: Energy,
    shape: int | Sequence[int],
    latents: bool,
    start: Tensor | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Asked:
    """Checks what is asked for against what the energy and the start say.

    Args:
        energy: The energy.
        shape: As for `sample`.
        latents: As for `sample`.
        start: Points that the chains start or go on from, if they are there already.
        dtype: As for `sample`.
        device: As for `sample`.

    Raises:
        ShapeError: The shape is not positive, unknown, or not that of the energy.
        DtypeError, DeviceError: The start is no floating tensor, or not what `dtype` and `device` say.
    """
    n, *given = _sizes(shape)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise DtypeError(f"dtype must be a dtype of torch, such as torch.float32, got {dtype!r}.")
    device = None if device is None else _device(device)
    if start is not None:
        _check_start(start, dtype, device)
        dtype, device = start.dtype, start.device
    tensors = _tensors(energy) if dtype is None or device is None else []
    dtype = dtype or (tensors[0].dtype if tensors else torch.get_default_dtype())
    place = torch.device(device) if device is not None else tensors[0].device if tensors else torch.get_default_device()
    if not dtype.is_floating_point:
        raise DtypeError(f"Points are of a floating dtype, got {dtype}.")
    decoder = None if latents else energy.decoder
    event = energy.event_shape if energy.event_shape is not None or start is None else start.shape[1:]
    if event is None:
        if decoder is not None:
            raise ShapeError(f"{energy} does not say the shape of its latent points; set its `event_shape`, or give `init`.")
        if not isinstance(shape, Sequence):
            raise ShapeError(f"{energy} does not say the shape of its points: ask for (n, *shape), got {n}.")
        event = torch.Size(given)
    seen = event if decoder is None else _decoded_shape(decoder, event, dtype, place)
    if isinstance(shape, Sequence) and tuple(given) != tuple(seen):
        whose = (
            f"{type(decoder).__name__} decodes to" if decoder is not None else f"{energy if energy.event_shape is not None else 'init'} has"
        )
        hint = "; latents=True returns the points before they are decoded" if decoder is not None else ""
        raise ShapeError(f"{whose} points of shape {tuple(seen)}: ask for {(n, *seen)} or {n}, got {(n, *given)}{hint}.")
    return Asked(n, event, (n, *seen), decoder, dtype, place)


def check_density(energy: Energy, sampler: Sampler, allow_improper: bool) -> None:
    """Raises if an energy has no value that the sampler needs, or no density.

    Raises:
        ContradictionError: No point fulfils it, as far as structure tells.
        ExpressionError: A condition is not bound, or the sampler needs values that the energy does not have.
        UngroundedError: The energy has no lower bound, as far as structure tells.
    """
    if energy.unsatisfiable:
        raise ContradictionError(f"No point fulfils {energy}: its probability is 0 whatever the networks say, so it has no density.")
    if sampler.needs_values:
        check_value(energy, f"The sampler {type(sampler).__name__.lower()}")
    missing = energy.required_conditions - sampler.binds - {CHAINS}
    if missing:
        ways = [f"`.at({name})` or the annealed sampler" if name == "sigma" else f"`.given({name}=...)`" for name in sorted(missing)]
        raise ExpressionError(f"{energy} depends on {', '.join(sorted(missing))}, which is not bound: bind with {' and '.join(ways)}.")
    if not (energy.grounded or allow_improper):
        culprit = _ungrounded(energy)
        whole = f"{energy} has no lower bound" + ("" if culprit is energy else f", because nothing grounds {culprit}")
        raise UngroundedError(
            f"{whole}: its chains would run away. Join it with `&` to a grounded energy, such as a base that all points obey; or make it "
            "relative to a base by `relative_to`, so that `~` is bounded (`negate(..., mode='complement')` or `'contrast'`); or insist "
            "with allow_improper=True."
        )


def decode(decoder: nn.Module, points: Tensor) -> Tensor:
    """Returns decoded points, some at a time, without a graph."""
    with torch.no_grad():
        return torch.cat([decoder(some) for some in points.split(_DECODED_AT_ONCE)]).detach()


def _sizes(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = (index(shape),) if not isinstance(shape, Sequence) else tuple(index(size) for size in shape)
    except TypeError:
        raise ShapeError(f"shape is a number of points or (n, *shape), got {shape!r}.") from None
    if isinstance(shape, bool) or not sizes or any(size < 1 for size in sizes):
        raise ShapeError(f"shape is a positive number of points or (n, *shape), all positive, got {shape!r}.")
    return sizes


def _device(device: object) -> torch.device:
    """Returns a device that is there."""
    try:
        place = torch.device(device)  # pyright: ignore[reportArgumentType, reportCallIssue]
        torch.empty(0, device=place)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:  # torch says by each of them that there is none
        raise DeviceError(f"device must be one that torch has here, such as 'cpu', got {device!r}.") from error
    return place


def _check_start(init: object, dtype: torch.dtype | None, device: torch.device | str | None) -> None:
    if not isinstance(init, Tensor) or not init.is_floating_point():
        got = f"{init.dtype}" if isinstance(init, Tensor) else type(init).__name__
        raise DtypeError(f"init must be a floating tensor, got {got}.")
    if init.layout != torch.strided:
        raise DtypeError(f"init must be a dense tensor, got {init.layout}; use `.to_dense()`.")
    if dtype is not None and dtype != init.dtype:
        raise DtypeError(f"init is {init.dtype}, asked for {dtype}; convert it with `.to(...)`.")
    if device is not None and torch.device(device).type != init.device.type:
        raise DeviceError(f"init is on {init.device}, asked for {device}; move it with `.to(...)`.")


def _tensors(energy: Energy) -> list[Tensor]:
    """Weights first; else whatever the energy holds, such as the mean of a distribution."""
    own = [tensor for tensor in (*energy.parameters(), *energy.buffers()) if tensor.is_floating_point()]
    found = own or [tensor for tensor in tensors_of(energy) if tensor.is_floating_point()]
    return sorted(found, key=lambda tensor: not isinstance(tensor, nn.Parameter))


def _decoded_shape(decoder: nn.Module, event: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Size:
    known = getattr(decoder, "event_shape", None)
    if known is not None:
        return torch.Size(known)
    return decode(decoder, torch.zeros((1, *event), dtype=dtype, device=device)).shape[1:]


def _ungrounded(energy: Energy) -> Energy:
    """The deepest term that a chain of ungrounded terms leads to."""
    term = next((term for term in energy.terms if not term.grounded), None)
    return energy if term is None else _ungrounded(term)
