"""The step as torch operators with Philox noise, for `torch.compile` and autograd.

Operators take seeds as signed numbers of 64 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from composable_energy.kernels.dispatch import forced_kernel, kernel_for
from composable_energy.kernels.kernel import Counter, Kernel, StepCoefficients
from composable_energy.kernels.reference import reference_step
from composable_energy.noise import Noise

_NUMBERS = (
    "float[] weights, float drift, float scale, float keep, float move, float? low, float? high, "
    "SymInt seed, SymInt step, SymInt chain, SymInt stream"
)


@torch.library.custom_op(
    "composable_energy::langevin_step",
    mutates_args=(),
    schema=f"(Tensor x, Tensor[] gradients, Tensor? momentum, {_NUMBERS}) -> Tensor[]",
)
def step(x: Tensor, gradients: list[Tensor], momentum: Tensor | None, weights: list[float], *numbers: Any) -> list[Tensor]:
    """Takes a step and returns the points, and the momentum if there is one."""
    return _run(x, gradients, momentum, weights, numbers, inplace=False)


@step.register_fake
def _(x: Tensor, gradients: list[Tensor], momentum: Tensor | None, *coefficients: object) -> list[Tensor]:
    return [torch.empty_like(some, memory_format=torch.contiguous_format) for some in (x, momentum) if some is not None]


@torch.library.custom_op(
    "composable_energy::langevin_step_",
    mutates_args=("x", "momentum"),
    schema=f"(Tensor(a!) x, Tensor[] gradients, Tensor(b!)? momentum, {_NUMBERS}) -> ()",
)
def step_(x: Tensor, gradients: list[Tensor], momentum: Tensor | None, weights: list[float], *numbers: Any) -> None:
    """Takes a step in place."""
    _run(x, gradients, momentum, weights, numbers, inplace=True)


@step_.register_fake
def _(x: Tensor, gradients: list[Tensor], momentum: Tensor | None, *coefficients: object) -> None:
    return None


def run(
    kernel: Kernel,
    x: Tensor,
    gradients: Sequence[Tensor],
    momentum: Tensor | None,
    coefficients: StepCoefficients,
    counter: Counter,
    inplace: bool,
) -> tuple[Tensor, Tensor | None]:
    """Takes a step with a kernel, which gets contiguous tensors; contiguous ones are written in place if requested."""
    x, momentum = x.contiguous(), None if momentum is None else momentum.contiguous()
    out = x if inplace else torch.empty_like(x)
    out_momentum = momentum if inplace or momentum is None else torch.empty_like(momentum)
    kernel.langevin_step(x, [gradient.contiguous() for gradient in gradients], momentum, coefficients, counter, out, out_momentum)
    return out, out_momentum


def to_signed(seed: int) -> int:
    """Returns a seed, modulo 2^64, as a signed number."""
    return (seed + 2**63) % 2**64 - 2**63


def _run(
    x: Tensor, gradients: list[Tensor], momentum: Tensor | None, weights: list[float], numbers: Sequence[Any], inplace: bool
) -> list[Tensor]:
    coefficients = StepCoefficients(tuple(weights), *numbers[:6])
    counter = Counter(numbers[6] % 2**64, *numbers[7:])
    noise = Noise(counter.seed, range(counter.chain, counter.chain + len(x)), counter.step, "philox")
    others = gradients if momentum is None else [*gradients, momentum]
    kernel = None if x.is_cpu and forced_kernel() is None else kernel_for(x, others, noise)
    contiguous = x.is_contiguous() and (momentum is None or momentum.is_contiguous())
    if kernel is None or (inplace and not contiguous):
        moved, kick = reference_step(x, gradients, momentum, coefficients, noise, counter.stream, inplace)
    else:
        moved, kick = run(kernel, x, gradients, momentum, coefficients, counter, inplace)
    return [moved] if kick is None else [moved, kick]
