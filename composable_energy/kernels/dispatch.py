"""Selection of the kernel for a step: that of the device, the one named by `COMPOSABLE_ENERGY_KERNEL`, or the torch reference."""

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
from composable_energy.registry import get, plugins
from composable_energy.registry.registry import registered

SWITCH = "COMPOSABLE_ENERGY_KERNEL"
_LOGGER = logging.getLogger("composable_energy.kernels")


def forced_kernel() -> str | None:
    """Returns the name of the kernel in the environment variable; None if it is not set."""
    return os.environ.get(SWITCH) or None


def kernel_for(x: Tensor, others: Sequence[Tensor], noise: Noise) -> Kernel | None:
    """Returns the kernel for a step; None for the reference.

    Args:
        x: The points.
        others: The gradients, and the momentum if there is one.
        noise: The noise.

    Raises:
        OptionError: The kernel named by the environment variable cannot run, or refuses this step.
        PluginNotFound: There is no kernel of that name.
    """
    name = forced_kernel()
    if name == "torch" or x.numel() == 0:
        return None
    if name is not None:
        kernel = _load_kernel(name, _registered_kernels())
        ready, reason = kernel.available()
        reason = _refusal(kernel, x, others, noise) if ready else reason
        if reason:
            raise OptionError(f"{SWITCH} names the kernel {name!r}, which cannot run here: {reason}. Unset it, or set it to 'torch'.")
        return kernel
    refusals = []
    for name, kernel in _available(_registered_kernels()):
        reason = _refusal(kernel, x, others, noise)
        if not reason:
            return kernel
        refusals.append(f"{name}: {reason}")
    _log_once(f"Steps on {x.device.type} run in torch, without a fused kernel ({'; '.join(refusals) or 'none is available'}).")
    return None


def _refusal(kernel: Kernel, x: Tensor, others: Sequence[Tensor], noise: Noise) -> str:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *others)):
        return "a gradient of the step itself is needed"
    if x.device.type == "cpu" and noise.kind != "philox":
        return f"it draws Philox noise, and the noise is {noise.kind!r}: use noise='philox'"
    if not isinstance(noise.chains, range) or noise.chains.step != 1:
        return "the ids of the chains are not consecutive"
    if any(other.dtype != x.dtype or other.device != x.device for other in others):
        return "points, gradients and momentum differ in dtype or device"
    return kernel.refusal(x)


def _registered_kernels() -> tuple[Any, ...]:
    """Returns the kernels registered in this session, a key of the caches below: they are looked up again after each registration."""
    return tuple((name, factory) for (kind, name), factory in registered.items() if kind == "kernel")


@cache
def _load_kernel(name: str, registered: tuple[Any, ...]) -> Kernel:
    return get("kernel", name)


@cache
def _available(registered: tuple[Any, ...]) -> tuple[tuple[str, Kernel], ...]:
    """Returns the kernels that can run on this machine, by name."""
    found = []
    for record in sorted(plugins(), key=lambda record: record.name):
        if record.group != "composable_energy.kernels" or record.state == "shadowed":
            continue
        try:
            kernel = _load_kernel(record.qualified, registered)
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
def _log_once(message: str) -> None:
    _LOGGER.warning(message)
