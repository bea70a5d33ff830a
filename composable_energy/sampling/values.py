"""Whether an energy is the same as before: energies and gradients at stored points, computed again and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from composable_energy.energy import Energy
from composable_energy.errors import ExpressionError
from composable_energy.sampling.roster import compact
from composable_energy.sampling.rows import on_rows
from composable_energy.sampling.sampler import Sampler, State, energy_and_gradient

__all__ = ["Evaluator", "Values", "join_values"]

_LEVEL = 1.0  # where a condition that the sampler binds is compared, beside its last value


@dataclass(frozen=True)
class Values:
    """What an energy says at $m$ points of chains, under each of $L$ sets of conditions.

    Args:
        chains: The ids of the chains, with shape $(m,)$.
        x: The points, with shape $(m, *)$.
        energies: With shape $(m, L)$.
        grads: The gradients, with shape $(m, L, *)$; not a number where none is known, and nothing is compared.
        evidence: With shape $(m, 1)$ where the evidence chooses among several chains, else $(m, 0)$.
    """

    chains: Tensor
    x: Tensor
    energies: Tensor
    grads: Tensor
    evidence: Tensor

    @classmethod
    def of_states(cls, chains: Sequence[int], states: Sequence[State]) -> Values:
        """Returns what states of chains hold, for a sampler that binds no condition; gradients of zero alone are none."""
        x, energies, grads = (torch.cat([getattr(state, name) for state in states]) for name in ("x", "energy", "grad"))
        known = energies.isfinite() if grads.any() else torch.zeros_like(energies, dtype=torch.bool)
        grads = torch.where(known.view(-1, *[1] * (x.ndim - 1)), grads, torch.nan)
        return cls(torch.tensor(list(chains), dtype=torch.int64), x, energies[:, None], grads[:, None], energies.new_empty(len(x), 0))

    def of(self, chains: range) -> Values:
        """Returns those of some chains."""
        own = torch.tensor([i in chains for i in self.chains.tolist()], dtype=torch.bool)
        return Values(*(tensor[own.to(tensor.device)] for tensor in self._tensors))

    def to(self, device: torch.device) -> Values:
        """Returns them on a device."""
        return Values(*(tensor.to(device) for tensor in self._tensors))

    @property
    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class Evaluator:
    """Evaluates an energy at points of chains, and compares it with what it said before.

    Args:
        energy: The energy.
        sampler: The sampler, which may bind conditions itself: these get its last value, and another.
        n: How many rows bound conditions have.
        copies: How many chains share a row.
        size: How many points are evaluated together.
    """

    energy: Energy
    sampler: Sampler
    n: int
    copies: int
    size: int

    def values(self, chains: Sequence[int], x: Tensor) -> Values:
        """Returns the values at points of chains.

        Args:
            chains: Their ids, counted from 0.
            x: The points, with shape $(m, *)$.
        """
        ids = torch.tensor(list(chains), dtype=torch.int64)
        if not len(ids):
            levels = len(self._levels)
            return Values(ids, x, x.new_empty(0, levels), x.new_empty(0, levels, *x.shape[1:]), x.new_empty(0, int(self.copies > 1)))
        return join_values([self._some(*part) for part in zip(ids.split(self.size), x.split(self.size), strict=True)])

    @property
    def as_states(self) -> bool:
        """Whether states of the sampler hold the values, as far as they are compared."""
        return self.copies == 1 and not self.sampler.binds & self.energy.conditions

    def difference(self, before: Values) -> str | None:
        """Returns where the energy is not what it was, as text; None if it is the same up to rounding."""
        if not len(before.x):
            return None
        now = self.values(before.chains.tolist(), before.x)
        near, close = _tolerances(before)
        for name, was, found, tolerance in (
            ("energy", before.energies, now.energies, near),
            ("gradient", _flat(before.grads), _flat(now.grads), close),
            ("evidence", before.evidence, now.evidence, near.amax(1, keepdim=True)),
        ):
            both = was.isfinite() & found.isfinite()
            unknown = was.isnan() if name == "gradient" else was.isnan() & found.isnan()
            same = torch.where(both, (found - was).abs() <= tolerance, (was == found) | unknown)
            if not same.all():
                row, level, *_ = place = tuple((~same).nonzero()[0].tolist())
                known = self._levels[level] if name != "evidence" else {}
                under = "".join(f" at {condition}={value:.4g}" for condition, value in known.items())
                old, new = _told_apart(was[place].item(), found[place].item())
                return f"where chain {int(before.chains[row])} was, the {name}{under} was {old} and is {new} now"
        return None

    def _some(self, chains: Tensor, x: Tensor) -> Values:
        rows = compact([chain // self.copies for chain in chains.tolist()])
        energy = on_rows(self.energy, rows, self.n)
        pairs = [_energy_and_gradient(energy, x, conditions) for conditions in self._levels]
        evidence = x.new_empty(len(x), 0)
        if self.copies > 1:
            last = {name: x.new_full((len(x),), value) for name, value in self.sampler.final_conditions(self.energy).items()}
            evidence = energy.evidence(x, **last)[:, None]
        return Values(chains, x, torch.stack([pair[0] for pair in pairs], 1), torch.stack([pair[1] for pair in pairs], 1), evidence)

    @property
    def _levels(self) -> list[dict[str, float]]:
        """The sets of conditions to compare under."""
        names = sorted(self.sampler.binds & self.energy.conditions)
        if not names:
            return [{}]
        last = self.sampler.final_conditions(self.energy)
        return [{name: float(last.get(name, _LEVEL / 10)) for name in names}, dict.fromkeys(names, _LEVEL)]


def join_values(parts: Sequence[Values]) -> Values:
    """Returns values of several groups of chains as one."""
    if len(parts) == 1:
        return parts[0]
    return Values(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Values)))


def _energy_and_gradient(energy: Energy, x: Tensor, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    try:
        return energy_and_gradient(energy, x, **conditions)
    except ExpressionError:  # no gradient, of which some samplers have no need
        rows = {name: x.new_full((len(x),), value) for name, value in conditions.items()}
        return energy(x, **rows), torch.full_like(x, torch.nan)


def _tolerances(values: Values) -> tuple[Tensor, Tensor]:
    r"""Returns how far energies, with shape $(m, L)$, and gradients, with shape $(m, L, 1)$, may be from those of another batch size.

    Both are relative: to $1 + |E| + \sum_i |x_i \partial_i E|$, which covers terms that cancel, and to the largest
    $|\partial_i E|$ of the point. Beside that a gradient may differ by what changes no energy over the width of the points, and by the
    rounding of larger ones that cancel near a minimum.
    """
    size, grads = max(1, values.x[0].numel()), _flat(values.grads).nan_to_num(0, 0, 0).abs()
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (values.x, values.energies, values.grads))
    rounding = min(eps ** (2 / 3) * size**0.5, eps**0.5)
    x = values.x.reshape(len(values.x), 1, -1).nan_to_num(0, 0, 0).abs()
    near = rounding * (1 + values.energies.abs() + (x * grads).sum(2))
    close = rounding * (grads.amax(2) + 1 / x.amax().clamp_min(1)) + min(64 * eps, rounding) * grads.amax((0, 2))
    return near, close[..., None]


def _told_apart(old: float, new: float) -> tuple[str, str]:
    """Writes two numbers with as many digits as show that they differ."""
    digits = next((digits for digits in (6, 9) if f"{old:.{digits}g}" != f"{new:.{digits}g}"), 17)
    return f"{old:.{digits}g}", f"{new:.{digits}g}"


def _flat(grads: Tensor) -> Tensor:
    return grads.reshape(*grads.shape[:2], -1)
