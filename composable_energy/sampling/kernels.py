"""The Langevin step as one operation: the reference in torch, and kernels of plug-ins, selected by device."""

import logging
import os
from abc import ABC, abstractmethod
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from composable_energy.errors import ComposableEnergyError, OptionError, ShapeError
from composable_energy.registry import get, names
from composable_energy.registry.registry import registered
from composable_energy.sampling.noise import Noise

SWITCH = "COMPOSABLE_ENERGY_KERNEL"
_LOGGER = logging.getLogger("composable_energy.kernels")


class StepCoefficients(NamedTuple):
    r"""The coefficients of a step, of `langevin_step` and `underdamped_step`. They are $a$; $s$, with 0 no noise is drawn; $c$, with 0 and
    without momentum the points are not read; $b$, used with a momentum only; and the bounds of coordinates, None for none."""

    drift: float
    scale: float
    keep: float = 1.0
    move: float = 0.0
    low: float | None = None
    high: float | None = None


class Kernel(ABC):
    """Abstract implementation of `langevin_step` and `underdamped_step` for some devices. An entry point of the group
    `composable_energy.kernels` names it. It is called only for points that it does not refuse; `composable_energy_triton.testing` compares
    it with the reference."""

    @abstractmethod
    def available(self) -> tuple[bool, str]:
        """Returns whether it can run on this machine, and if not the reason; called once."""

    @abstractmethod
    def refusal(self, x: Tensor) -> str:
        """Returns why it refuses points of this dtype and device, such as "it takes no float64"; empty if it takes them."""

    @abstractmethod
    def langevin_step(
        self,
        x: Tensor,
        gradient: Tensor | None,
        momentum: Tensor | None,
        coefficients: StepCoefficients,
        noise: Noise,
        stream: int,
        out: Tensor,
        out_momentum: Tensor | None,
    ) -> None:
        """Writes the points after a step, computed in at least float32 and rounded once.

        All tensors are contiguous, have the shape $(B, *)$, dtype and device of the points, at least one row, and require no gradient.

        Args:
            x: The points.
            gradient: $g$; None for 0.
            momentum: The momentum; None for `langevin_step`.
            coefficients: The coefficients.
            noise: The Philox noise of consecutive chains at this step: number $j$ of row $i$ has the counter
                (j // 4, `noise.step`, `noise.chains[0]` + i, stream) and the key `noise.seed` modulo $2^{64}$.
            stream: The number of the draw at this step.
            out: The output for points.
            out_momentum: The output for the momentum.
        """


def langevin_step(
    x: Tensor,
    gradient: Tensor | None = None,
    *,
    noise: Noise,
    scale: float,
    drift: float = 0.0,
    keep: float = 1.0,
    box: tuple[float, float] | None = None,
    stream: int = 0,
) -> Tensor:
    r"""Takes a Langevin step, fused to one pass over the points if there is a kernel for them.

    $$x' = c\, x - a\, g + s\, \xi$$

    On the CPU and in graphs of `torch.compile` the step runs in torch, on other devices in a kernel from an entry point (Triton on CUDA).
    If the kernel refuses, as for float64, the step runs in torch with the same Philox noise, and the reason is logged once. The
    environment variable `COMPOSABLE_ENERGY_KERNEL`, read at the first step, forces a kernel, or `torch`.

    Args:
        x: The points, with shape $(B, *)$.
        gradient: $g$, with the shape of the points; None for 0.
        noise: The noise of these chains at this step.
        scale: $s$; with 0 no noise is drawn.
        drift: $a$.
        keep: $c$; with 0 only the shape of the points is used.
        box: The lower and upper bound of coordinates, to which points are clamped at the end.
        stream: The number of the draw at this step.

    Raises:
        ShapeError: Points, gradient and chains do not fit.
        OptionError: The forced kernel cannot run.

    Example:
        >>> from composable_energy.sampling import Noise
        >>> langevin_step(torch.ones(2, 3), torch.ones(2, 3), drift=0.25, scale=0.0, noise=Noise(0, range(2)))
        tensor([[0.7500, 0.7500, 0.7500],
                [0.7500, 0.7500, 0.7500]])
    """
    low, high = box or (None, None)
    return _step(x, gradient, None, StepCoefficients(drift, scale, keep, 0.0, low, high), noise, stream)[0]


def underdamped_step(
    x: Tensor, gradient: Tensor, momentum: Tensor, *, noise: Noise, scale: float, drift: float, keep: float, move: float, stream: int = 0
) -> tuple[Tensor, Tensor]:
    r"""Takes an underdamped Langevin step and returns points and momentum; see `langevin_step`.

    $$p \leftarrow p - a\, g, \quad x \leftarrow x + b\, p, \quad p \leftarrow c\, p + s\, \xi, \quad x \leftarrow x + b\, p$$

    Gradient $g$ and momentum $p$ have the shape of the points; `drift` is $a$, `move` $b$, `keep` $c$ and `scale` $s$.

    Raises:
        ShapeError: Points, gradient, momentum and chains do not fit.
        OptionError: There is no momentum, or the forced kernel cannot run.
    """
    moved, kick = _step(x, gradient, momentum, StepCoefficients(drift, scale, keep, move), noise, stream)
    if kick is None:
        raise OptionError("`underdamped_step` takes a momentum, got None; a step without one is `langevin_step`.")
    return moved, kick


