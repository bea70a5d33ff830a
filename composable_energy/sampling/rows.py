"""An energy for some of the chains, each with its own row of the bound conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from composable_energy.conditions import CHAINS
from composable_energy.energy import Energy

__all__ = ["on_rows"]


def on_rows(energy: Energy, rows: Sequence[int], n: int) -> Energy:
    """Returns an energy that gets points of some rows out of `n`, which have conditions of their own."""
    if CHAINS not in energy.conditions or rows == range(n):
        return energy
    if isinstance(rows, range) and rows.step == 1:
        return _Rows(energy, slice(rows.start, rows.stop))
    return _Rows(energy, torch.tensor(list(rows)))


class _Rows(Energy):
    """An energy evaluated for some of the chains, so that each gets its own row of the bound conditions."""

    def __init__(self, energy: Energy, rows: slice | Tensor) -> None:
        super().__init__()
        self.energy = energy
        self.rows = rows
        self.event_shape = energy.event_shape

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.energy(x, **{CHAINS: self.rows, **conditions})

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.energy.evidence(x, **{CHAINS: self.rows, **conditions})

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
