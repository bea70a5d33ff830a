"""The reference implementation of the step in torch, used where no kernel runs and to check kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from composable_energy.kernels.kernel import StepCoefficients
from composable_energy.noise import Noise


def reference_step(
    x: Tensor,
    gradients: Sequence[Tensor],
    momentum: Tensor | None,
    coefficients: StepCoefficients,
    noise: Noise,
    stream: int,
    inplace: bool,
) -> tuple[Tensor, Tensor | None]:
    """Takes a step; see `langevin_step`. Half precision is computed in float32 and rounded once."""
    if x.dtype in (torch.bfloat16, torch.float16):
        wide = [gradient.float() for gradient in gradients]
        moved, kick = reference_step(x.float(), wide, None if momentum is None else momentum.float(), coefficients, noise, stream, True)
        if inplace:
            return x.copy_(moved), None if momentum is None or kick is None else momentum.copy_(kick)
        return moved.to(x.dtype), None if kick is None else kick.to(x.dtype)
    if momentum is None:
        x = _add_noise(_apply_force(x, gradients, coefficients, coefficients.keep, inplace), coefficients, noise, stream)
    else:
        momentum = _apply_force(momentum, gradients, coefficients, 1.0, inplace)
        x = x.add_(momentum, alpha=coefficients.move) if inplace else torch.add(x, momentum, alpha=coefficients.move)
        momentum = _add_noise(momentum.mul_(coefficients.keep), coefficients, noise, stream)
        x = x.add_(momentum, alpha=coefficients.move)
    if coefficients.low is not None:
        x = x.clamp_(coefficients.low, coefficients.high)
    return x, momentum


def _apply_force(start: Tensor, gradients: Sequence[Tensor], coefficients: StepCoefficients, keep: float, inplace: bool) -> Tensor:
    """Returns `keep * start` minus the weighted gradients."""
    factors = [-coefficients.drift * weight for weight in coefficients.weights]
    if inplace:
        pushed = start.mul_(keep) if keep not in (0.0, 1.0) else start if keep else start.zero_()
    elif keep == 0.0:
        pushed = torch.zeros_like(start)
    elif keep == 1.0 and gradients:
        pushed, gradients, factors = torch.add(start, gradients[0], alpha=factors[0]), gradients[1:], factors[1:]
    else:
        pushed = start * keep
    for gradient, factor in zip(gradients, factors, strict=True):
        pushed.add_(gradient, alpha=factor)
    return pushed


def _add_noise(x: Tensor, coefficients: StepCoefficients, noise: Noise, stream: int) -> Tensor:
    return noise.add_normal_(x, coefficients.scale, stream) if coefficients.scale != 0.0 else x
