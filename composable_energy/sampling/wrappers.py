"""Energies that wrap another one while sampling, such as an energy for some of the chains with their rows of the bound conditions."""

from __future__ import annotations

from abc import ABC
from typing import Any

import torch
from torch import Tensor

from composable_energy.algebra import Conditioned
from composable_energy.energies.conditions import CHAINS
from composable_energy.energies.energy import Energy
from composable_energy.errors import ShapeError
from composable_energy.events import HeadEnergy


def _forwarded(name: str) -> Any:
    return property(lambda self: getattr(self.energy, name))


class EnergyWrapper(Energy, ABC):
    """Abstract energy with the values, conditions and name of another one. A subclass changes how that one is evaluated.

    Args:
        energy: The wrapped energy.
    """

    has_value, evidence_has_value, needs_log_densities = map(_forwarded, ("has_value", "evidence_has_value", "needs_log_densities"))
    conditions, required_conditions = _forwarded("conditions"), _forwarded("required_conditions")
    grounded, unsatisfiable = _forwarded("grounded"), _forwarded("unsatisfiable")

    def __init__(self, energy: Energy) -> None:
        super().__init__()
        self.energy = energy
        self.event_shape = energy.event_shape

    @property
    def terms(self) -> tuple[Energy, ...]:
        return (self.energy,)

    def __str__(self) -> str:
        return str(self.energy)


class _RowSelection(EnergyWrapper):
    """An energy for some of the chains: each gets its own row of the bound conditions."""

    def __init__(self, energy: Energy, rows: slice | Tensor) -> None:
        super().__init__(energy)
        self.rows = rows

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.energy(x, **{CHAINS: self.rows, **conditions})

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        return self.energy.with_gradient(x, **{CHAINS: self.rows, **conditions})

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.energy.evidence(x, **{CHAINS: self.rows, **conditions})

    @property
    def conditions(self) -> frozenset[str]:
        return self.energy.conditions - {CHAINS}

    @property
    def required_conditions(self) -> frozenset[str]:
        return self.energy.required_conditions - {CHAINS}


def select_rows(energy: Energy, rows: range | Tensor, n: int) -> Energy:
    """Returns an energy for points of some of the `n` rows of its bound conditions.

    Args:
        energy: The energy.
        rows: The row of each point.
        n: The number of rows.
    """
    if CHAINS not in energy.conditions or (isinstance(rows, range) and rows == range(n)):
        return energy
    return _RowSelection(energy, slice(rows.start, rows.stop) if isinstance(rows, range) else rows)


def chains_of(energy: Energy) -> dict[str, slice | Tensor]:
    """Returns the condition that says which rows of bound conditions belong to the points of an energy; empty if all do."""
    while isinstance(energy, EnergyWrapper):
        if isinstance(energy, _RowSelection):
            return {CHAINS: energy.rows}
        energy = energy.energy
    return {}


def repeated(energy: Energy, n: int, times: int) -> Energy:
    """Returns an energy for several points of each chain, for a sampler that gives its chains replicas.

    Args:
        energy: The sampler's energy, for one point of each of `n` chains.
        n: The number of chains.
        times: How many points each chain has, one after another.
    """
    if isinstance(energy, _RowSelection):
        whole, rows = energy.energy, energy.rows
        rows = torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
    elif CHAINS in energy.conditions:
        whole, rows = energy, torch.arange(n)
    else:
        return energy
    return _RowSelection(whole, rows.repeat_interleave(times))


def check_rows(energy: Energy, n: int) -> None:
    """Raises if a bound condition has rows, and not one for each of the `n` points that are asked for.

    Raises:
        ShapeError: It has another number of rows.
    """
    for part in energy.modules():
        for name, value in part.values.items() if isinstance(part, Conditioned) else ():
            if isinstance(value, Tensor) and value.ndim > 0 and len(value) not in (1, n):
                raise ShapeError(
                    f"{part} has {len(value)} rows of {name}, each of shape {tuple(value.shape[1:])} and for one point, and {n} points "
                    f"were asked for. Ask for {len(value)}; or, if it is one condition of all points, bind `{name}[None]`."
                )


def has_rows(energy: Energy) -> bool:
    """Returns whether chains have bound conditions of their own, so that no point of one chain may become that of another."""
    seen: set[Energy] = set()  # a shared part is searched once
    todo = [energy.energy if isinstance(energy, _RowSelection) else energy]
    while todo:
        part = todo.pop()
        if part in seen or CHAINS not in part.conditions:
            continue
        seen.add(part)
        if isinstance(part, HeadEnergy) and CHAINS in part.head_conditions:
            return True
        bound = part.values.values() if isinstance(part, Conditioned) else ()
        inside = [*part.terms, *(base.energy for base in part.bases)]
        if not inside or any(isinstance(value, Tensor) and value.ndim > 0 and len(value) != 1 for value in bound):
            return True
        todo += inside
    return False
