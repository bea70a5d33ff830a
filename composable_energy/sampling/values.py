"""Values of an energy at points of chains, and whether they are those of before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.conditions import CHAINS
from composable_energy.energy import Energy
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.evaluation import substituting
from composable_energy.sampling.evaluation import energy_and_gradient
from composable_energy.sampling.sampler import Sampler, State, bound_conditions
from composable_energy.sampling.wrappers import select_rows


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

    def repeat(self, row: int, x: Tensor) -> Values:
        """Returns the values of one row for as many copies of its point."""
        chains, _, *values = (tensor[row].expand(len(x), *tensor.shape[1:]) for tensor in self._tensors())
        return Values(chains, x, *values)

    def to(self, device: torch.device) -> Values:
        """Returns the values on a device."""
        return Values(*(tensor.to(device) for tensor in self._tensors()))

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


def join_values(parts: Sequence[Values]) -> Values:
    """Returns values of several groups of chains as one."""
    if len(parts) == 1:
        return parts[0]
    return Values(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Values)))


@dataclass(frozen=True)
class Evaluator:
    """Evaluates an energy at points of chains, and compares the values with earlier ones.

    Args:
        energy: The energy.
        sampler: The sampler. Conditions that it binds get two values.
        rows: The number of rows of bound conditions.
        batch_size: How many points are evaluated together.
    """

    energy: Energy
    sampler: Sampler
    rows: int
    batch_size: int

    def values(self, chains: Tensor, x: Tensor) -> Values:
        """Returns the values at points of chains.

        Args:
            chains: Their ids, counted from 0, with shape $(m,)$.
            x: The points, with shape $(m, *)$.
        """
        if not len(chains):
            levels = len(self._conditions())
            return Values(chains, x, x.new_empty(0, levels), x.new_empty(0, levels, *x.shape[1:]))
        return join_values([self._batch(*batch) for batch in zip(chains.split(self.batch_size), x.split(self.batch_size), strict=True)])

    @property
    def states_hold_values(self) -> bool:
        """Whether states of the sampler hold all values that are compared."""
        return self.energy.conditions.isdisjoint(self.sampler.traits.binds)

    def difference(self, before: Values) -> str | None:
        """Describes the first value that changed by more than rounding; None if there is none."""
        if not len(before.x):
            return None
        now = self.values(before.chains.cpu(), before.x)
        if now.energies.shape != before.energies.shape:
            return f"{before.energies.shape[1]} energies of each point were kept, and the sampler compares {now.energies.shape[1]}"
        near, close = _tolerances(before)
        for name, old, new, tolerance in (
            ("energy", before.energies, now.energies, near),
            ("gradient", _flat(before.grads), _flat(now.grads), close),
        ):
            both = old.isfinite() & new.isfinite()
            unknown = old.isnan() if name == "gradient" else old.isnan() & new.isnan()
            same = torch.where(both, (new - old).abs() <= tolerance, (old == new) | unknown)
            if not same.all():
                row, level, *_ = place = tuple((~same).nonzero()[0].tolist())
                under = "".join(f" at {condition}={value:.4g}" for condition, value in self._conditions()[level].items())
                a, b = old[place].item(), new[place].item()
                digits = next((digits for digits in (6, 9) if f"{a:.{digits}g}" != f"{b:.{digits}g}"), 17)
                chain = int(before.chains[row])
                return f"where chain {chain} was, the {name}{under} was {a:.{digits}g} and is {b:.{digits}g} now"
        return None

    def _batch(self, chains: Tensor, x: Tensor) -> Values:
        energy = self._energy_of(chains)
        energies, grads = zip(*(_energy_and_gradient(energy, x, conditions) for conditions in self._conditions()), strict=True)
        return Values(chains, x, torch.stack(energies, 1), torch.stack(grads, 1))

    def _energy_of(self, chains: Tensor) -> Energy:
        if CHAINS not in self.energy.conditions:
            return self.energy
        return select_rows(self.energy, chains, self.rows)

    def _conditions(self) -> list[dict[str, float]]:
        """Returns the sets of conditions to compare under."""
        if self.states_hold_values:
            return [{}]
        return [bound_conditions(self.sampler, self.energy, last=last) for last in (True, False)]


def check_same_energy(evaluator: Evaluator, reference: Sequence[Values], checkpoint: str | Path | None = None) -> None:
    """Raises if an energy has other values than before.

    Args:
        evaluator: Evaluates the energy.
        reference: The values of before.
        checkpoint: The file that holds the reference; None for a trace.

    Raises:
        OptionError: The energy is another one, or its weights have changed: a step would mix both.
    """
    problem = next(filter(None, map(evaluator.difference, reference)), None)
    if problem is not None and checkpoint is None:
        raise OptionError(
            f"The trace is of another energy than {evaluator.energy}: {problem}. To start this energy at the points of the trace give them "
            "as `init`."
        )
    if problem is not None:
        raise OptionError(
            f"{checkpoint} belongs to a call of another energy than {evaluator.energy}: {problem}. Give another path, or delete it to "
            "begin anew."
        )


def _energy_and_gradient(energy: Energy, x: Tensor, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    try:
        with substituting({}) if energy.needs_log_densities else nullcontext():  # values of scores count as 0, which identifies them too
            return energy_and_gradient(energy, x, **conditions)
    except ExpressionError:  # the energy has no gradient, and some samplers need none
        return energy(x, **{name: x.new_full((len(x),), value) for name, value in conditions.items()}), torch.full_like(x, torch.nan)


def _tolerances(values: Values) -> tuple[Tensor, Tensor]:
    r"""Returns how far energies, with shape $(m, L)$, and gradients, with shape $(m, L, 1)$, may be from those of another batch size.

    Both are relative: to $1 + |E| + \sum_i |x_i \partial_i E|$, which covers terms that cancel, and to the largest $|\partial_i E|$ of
    the point. A gradient may also differ by what changes no energy over the width of the points, and by the rounding of larger ones that
    cancel near a minimum.
    """
    size, grads = max(1, values.x[0].numel()), _flat(values.grads).nan_to_num(0, 0, 0).abs()
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (values.x, values.energies, values.grads))
    rounding = min(eps ** (2 / 3) * size**0.5, eps**0.5)
    x = values.x.reshape(len(values.x), 1, -1).nan_to_num(0, 0, 0).abs()
    near = rounding * (1 + values.energies.abs() + (x * grads).sum(2))
    close = rounding * (grads.amax(2) + 1 / x.amax().clamp_min(1)) + min(64 * eps, rounding) * grads.amax((0, 2))
    return near, close[..., None]


def _flat(grads: Tensor) -> Tensor:
    return grads.reshape(*grads.shape[:2], -1)
