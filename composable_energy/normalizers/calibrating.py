r"""`calibrate`: mixtures whose branches have the shares that their weights say."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from composable_energy.algebra import Conditioned, Disjunction, PulledBack, bind_conditions
from composable_energy.energy import Energy
from composable_energy.errors import ContradictionError
from composable_energy.events import Formula
from composable_energy.identity import equal, same
from composable_energy.lift import as_energy
from composable_energy.normalizers.estimating import log_z

__all__ = ["calibrate"]


def calibrate(expression: Energy, *, seed: int | None = None, **options: Any) -> Energy:
    r"""Returns an expression whose mixtures weigh densities, not energies.

    `A | B` adds $e^{-E_A}$ and $e^{-E_B}$ as they are, so that a constant added to one energy changes its share, and so does the width of
    its density. Here every mixture in the expression gets an estimate of $\log Z$ of each branch, which is the whole density of the
    branch with its base; then `any_of(A, B, weights=[.7, .3])` has seven draws of A for three of B. Formulas of events are exact as they
    are and stay; in a mixture beside densities they are one branch. An unsatisfiable branch keeps the share 0. Estimates that are there
    already are made anew. Parts without a mixture are those of the expression itself, not copies; a mixture that is the base of an event
    or another leaf stays as it is.

    Args:
        expression: The expression; it stays as it is.
        seed: The seed of all estimates, so that their order does not matter; None draws one.
        **options: Of `log_z`, for every branch.

    Raises:
        ContradictionError: No point fulfils the whole expression.
        NormalizerError: A branch has no estimate to rely on.
        UngroundedError: A branch has no density.
        ExpressionError: A branch has no value.

    Example:
        >>> import torch, composable_energy as ce
        >>> narrow, wide = (ce.as_energy(lambda x, s=s: (x / s).square().sum(1) / 2, event_shape=(2,)) for s in (0.6, 2.0))
        >>> mixture = ce.calibrate(narrow | wide, seed=0)
        >>> [round(z, 1) for z in mixture.log_z]
        [0.8, 3.2]
    """
    seed = secrets.randbits(63) if seed is None else seed
    expression = as_energy(expression)
    if expression.unsatisfiable:
        raise ContradictionError(f"No point fulfils {expression}: its probability is 0 whatever the networks say, so it has no density.")
    leaves = [part for part in expression.modules() if isinstance(part, Energy) and not part.terms]
    bases = {part for leaf in leaves for base in leaf.bases for part in base.energy.modules()}
    return _Calibration({"seed": seed, **options}, bases).of(expression, _Around({}, expression.event_shape))


@dataclass(frozen=True)
class _Around:
    """What stands around a part of an expression: the conditions that are bound there, and the shape of a point where it is known."""

    bound: Mapping[str, Any]
    shape: torch.Size | None

    def inside(self, node: Energy) -> _Around:
        """Returns what stands around the terms of a node."""
        if isinstance(node, PulledBack):  # its term takes decoded points, and no noise level
            return _Around({name: value for name, value in self.bound.items() if name != "sigma"}, None)
        own = node.values if isinstance(node, Conditioned) else {}  # what is bound further inside stays
        return _Around({**self.bound, **own}, self.shape if node.event_shape is None else node.event_shape)


@dataclass
class _Calibration:
    """One call: what was made and estimated already, so that a node that stands in several places stays one."""

    options: Mapping[str, Any]
    kept: set[nn.Module]
    made: list[tuple[Energy, Mapping[str, Any], Energy]] = field(default_factory=list)
    known: list[tuple[Energy, float]] = field(default_factory=list)

    def of(self, energy: Energy, around: _Around) -> Energy:
        """Returns an energy calibrated where it stands."""
        if energy in self.kept or not any(map(_is_mixture, energy.modules())):
            return energy
        for old, bound, new in self.made:
            if old is energy and equal(bound, around.bound):
                return new
        inside = around.inside(energy)
        terms = [self.of(term, inside) for term in energy.terms]
        new = energy
        if isinstance(energy, Disjunction) and energy.formula is None:
            new = self._mixture(energy, terms, inside)
        elif energy.has_config and any(term is not old for term, old in zip(terms, energy.terms, strict=True)):
            new = energy.rebuild(*terms)
        self.made.append((energy, around.bound, new))
        return new

    def _mixture(self, node: Disjunction, terms: Sequence[Energy], around: _Around) -> Energy:
        branches = list(terms) if node.weighted else _branches(terms)
        log_z = [self._log_z(branch, around) for branch in branches]
        mixture = Disjunction(*branches, weights=node.weights, log_z=log_z)
        mixture.name, mixture.recommended, mixture.training = node.name, node.recommended, node.training
        return mixture

    def _log_z(self, branch: Energy, around: _Around) -> float:
        if isinstance(branch, Disjunction) and branch.log_z is not None:  # of densities: what its weights add up to
            return math.log(sum(branch.weights or [1.0] * len(branch.terms)))
        density = bind_conditions(branch, around.bound)
        value = next((value for other, value in self.known if same(other, density)), None)
        if value is None:
            shape = around.shape if branch.event_shape is None else branch.event_shape
            options = {**self.options, **({} if shape is None else {"event_shape": shape})}
            try:
                value = log_z(density, **options).value
            except ContradictionError:  # its share is 0 whatever stands here
                value = 0.0
            self.known.append((density, value))
        return value


def _is_mixture(part: object) -> bool:
    return isinstance(part, Disjunction) and part.formula is None


def _branches(terms: Sequence[Energy]) -> list[Energy]:
    """The densities that an unweighted mixture adds: the events over each base together, and all others."""
    groups: list[tuple[Formula, list[Energy]]] = []
    for term in terms:
        if term.formula is not None:
            group = next((some for formula, some in groups if formula.same_base(term.formula)), None)
            groups.append((term.formula, [term])) if group is None else group.append(term)
    joined = [some[0] if len(some) == 1 else Disjunction(*some) for _, some in groups]
    return [*joined, *(term for term in terms if term.formula is None)]
