"""The requested points: their number, shape, dtype and device, checked before anything is evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor, nn

from composable_energy.energies.energy import Energy
from composable_energy.energies.twins import tensors_of
from composable_energy.errors import DeviceError, DtypeError, OptionError, ShapeError
from composable_energy.files import memory_of
from composable_energy.options import written_bytes
from composable_energy.supports import Coordinates, coordinates_of

_FIRST_DECODED, _DECODED_NUMBERS, _DECODED_ON_DEVICE = 32, 2**19, 2**23  # points; numbers of a batch of decoded points
_LITTLE = 2**24  # bytes, which every device has


@dataclass(frozen=True)
class PointSpec:
    """The number, shape, dtype and device of the requested points.

    Args:
        n: The number of points that are returned.
        event: The shape of one point of the energy.
        shape: The shape of the result: $(n, *)$, decoded if there is a decoder.
        decoder: Decodes the points at the end; None for an energy of visible points, and where latents are requested.
        dtype: The dtype of the points.
        device: The device of the points.
        coordinates: The coordinates that chains use; None for those of the points themselves.
    """

    n: int
    event: torch.Size
    shape: tuple[int, ...]
    decoder: nn.Module | None
    dtype: torch.dtype
    device: torch.device
    coordinates: Coordinates | None = None

    def zeros(self) -> Tensor:
        """Returns zeros, with the shape of one point of a chain."""
        shape = self.event if self.coordinates is None else self.coordinates.shape
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def constrain(self, points: Tensor) -> Tensor:
        """Returns the points of the support for points of chains, with any number of first axes."""
        if self.coordinates is None:
            return points
        first = points.shape[: points.ndim - len(self.coordinates.shape)]
        return self.coordinates.points(points.reshape(-1, *self.coordinates.shape))[0].reshape(*first, *self.event)

    def check_memory(self, chains: int) -> None:
        """Raises if the points of a number of chains, with a gradient each, and the result do not fit into the memory of the device.

        What an energy needs to be evaluated is not counted.

        Raises:
            OptionError: They do not fit.
        """
        numbers = 2 * chains * math.prod(self.event) + (0 if self.decoder is None else math.prod(self.shape))
        needed = numbers * self.dtype.itemsize
        memory = None if needed < _LITTLE else memory_of(self.device)  # to look takes a tenth of the cost of a short call
        if memory is not None and needed > memory:
            raise OptionError(
                f"{chains:,} points of shape {tuple(self.shape[1:])} need at least {written_bytes(needed)} of memory, {self.device} has "
                f"{written_bytes(memory)}: ask for fewer, or draw them in parts."
            )

    def decode(self, points: Tensor) -> Tensor:
        """Returns the points that the caller sees, for points of chains: in the support, and decoded if there is a decoder."""
        points = self.constrain(points)
        return points if self.decoder is None else decode(self.decoder, points)


def resolve_points(
    energy: Energy,
    shape: int | Sequence[int],
    *,
    latents: bool = False,
    start: Tensor | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> PointSpec:
    """Checks a requested shape, dtype and device against the energy and the start points.

    Args:
        energy: The energy.
        shape: $(n, *)$ or $n$, as for `sample`.
        latents: Whether points of a latent space stay as they are.
        start: Points that the chains start from or continue at, if they are known.
        dtype: The requested dtype; None takes that of `start`, else of the energy's tensors, else torch's default.
        device: The requested device; None follows the same order.

    Raises:
        ShapeError: The shape is not positive, is unknown, or is not that of the energy.
        OptionError: The points do not fit into memory.
        DtypeError, DeviceError: The start is no floating tensor, or differs from `dtype` and `device`.
    """
    n, *given = _sizes(shape)
    if torch.get_default_device().type == "meta":
        raise DeviceError("torch's default device is meta, whose tensors have no values: set another by `torch.set_default_device('cpu')`.")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise DtypeError(f"dtype must be a dtype of torch, such as torch.float32, got {dtype!r}.")
    if start is not None:
        _check_start(start, dtype, device)
        dtype, device = start.dtype, start.device
    tensor = _floating_tensor(energy) if dtype is None or device is None else None
    dtype = dtype or (torch.get_default_dtype() if tensor is None else tensor.dtype)
    device = device or (torch.get_default_device() if tensor is None else tensor.device)
    if device.type == "meta":
        raise DeviceError("Points on the device meta have no values; ask for another device, and move the energy there by `.to(...)`.")
    if not dtype.is_floating_point:
        raise DtypeError(f"Points need a floating dtype, got {dtype}.")
    decoder = None if latents else energy.decoder
    event = energy.event_shape if energy.event_shape is not None or start is None else start.shape[1:]
    if event is None:
        if decoder is not None:
            raise ShapeError(f"{energy} does not say the shape of its latent points; set its `event_shape`, or give `init`.")
        if not isinstance(shape, Sequence):
            raise ShapeError(f"{energy} does not say the shape of its points: ask for (n, *shape), got {n}.")
        event = torch.Size(given)
    visible = event if decoder is None else _decoded_shape(decoder, event, dtype, device)
    if isinstance(shape, Sequence) and tuple(given) != tuple(visible):
        owner = f"{type(decoder).__name__} decodes to" if decoder is not None else f"{'init' if energy.event_shape is None else energy} has"
        hint = "; `.latents.sample` returns the points before they are decoded" if decoder is not None else ""
        raise ShapeError(f"{owner} points of shape {tuple(visible)}: ask for {(n, *visible)} or {n}, got {(n, *given)}{hint}.")
    return PointSpec(n, event, (n, *visible), decoder, dtype, device, coordinates_of(energy.support, event, dtype, device))


def decode(decoder: nn.Module, points: Tensor) -> Tensor:
    """Returns decoded points, computed without a graph in batches that the cache of the processor holds."""
    with torch.no_grad():
        first = decoder(points[:_FIRST_DECODED])
        most = _DECODED_NUMBERS if points.is_cpu else _DECODED_ON_DEVICE
        size = max(_FIRST_DECODED, most // max(1, first.shape[1:].numel()))
        rest = points[_FIRST_DECODED:]
        return torch.cat([first, *(decoder(some) for some in rest.split(size))]).detach() if len(rest) else first.detach()


def _sizes(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(map(index, shape)) if isinstance(shape, Sequence) else (index(shape),)
    except TypeError:
        raise ShapeError(f"shape is a number of points or (n, *shape), got {shape!r}.") from None
    if isinstance(shape, bool) or not sizes or min(sizes) < 1:
        raise ShapeError(f"shape is a positive number of points or (n, *shape), all positive, got {shape!r}.")
    return sizes


def _check_start(init: object, dtype: torch.dtype | None, device: torch.device | None) -> None:
    if not isinstance(init, Tensor) or not init.is_floating_point():
        got = f"{init.dtype}" if isinstance(init, Tensor) else type(init).__name__
        raise DtypeError(f"init must be a floating tensor, got {got}.")
    if init.layout != torch.strided:
        raise DtypeError(f"init must be a dense tensor, got {init.layout}; use `.to_dense()`.")
    if dtype is not None and dtype != init.dtype:
        raise DtypeError(f"init is {init.dtype}, requested is {dtype}; convert it with `.to(...)`.")
    if device is not None and device.type != init.device.type:
        raise DeviceError(f"init is on {init.device}, requested is {device}; move it with `.to(...)`.")


def _floating_tensor(energy: Energy) -> Tensor | None:
    """Returns the first parameter, else buffer, else tensor that the energy holds, such as the mean of a distribution; None without any."""
    for tensor in (*energy.parameters(), *energy.buffers()):
        if tensor.is_floating_point():
            return tensor
    held = [tensor for tensor in tensors_of(energy) if tensor.is_floating_point()]
    return next((tensor for tensor in held if isinstance(tensor, nn.Parameter)), held[0] if held else None)


def _decoded_shape(decoder: nn.Module, event: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Size:
    known = getattr(decoder, "event_shape", None)
    if known is not None:
        return torch.Size(known)
    return decode(decoder, torch.zeros((1, *event), dtype=dtype, device=device)).shape[1:]
