"""Which kernel takes a step: that of the device, unless `COMPOSABLE_ENERGY_KERNEL` says which, and torch where it refuses."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import ComposableEnergyError, OptionError
from composable_energy.kernels.kernel import Kernel
from composable_energy.noise import Noise
from composable_energy.registry.api import REGISTRY, get_kernel, plugins

__all__ = ["SWITCH", "forced_kernel", "kernel_for"]

SWITCH = "COMPOSABLE_ENERGY_KERNEL"
_LOGGER = logging.getLogger("composable_energy.kernels")


def forced_kernel() -> str | None:
    """Returns the name that the environment says; None if it says nothing."""
    return os.environ.get(SWITCH) or None


def kernel_for(x: Tensor, others: Sequence[Tensor], noise: Noise) -> Kernel | None:
    """Returns the kernel that takes a step; None for the reference.

    Args:
        x: The points.
        others: Gradients, and the momentum if there is one.
        noise: The noise.

    Raises:
        OptionError: The kernel that the environment names cannot run, or cannot take this step.
        PluginNotFound: There is none of that name.
    """
    name = forced_kernel()
    if name == "torch" or x.numel() == 0:
        return None
    if name is not None:
        kernel = _named(name, _registered())
        ready, reason = kernel.available()
        reason = _refusal(kernel, x, others, noise) if ready else reason
        if reason:
            raise OptionError(f"{SWITCH} asks for the kernel {name!r}, which cannot run here: {reason}. Unset it, or set it to 'torch'.")
        return kernel
    refusals = []
    for name, kernel in _available(_registered()):
        reason = _refusal(kernel, x, others, noise)
        if not reason:
            return kernel
        refusals.append(f"{name}: {reason}")
    _log_once(f"Steps on {x.device.type} run in torch, without a fused kernel ({'; '.join(refusals) or 'none is available'}).")
    return None


def _refusal(kernel: Kernel, x: Tensor, others: Sequence[Tensor], noise: Noise) -> str:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *others)):
        return "a gradient of the step itself is asked for"
    if x.device.type == "cpu" and noise.kind != "philox":
        return f"it draws Philox noise, and the noise is {noise.kind!r}: say noise='philox'"
    if not isinstance(noise.chains, range) or noise.chains.step != 1:
        return "the ids of the chains are not consecutive"
    if any(other.dtype != x.dtype or other.device != x.device for other in others):
        return "points, gradients and momentum differ in dtype or device"
    return kernel.refusal(x)


def _registered() -> tuple[Any, ...]:
    """What a session registered, so that it is seen at once; entry points are looked up once."""
    return tuple((name, made) for (kind, name), made in REGISTRY.registered.items() if kind == "kernel")


@cache
def _named(name: str, registered: tuple[Any, ...]) -> Kernel:
    return get_kernel(name)


@cache
def _available(registered: tuple[Any, ...]) -> tuple[tuple[str, Kernel], ...]:
    """Returns the kernels that can run on this machine, by name."""
    found = []
    for record in sorted(plugins(), key=lambda record: record.name):
        if record.group != "composable_energy.kernels" or record.state == "shadowed":
            continue
        try:
            kernel = _named(record.qualified, registered)
        except ComposableEnergyError as error:
            _log_once(str(error))
            continue
        ready, reason = kernel.available()
        if ready:
            found.append((record.name, kernel))
        else:
            _log_once(f"The kernel {record.name!r} cannot run here: {reason}.")
    return tuple(found)


@cache
def _log_once(what: str) -> None:
    """Logs something once."""
    _LOGGER.warning(what)
