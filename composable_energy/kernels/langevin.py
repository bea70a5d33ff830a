"""The fused Langevin step of all samplers; its implementation depends on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy.kernels import operators
from composable_energy.kernels.dispatch import forced_kernel, kernel_for
from composable_energy.kernels.kernel import Counter, StepCoefficients
from composable_energy.kernels.reference import reference_step
from composable_energy.noise import Noise

_ONE = (1.0,)
_WIDE = (torch.float32, torch.float64)


@overload
def langevin_step(
    x: Tensor,
    gradients: Tensor | Sequence[Tensor] = ...,
    *,
    noise: Noise,
    scale: float,
    drift: float = ...,
    weights: Sequence[float] | None = ...,
    keep: float = ...,
    box: tuple[float, float] | None = ...,
    momentum: None = ...,
    move: float = ...,
    stream: int = ...,
    inplace: bool = ...,
) -> Tensor: ...
@overload
def langevin_step(
    x: Tensor,
    gradients: Tensor | Sequence[Tensor] = ...,
    *,
    noise: Noise,
    scale: float,
    drift: float = ...,
    weights: Sequence[float] | None = ...,
    keep: float = ...,
    box: tuple[float, float] | None = ...,
    momentum: Tensor,
    move: float = ...,
    stream: int = ...,
    inplace: bool = ...,
) -> tuple[Tensor, Tensor]: ...
def langevin_step(
    x: Tensor,
    gradients: Tensor | Sequence[Tensor] = (),
    *,
    noise: Noise,
    scale: float,
    drift: float = 0.0,
    weights: Sequence[float] | None = None,
    keep: float = 1.0,
    box: tuple[float, float] | None = None,
    momentum: Tensor | None = None,
    move: float = 0.0,
    stream: int = 0,
    inplace: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Takes a Langevin step, fused to one pass over the points if there is a kernel for them.

    $$x' = c\, x - a \sum_k w_k g_k + s\, \xi$$

    With a momentum $p$ it is an underdamped step:

    $$p \leftarrow p - a \sum_k w_k g_k, \quad x \leftarrow x + b\, p, \quad p \leftarrow c\, p + s\, \xi, \quad x \leftarrow x + b\, p.$$

    On the CPU the step runs in torch, with any kind of noise. On other devices it runs in a kernel from an entry point (Triton on CUDA).
    If the kernel refuses (float64, ids that are not consecutive, a differentiated step), it runs in torch with the same Philox noise, and
    the reason is logged once. The environment variable `COMPOSABLE_ENERGY_KERNEL` forces a kernel, or `torch`.

    Args:
        x: The points, with shape $(B, *)$.
        gradients: $g_k$, one or several, each with the shape of the points.
        noise: The noise of these chains at this step.
        scale: $s$; with 0 no noise is drawn.
        drift: $a$.
        weights: $w_k$, one for each gradient; 1 each if None.
        keep: $c$; with 0 and without momentum only the shape of the points is used.
        box: The lower and upper bound of coordinates, to which points are clamped at the end.
        momentum: $p$, with the shape of the points.
        move: $b$.
        stream: The number of the draw at this step.
        inplace: Whether to write to `x` and `momentum`.

    Returns:
        The points; with a momentum, the pair of points and momentum.

    Raises:
        ShapeError: Points, gradients, momentum and chains do not fit.
        OptionError: The numbers of weights and gradients differ, or the forced kernel cannot run.

    Example:
        >>> import torch
        >>> from composable_energy.sampling import Noise
        >>> langevin_step(torch.ones(2, 3), torch.ones(2, 3), drift=0.25, scale=0.0, noise=Noise(0, range(2)))
        tensor([[0.7500, 0.7500, 0.7500],
                [0.7500, 0.7500, 0.7500]])
    """
    if isinstance(gradients, Tensor):
        simple = momentum is None and weights is None and keep == 1.0 and scale != 0.0 and not inplace and x.shape == gradients.shape
        if simple and x.is_cpu and x.dtype in _WIDE and forced_kernel() is None and not torch.compiler.is_compiling():
            # The reference at once: for few chains the calls below take longer than the arithmetic.
            moved = noise.add_normal_(torch.add(x, gradients, alpha=-drift), scale, stream)
            return moved if box is None else moved.clamp_(*box)
        gradients = (gradients,)
    if weights is None:
        weights = _ONE if len(gradients) == 1 else _ONE * len(gradients)
    low, high = (None, None) if box is None else box
    coefficients = StepCoefficients(tuple(weights), drift, scale, keep, move, low, high)
    _check(x, gradients, momentum, coefficients, noise)
    moved, kick = _dispatch(x, gradients, momentum, coefficients, noise, stream, inplace)
    return moved if kick is None else (moved, kick)


