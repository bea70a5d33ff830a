"""Shares of branches and probabilities of formulas of events, estimated from the final points."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from composable_energy.algebra import Conjunction, Disjunction, Sharpened, Weighted
from composable_energy.algebra.node import as_float
from composable_energy.conditions import CHAINS
from composable_energy.energy import Energy
from composable_energy.events import Formula, conjoin
from composable_energy.sampling.request import SampleRequest
from composable_energy.sampling.sampler import Sampler
from composable_energy.sampling.unconstrained import visible_energy

__all__ = ["branch_shares", "formula_probability", "stated_formulas"]


def branch_shares(request: SampleRequest, sampler: Sampler, points: Tensor, chains: Tensor) -> Tensor | None:
    """Returns the mean share of each branch of a mixture at points of chains, with shape $(K,)$; None for another energy."""
    energy, points = visible_energy(request.energy, points)
    if not isinstance(energy, Disjunction) or energy.needs_log_densities or not len(chains):
        return None
    return _at_points(lambda x, bound: torch.softmax(-energy.branches(x, **bound), 0), request, sampler, points, chains).mean(1)


def formula_probability(request: SampleRequest, sampler: Sampler, points: Tensor, chains: Tensor) -> float | None:
    r"""Returns the mean of $P(\text{formula} \mid x)$ at points of chains, by the heads themselves; None without events."""
    energy, points = visible_energy(request.energy, points)
    formulas = stated_formulas(energy)
    if not formulas or not len(chains):
        return None

    def probability(x: Tensor, bound: dict[str, Tensor]) -> Tensor:
        return (-torch.stack([formula.energy(x, **bound) for formula in formulas]).sum(0)).exp()

    return _at_points(probability, request, sampler, points, chains).mean().item()


def stated_formulas(energy: Energy) -> tuple[Formula, ...]:
    """Returns the formulas that hold together in an expression, one for each base; weights of evidence do not change them.

    Branches of a mixture of other energies state nothing about all points.
    """
    found: list[Formula] = []
    seen: set[Energy] = set()  # a shared part states its formula once
    todo = [energy]
    while todo:
        part = todo.pop()
        if part in seen:
            continue
        seen.add(part)
        if part.formula is not None:
            _add_formula(found, part.formula)
        elif isinstance(part, Conjunction) or (isinstance(part, Weighted | Sharpened) and as_float(part.weight) > 0):
            todo += reversed(part.terms)
    return tuple(found)


def _add_formula(found: list[Formula], formula: Formula) -> None:
    """Adds a formula to those that hold together, in place; one for each base."""
    if formula.constant:
        return
    for i, other in enumerate(found):
        if other.same_base(formula):
            found[i] = conjoin([other, formula])
            return
    found.append(formula)


def _at_points(
    function: Callable[[Tensor, dict[str, Tensor]], Tensor], request: SampleRequest, sampler: Sampler, points: Tensor, chains: Tensor
) -> Tensor:
    """Returns a function of points and conditions at points of chains, batch by batch, joined along the last axis."""
    conditions, parts = sampler.final_conditions(request.energy), []
    for ids, some in zip(chains.split(request.batch_size), points.split(request.batch_size), strict=True):
        bound: dict[str, Tensor] = {name: some.new_full((len(some),), value) for name, value in conditions.items()}
        bound[CHAINS] = ids // request.best_of
        parts.append(function(some, bound))
    return torch.cat(parts, -1)