def normal(like: Tensor, noise: Noise, scale: float = 1.0, stream: int = 0) -> Tensor:
    r"""Returns $s\, \xi$ with the shape of points, such as a momentum: `noise.normal`, by a kernel if there is one; see `langevin_step`."""
    return langevin_step(like, noise=noise, scale=scale, keep=0.0, stream=stream)


@cache
def forced_kernel() -> str | None:
    """Returns the kernel that `COMPOSABLE_ENERGY_KERNEL` names; `sample` reads it anew at each call, as a step has no time to."""
    return os.environ.get(SWITCH)


def _step(
    x: Tensor, gradient: Tensor | None, momentum: Tensor | None, coefficients: StepCoefficients, noise: Noise, stream: int
) -> tuple[Tensor, Tensor | None]:
    """Takes a step by the kernel for these points; by the reference if there is none."""
    for name, other in (("gradient", gradient), ("momentum", momentum)):
        if other is not None and other.shape != x.shape:
            raise ShapeError(f"A {name} has the shape {tuple(x.shape)} of the points, got {tuple(other.shape)}.")
    if x.shape[0] != len(noise.chains):
        raise ShapeError(f"This is the noise of {len(noise.chains)} chains, got {len(x)} points; use `noise.for_chains`.")
    forced = "torch" if is_dynamo_compiling() else forced_kernel()
    plain = (x.is_cpu and not forced) or forced == "torch" or x.numel() == 0 or torch.compiler.is_compiling()
    if (kernel := None if plain else _kernel_for(x, gradient, momentum, noise, forced)) is None:
        return reference_step(x, gradient, momentum, coefficients, noise, stream)
    x, moved = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    gradient, momentum = (None if some is None else some.contiguous() for some in (gradient, momentum))
    kick = None if momentum is None else torch.empty_like(momentum)
    kernel.langevin_step(x, gradient, momentum, coefficients, noise, stream, moved, kick)
    return moved, kick


def reference_step(
    x: Tensor, gradient: Tensor | None, momentum: Tensor | None, coefficients: StepCoefficients, noise: Noise, stream: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Returns points and momentum after a step in torch; see `Kernel.langevin_step`. Half precision is computed in float32."""
    if x.dtype in (torch.bfloat16, torch.float16):
        gradient, momentum = (None if some is None else some.float() for some in (gradient, momentum))
        moved, kick = reference_step(x.float(), gradient, momentum, coefficients, noise, stream)
        return moved.to(x.dtype), None if kick is None else kick.to(x.dtype)
    drift, scale, keep, move, low, high = coefficients
    if momentum is None:
        if keep != 1.0 or gradient is None:
            x = torch.zeros_like(x) if keep == 0.0 else x * keep
        x = x if gradient is None else torch.add(x, gradient, alpha=-drift)
        x = x if scale == 0.0 else noise.add_normal_(x, scale, stream)
    else:
        momentum = momentum.clone() if gradient is None else torch.add(momentum, gradient, alpha=-drift)
        x = torch.add(x, momentum, alpha=move)
        momentum = momentum.mul_(keep) if scale == 0.0 else noise.add_normal_(momentum.mul_(keep), scale, stream)
        x = x.add_(momentum, alpha=move)
    return x if low is None else x.clamp_(low, high), momentum


def _kernel_for(x: Tensor, gradient: Tensor | None, momentum: Tensor | None, noise: Noise, forced: str | None) -> Kernel | None:
    """Returns the kernel for a step; None for the reference."""
    others = [some for some in (gradient, momentum) if some is not None]
    step = ""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *others)):
        step = "a gradient of the step itself is needed"
    elif x.is_cpu and noise.kind != "philox":
        step = f"it draws Philox noise, and the noise is {noise.kind!r}"
    elif not isinstance(noise.chains, range) or noise.chains.step != 1:
        step = "the ids of the chains are not consecutive"
    elif any(other.dtype != x.dtype or other.device != x.device for other in others):
        step = "points, gradient and momentum differ in dtype or device"
    session = tuple(factory for (kind, _), factory in registered.items() if kind == "kernel")
    refusals = []
    for name, kernel, fault in _kernels(forced, session):
        if not (reason := fault or step or kernel.refusal(x)):
            return kernel
        refusals.append(f"{name}: {reason}")
    if forced:
        raise OptionError(f"{SWITCH} names a kernel which cannot run here ({refusals[0]}). Unset it, or set it to 'torch'.")
    _log_once(f"Steps on {x.device.type} run in torch, without a fused kernel ({'; '.join(refusals) or 'none is installed'}).")
    return None


@cache
def _kernels(forced: str | None, session: tuple[Any, ...]) -> list[tuple[str, Any, str]]:
    """Returns the forced kernel, or all that load, each with the reason if it cannot run; `session` keys the cache."""
    found = []
    for name in [forced] if forced else names("kernel"):
        try:
            kernel = get("kernel", name)
        except ComposableEnergyError as error:
            if forced:
                raise
            _log_once(str(error))
            continue
        ready, reason = kernel.available()
        found.append((name, kernel, "" if ready else reason))
    return found


@cache
def _log_once(message: str) -> None:
    _LOGGER.warning(message)
