"""An energy for some of the chains, each with its own row of the bound conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from composable_energy.algebra import Conditioned
from composable_energy.conditions import CHAINS
from composable_energy.energy import Energy
from composable_energy.events.leaves import HeadEnergy

__all__ = ["has_rows", "on_rows", "repeated"]


def on_rows(energy: Energy, rows: Sequence[int], n: int) -> Energy:
    """Returns an energy that gets points of some rows out of `n`, which have conditions of their own."""
    if CHAINS not in energy.conditions or rows == range(n):
        return energy
    if isinstance(rows, range) and rows.step == 1:
        return _Rows(energy, slice(rows.start, rows.stop))
    return _Rows(energy, torch.tensor(list(rows)))


def repeated(energy: Energy, n: int, times: int) -> Energy:
    """Returns an energy for several points of each chain, as a sampler has that gives replicas to its chains.

    Args:
        energy: The energy that the sampler got, for one point of each of `n` chains.
        n: How many chains there are.
        times: How many points each of them has, one after another.
    """
    if isinstance(energy, _Rows):
        whole, rows = energy.energy, energy.rows
        rows = torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
    elif CHAINS in energy.conditions:
        whole, rows = energy, torch.arange(n)
    else:
        return energy
    return _Rows(whole, rows.repeat_interleave(times))


def has_rows(energy: Energy) -> bool:
    """Returns whether chains have bound conditions of their own, so that no point of one may become that of another."""
    if isinstance(energy, _Rows):
        return has_rows(energy.energy)
    if CHAINS not in energy.conditions:
        return False
    if isinstance(energy, HeadEnergy) and CHAINS in energy.head_conditions[0]:
        return True
    bound = energy.values.values() if isinstance(energy, Conditioned) else ()
    if any(isinstance(value, Tensor) and value.ndim > 0 and len(value) != 1 for value in bound):
        return True
    inside = [*energy.terms, *(base.energy for base in energy.bases)]
    return not inside or any(has_rows(part) for part in inside)


class _Rows(Energy):
    """An energy evaluated for some of the chains, so that each gets its own row of the bound conditions."""

    def __init__(self, energy: Energy, rows: slice | Tensor) -> None:
        super().__init__()
        self.energy = energy
        self.rows = rows
        self.event_shape = energy.event_shape

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.energy(x, **{CHAINS: self.rows, **conditions})

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        return self.energy.with_gradient(x, **{CHAINS: self.rows, **conditions})

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.energy.evidence(x, **{CHAINS: self.rows, **conditions})

    @property
    def has_value(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.energy.has_value

    @property
    def evidence_has_value(self) -> bool:
        return self.energy.evidence_has_value

    @property
    def terms(self) -> tuple[Energy, ...]:
        return (self.energy,)

    @property
    def conditions(self) -> frozenset[str]:
        return self.energy.conditions - {CHAINS}

    @property
    def required_conditions(self) -> frozenset[str]:
        return self.energy.required_conditions - {CHAINS}

    def __str__(self) -> str:
        return str(self.energy)