def _dispatch(
    x: Tensor,
    gradients: Sequence[Tensor],
    momentum: Tensor | None,
    coefficients: StepCoefficients,
    noise: Noise,
    stream: int,
    inplace: bool,
) -> tuple[Tensor, Tensor | None]:
    """Runs the step by the operator, a kernel or the reference; returns points and momentum."""
    if noise.kind == "philox" and torch.compiler.is_compiling() and isinstance(noise.chains, range) and noise.chains.step == 1:
        return _run_operator(x, gradients, momentum, coefficients, _counter(noise, stream), inplace)
    if x.is_cpu and forced_kernel() is None:
        return reference_step(x, gradients, momentum, coefficients, noise, stream, inplace)
    kernel = kernel_for(x, gradients if momentum is None else (*gradients, momentum), noise)
    if kernel is None:
        return reference_step(x, gradients, momentum, coefficients, noise, stream, inplace)
    if inplace:
        return _run_operator(x, gradients, momentum, coefficients, _counter(noise, stream), inplace)
    return operators.run(kernel, x, gradients, momentum, coefficients, _counter(noise, stream), inplace)


def normal(like: Tensor, noise: Noise, scale: float = 1.0, stream: int = 0) -> Tensor:
    r"""Returns $s\, \xi$ with the shape of points, such as a momentum: `noise.normal`, by a kernel if there is one.

    Args:
        like: The points, with shape $(B, *)$.
        noise: The noise of these chains at this step.
        scale: $s$.
        stream: The number of the draw at this step.
    """
    return langevin_step(like, noise=noise, scale=scale, keep=0.0, stream=stream)


def _check(x: Tensor, gradients: Sequence[Tensor], momentum: Tensor | None, coefficients: StepCoefficients, noise: Noise) -> None:
    if len(coefficients.weights) != len(gradients):
        raise OptionError(f"There are {len(gradients)} gradients and {len(coefficients.weights)} weights; give one for each.")
    shape = x.shape
    for gradient in gradients:
        if gradient.shape != shape:
            raise ShapeError(f"Gradients have the shape {tuple(shape)} of the points, got {tuple(gradient.shape)}.")
    if momentum is not None and momentum.shape != shape:
        raise ShapeError(f"A momentum has the shape {tuple(shape)} of the points, got {tuple(momentum.shape)}.")
    if shape[0] != len(noise.chains):
        raise ShapeError(f"This is the noise of {len(noise.chains)} chains, got {shape[0]} points; use `noise.for_chains`.")


def _counter(noise: Noise, stream: int) -> Counter:
    return Counter(noise.seed % 2**64, noise.step, noise.chains[0] if noise.chains else 0, stream)


def _run_operator(
    x: Tensor, gradients: Sequence[Tensor], momentum: Tensor | None, coefficients: StepCoefficients, counter: Counter, inplace: bool
) -> tuple[Tensor, Tensor | None]:
    args = (x, list(gradients), momentum, list(coefficients.weights), *coefficients[1:], operators.to_signed(counter.seed), *counter[1:])
    if inplace:
        operators.step_(*args)
        return x, momentum
    moved, *kick = operators.step(*args)
    return moved, kick[0] if kick else None
