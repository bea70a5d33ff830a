"""Values of an energy at points of chains, and whether they are those of before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.sampling.sampler import State


@dataclass(frozen=True)
class Values:
    """Energies and gradients at $m$ points of chains, under each of $L$ sets of conditions.

    Args:
        chains: The ids of the chains, with shape $(m,)$.
        x: The points, with shape $(m, *)$.
        energies: The energies, with shape $(m, L)$.
        grads: The gradients, with shape $(m, L, *)$; NaN where none is known, which is not compared.
    """

    chains: Tensor
    x: Tensor
    energies: Tensor
    grads: Tensor

    @classmethod
    def of_state(cls, chains: Tensor, state: State) -> Values:
        """Returns the values that a state holds, for a sampler that binds no condition; gradients that are all zero count as unknown."""
        x, energies, grads = state.x, state.energy, state.grad
        known = energies.isfinite() if grads.any() else torch.zeros_like(energies, dtype=torch.bool)
        grads = torch.where(unsqueeze_to(known, x), grads, torch.nan)
        return cls(chains, x, energies[:, None], grads[:, None])

    def is_consistent(self) -> bool:
        """Returns whether the shapes fit together."""
        rows = len(self.x) if self.x.ndim else -1
        same = self.energies.ndim == 2 and len(self.energies) == rows
        return same and self.chains.shape == (rows,) and self.grads.shape == (*self.energies.shape, *self.x.shape[1:])


def first_difference(before: Values, now: Values, conditions: Sequence[Mapping[str, float]]) -> str | None:
    r"""Describes the first energy or gradient that differs by more than rounding, as of another batch size; None if there is none.

    Both may differ relative to $1 + |E| + \sum_i |x_i \partial_i E|$, which covers terms that cancel, and to the largest
    $|\partial_i E|$ of the point. A gradient may also differ by what changes no energy over the width of the points, and by the rounding
    of larger ones that cancel near a minimum.

    Args:
        before: The values of before.
        now: The values at the same points now.
        conditions: The conditions of each set, for the message.
    """
    if now.energies.shape != before.energies.shape:
        return f"{before.energies.shape[1]} energies of each point were kept, and the sampler compares {now.energies.shape[1]}"
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (before.x, before.energies, before.grads))
    rounding = min(eps ** (2 / 3) * max(1, before.x[0].numel()) ** 0.5, eps**0.5)
    slopes, new_slopes = (tensor.reshape(*tensor.shape[:2], -1) for tensor in (before.grads, now.grads))
    x, sizes = before.x.reshape(len(before.x), 1, -1).nan_to_num(0, 0, 0).abs(), slopes.nan_to_num(0, 0, 0).abs()
    near = rounding * (1 + before.energies.abs() + (x * sizes).sum(2))
    close = rounding * (sizes.amax(2) + 1 / x.amax().clamp_min(1)) + min(64 * eps, rounding) * sizes.amax((0, 2))
    for name, old, new, tolerance in (("energy", before.energies, now.energies, near), ("gradient", slopes, new_slopes, close[..., None])):
        unknown = old.isnan() if name == "gradient" else old.isnan() & new.isnan()
        both = old.isfinite() & new.isfinite()
        same = torch.where(both, (new - old).abs() <= tolerance, (old == new) | unknown)
        if same.all():
            continue
        row, level, *_ = place = tuple((~same).nonzero()[0].tolist())
        under = "".join(f" at {condition}={value:.4g}" for condition, value in conditions[level].items())
        a, b = old[place].item(), new[place].item()
        digits = next((digits for digits in (6, 9) if f"{a:.{digits}g}" != f"{b:.{digits}g}"), 17)
        return f"where chain {int(before.chains[row])} was, the {name}{under} was {a:.{digits}g} and is {b:.{digits}g} now"
    return None
