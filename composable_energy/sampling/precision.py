"""Energies whose networks compute in bfloat16."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from composable_energy.energy import Energy
from composable_energy.errors import OptionError
from composable_energy.identity import set_token, token_of
from composable_energy.sampling.gradient_checks import mixes_values
from composable_energy.sampling.sampler import Sampler
from composable_energy.sampling.wrappers import EqualEnergy

__all__ = ["Precision", "in_precision"]

Precision = Literal["float32", "bfloat16"]


def in_precision(energy: Energy, precision: Precision, sampler: Sampler, best_of: int, dtype: torch.dtype) -> Energy:
    """Returns an energy whose products of matrices and convolutions have a precision.

    Args:
        energy: The energy.
        precision: `"float32"` changes nothing.
        sampler: The sampler that follows its gradients.
        best_of: The number of draws of which one is chosen.
        dtype: The dtype of the points.

    Raises:
        OptionError: The draws depend on values, which have three digits in bfloat16, or the points are not in float32.
    """
    if precision == "float32":
        return energy
    if any(hasattr(part, "compiled_steps") for part in energy.modules()):
        raise OptionError("An energy by `compiled` has the precision that it was compiled in: give compile=True to `sample` instead.")
    what = None
    if sampler.needs_values or sampler.carries_log_densities:
        what = f"the sampler {type(sampler).__name__.lower()}"
    elif best_of > 1:
        what = "best_of"
    elif mixes_values(energy):
        what = "`|`"
    if what is not None:
        raise OptionError(
            f"precision='bfloat16' rounds energies to three digits, and {what} compares energies: leave it out, or take a sampler that "
            "follows gradients alone, such as 'langevin' or 'annealed', for an expression of `&` and `~`."
        )
    if dtype != torch.float32:
        raise OptionError(f"precision='bfloat16' is for points in float32, got {dtype}: give dtype=torch.float32, or leave precision out.")
    return _Bfloat16(energy)


class _Bfloat16(EqualEnergy):
    """An energy that is evaluated under autocast: products and convolutions in bfloat16, the rest as it is."""

    rounding = torch.finfo(torch.bfloat16).eps

    def __init__(self, energy: Energy) -> None:
        super().__init__(energy)
        set_token(self, f"bfloat16 {token_of(energy)}")  # the same in each call, so that compiled functions are kept

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.energy(x, **conditions).to(x.dtype)

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, torch.bfloat16):
            energies, gradient = self.energy.with_gradient(x, **conditions)
        return energies.to(x.dtype), gradient.to(x.dtype)

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.energy.evidence(x, **conditions).to(x.dtype)
