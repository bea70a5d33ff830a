"""Mixtures calibrated by estimates of their normalisers."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy import Energy
from composable_energy.algebra import Conditioned, PulledBack, with_levels
from composable_energy.arithmetic import Estimate
from composable_energy.errors import ContradictionError
from composable_energy.sampling.problem import resolve_points
from composable_energy_mcmc.annealing.log_z import estimate_log_z, event_of_integral


def calibrate_mixtures(expression: Any, *, seed: int | None = None, **options: Any) -> Energy:
    r"""Returns an expression in which the levels of `~A` are known, and whose mixtures draw from each branch in proportion to its weight.

    `A | B` adds $e^{-E_A}$ and $e^{-E_B}$, so a constant added to one energy changes its share, and so does the width of its density.
    Calibration estimates $\log Z$ of each branch of every mixture, for the whole density of the branch with its base; then
    `any_of(A, B, weights=[.7, .3])` has seven draws of A for three of B. Estimates of an earlier calibration are replaced. Without weights,
    a mixture whose shares are known keeps its density: `A | B` and `A ^ B` of distributions. Else the density changes.

    Formulas of events are exact and stay; beside densities they are one branch. An unsatisfiable branch keeps the share 0. A mixture that
    is the base of an event or of another leaf stays as it is. Parts without a mixture are shared with the expression, not copied.

    Args:
        seed: The seed of all estimates, so that their order has no influence; None draws one.
        **options: Options of `estimate_log_z`, for every branch.

    Raises:
        ContradictionError: No point fulfils the whole expression.
        CalibrationError: The estimate for a branch is not reliable.
        UngroundedError: A branch has no density.
        ExpressionError: A branch has no value.

    Example:
        >>> import torch, composable_energy as ce
        >>> narrow, wide = (ce.as_energy(lambda x, s=s: (x / s).square().sum(1) / 2, event_shape=(2,)) for s in (0.6, 2.0))
        >>> mixture = ce.calibrate(narrow | wide, seed=0)
        >>> [round(z, 1) for z in mixture.log_z]
        [0.8, 3.2]
    """
    expression = ce.as_energy(expression)
    find_point = partial(_point_of, expression, **options)
    if (expression := with_levels(expression, find_point)).unsatisfiable:
        raise ContradictionError(f"No point fulfils {expression}: its probability is 0, so it has no density.")
    leaves = [part for part in expression.modules() if isinstance(part, Energy) and not part.terms]
    bases = {part for leaf in leaves for base in leaf.bases for part in base.energy.modules()}
    estimates = {**options, "seed": secrets.randbits(63) if seed is None else seed}
    calibrated = _Calibration(estimates, bases).calibrate(expression, _Context({}, expression.event_shape))
    return with_levels(calibrated, find_point)  # a negation of a mixture has another level once that is calibrated


@dataclass(frozen=True)
class _Context:
    """Where a part of an expression stands: the conditions bound around it, and the shape of a point where it is known."""

    bound: Mapping[str, Any]
    shape: torch.Size | None

    def enter(self, node: Energy) -> _Context:
        """Returns the context of the terms of a node."""
        if isinstance(node, PulledBack):  # its term takes decoded points, and no noise level
            return _Context({name: value for name, value in self.bound.items() if name != "sigma"}, None)
        own = node.values if isinstance(node, Conditioned) else {}  # conditions bound further inside take precedence
        return _Context({**self.bound, **own}, self.shape if node.event_shape is None else node.event_shape)


@dataclass
class _Calibration:
    """One call; it keeps results, so that a node that occurs several times stays one node and is estimated once."""

    options: Mapping[str, Any]
    excluded: set[nn.Module]
    results: dict[tuple[Energy, tuple[tuple[str, int], ...]], Energy] = field(default_factory=dict)
    estimates: list[tuple[Energy, Estimate]] = field(default_factory=list)

    def calibrate(self, energy: Energy, context: _Context) -> Energy:
        """Returns an energy with its mixtures calibrated."""
        if energy in self.excluded or not any(isinstance(part, ce.Disjunction) and part.formula is None for part in energy.modules()):
            return energy
        place = energy, tuple((name, id(value)) for name, value in context.bound.items())  # nodes of the expression keep the values alive
        if place in self.results:
            return self.results[place]
        inside = context.enter(energy)
        terms = [self.calibrate(term, inside) for term in energy.terms]
        new = energy
        if isinstance(energy, ce.Disjunction) and energy.formula is None and energy.shares != "known":
            branches = terms if energy.weighted else _group_events(terms)
            found = [self._estimate(branch, inside) for branch in branches]
            new = energy.rebuild(*branches, log_z=[one.value for one in found], log_z_errors=[one.standard_error for one in found])
        elif energy.has_config and any(term is not old for term, old in zip(terms, energy.terms, strict=True)):
            new = energy.rebuild(*terms)
        self.results[place] = new
        return new

    def _estimate(self, branch: Energy, context: _Context) -> Estimate:
        if branch.log_normalizer is not None:  # a closed form, or a calibrated mixture
            return branch.log_normalizer
        density = branch.given(**{name: value for name, value in context.bound.items() if name in branch.conditions})
        value = next((value for other, value in self.estimates if other.equals(density)), None)
        if value is None:
            shape = context.shape if branch.event_shape is None else branch.event_shape
            options = {**self.options, **({} if shape is None else {"event_shape": shape})}
            try:
                found = estimate_log_z(density, **options)
                value = Estimate(found.value, found.standard_error)
            except ContradictionError:  # its share is 0 whatever the number here
                value = Estimate(0.0)
            self.estimates.append((density, value))
        return value


def _group_events(terms: Sequence[Energy]) -> list[Energy]:
    """Returns the densities that an unweighted mixture adds: events over one base together as one, and all others."""
    groups: list[list[Energy]] = []
    for term in terms:
        events = [group for group in groups if group[0].formula is not None and term.formula is not None]
        group = next((group for group in events if group[0].formula.same_base(term.formula)), None)
        groups.append([term]) if group is None else group.append(term)
    return sorted((reduce(or_, group) for group in groups), key=lambda term: term.formula is None)


def _point_of(
    energy: Energy, *, base: Any = None, draws: Any = None, init: Any = None, event_shape: Any = None, dtype: Any = None, **_: Any
) -> Tensor:
    """Returns a point of zeros for options of `estimate_log_z`, with shape $(1, *)$."""
    event, start = event_of_integral(energy, base, draws, init, event_shape), draws if draws is not None else init
    points = resolve_points(energy, (1, *event), latents=True, start=start, dtype=dtype)
    return torch.zeros((1, *event), dtype=points.dtype, device=points.device)
