"""Energies that wrap another one while sampling, such as an energy for some of the chains with their rows of the bound conditions."""

from __future__ import annotations

from abc import ABC
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.algebra import Conditioned
from composable_energy.bases import WeightedBase
from composable_energy.conditions import CHAINS
from composable_energy.energy import Energy
from composable_energy.errors import ShapeError
from composable_energy.estimate import Estimate
from composable_energy.events import Formula, HeadEnergy
from composable_energy.supports import Support


class EnergyWrapper(Energy, ABC):
    """Abstract energy with the values, conditions and name of another one. A subclass changes how that one is evaluated.

    Args:
        energy: The wrapped energy.
    """

    def __init__(self, energy: Energy) -> None:
        super().__init__()
        self.energy = energy
        self.event_shape = energy.event_shape

    @property
    def has_value(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.energy.has_value

    @property
    def evidence_has_value(self) -> bool:
        return self.energy.evidence_has_value

    @property
    def needs_log_densities(self) -> bool:
        return self.energy.needs_log_densities

    @property
    def terms(self) -> tuple[Energy, ...]:
        return (self.energy,)

    @property
    def conditions(self) -> frozenset[str]:
        return self.energy.conditions

    @property
    def required_conditions(self) -> frozenset[str]:
        return self.energy.required_conditions

    def __str__(self) -> str:
        return str(self.energy)


class EqualEnergy(EnergyWrapper, ABC):
    """Abstract energy that equals another one up to rounding, and has all its properties."""

    def __init__(self, energy: Energy) -> None:
        super().__init__(energy)
        self.name, self.recommended, self.no_complement = energy.name, energy.recommended, energy.no_complement
        self.evidence_normalized, self.has_gradient = energy.evidence_normalized, energy.has_gradient
        self.widens_itself, self._signed = energy.widens_itself, energy._signed

    @property
    def support(self) -> Support:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.energy.support

    @property
    def log_normalizer(self) -> Estimate | None:
        return self.energy.log_normalizer

    def known_level(self, quantile: float) -> float | None:
        return self.energy.known_level(quantile)

    @property
    def decoded_shape(self) -> torch.Size | None:
        return self.energy.decoded_shape

    @property
    def unsatisfiable(self) -> bool:
        return self.energy.unsatisfiable

    @property
    def bases(self) -> tuple[WeightedBase, ...]:
        return self.energy.bases

    @property
    def decoder(self) -> nn.Module | None:
        return self.energy.decoder

    @property
    def formula(self) -> Formula | None:
        return self.energy.formula

    @property
    def grounded(self) -> bool:
        return self.energy.grounded


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
        if isinstance(part, HeadEnergy) and CHAINS in part.head_conditions[0]:
            return True
        bound = part.values.values() if isinstance(part, Conditioned) else ()
        inside = [*part.terms, *(base.energy for base in part.bases)]
        if not inside or any(isinstance(value, Tensor) and value.ndim > 0 and len(value) != 1 for value in bound):
            return True
        todo += inside
    return False
