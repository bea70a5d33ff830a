r"""`calibrate`: mixtures whose branches have the shares that their weights say."""

from __future__ import annotations

import math
import secrets
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from composable_energy.algebra import (
    Conditioned,
    Conjunction,
    Difference,
    Disjunction,
    Negation,
    PulledBack,
    Relative,
    Sharpened,
    Weighted,
    condition,
)
from composable_energy.conditions import key_of
from composable_energy.energy import Energy
from composable_energy.events import Formula
from composable_energy.lifting import as_energy
from composable_energy.normalizers.estimating import log_z

__all__ = ["calibrate"]


def calibrate(expression: Energy, *, seed: int | None = None, **options: Any) -> Energy:
    r"""Returns an expression whose mixtures weigh densities, not energies.

    `A | B` adds $e^{-E_A}$ and $e^{-E_B}$ as they are, so that a constant added to one energy changes its share, and so does the width of
    its density. Here every mixture in the expression gets an estimate of $\log Z$ of each branch, which is the whole density of the
    branch with its base; then `any_of(A, B, weights=[.7, .3])` has seven draws of A for three of B. Formulas of events are exact as they
    are and stay; in a mixture beside densities they are one branch. Estimates that are there already are made anew. Parts without a
    mixture are those of the expression itself, not copies; a mixture that is the base of an event or another leaf stays as it is.

    Args:
        expression: The expression; it stays as it is.
        seed: The seed of all estimates, so that their order does not matter; None draws one.
        **options: Of `log_z`, for every branch.

    Raises:
        NormalizerError: A branch has no estimate to rely on.
        UngroundedError: A branch has no density.
        ExpressionError: A branch has no value.

    Example:
        >>> import torch, composable_energy as ce
        >>> narrow, wide = (ce.as_energy(lambda x, s=s: (x / s).square().sum(1) / 2, event_shape=(2,)) for s in (0.5, 2.0))
        >>> mixture = ce.calibrate(narrow | wide, seed=0)
        >>> [round(z, 1) for z in mixture.log_z]
        [0.5, 3.2]
    """
    seed = secrets.randbits(63) if seed is None else seed
    expression = as_energy(expression)
    leaves = [part for part in expression.modules() if isinstance(part, Energy) and not part.terms]
    bases = {id(part) for leaf in leaves for base in leaf.bases for part in base.energy.modules()}
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
    kept: set[int]
    made: dict[Hashable, tuple[Energy, Energy]] = field(default_factory=dict)
    known: dict[Hashable, tuple[Energy, float]] = field(default_factory=dict)

    def of(self, energy: Energy, around: _Around) -> Energy:
        """Returns an energy calibrated where it stands."""
        if id(energy) in self.kept or not any(map(_is_mixture, energy.modules())):
            return energy
        key = id(energy), key_of(around.bound)
        if key not in self.made:
            inside = around.inside(energy)
            terms = [self.of(term, inside) for term in energy.terms]
            new = energy
            if _is_mixture(energy) or any(term is not old for term, old in zip(terms, energy.terms, strict=True)):
                new = self._mixture(energy, terms, inside) if isinstance(energy, Disjunction) else _with_terms(energy, terms)
                new.name, new.recommended, new.training = energy.name, energy.recommended, energy.training
            self.made[key] = energy, new
        return self.made[key][1]

    def _mixture(self, node: Disjunction, terms: Sequence[Energy], around: _Around) -> Energy:
        branches = list(terms) if node.weighted else _branches(terms)
        return Disjunction(*branches, weights=node.weights, log_z=[self._log_z(branch, around) for branch in branches])

    def _log_z(self, branch: Energy, around: _Around) -> float:
        if isinstance(branch, Disjunction) and branch.log_z is not None:  # of densities: what its weights add up to
            return math.log(sum(branch.weights or [1.0] * len(branch.terms)))
        density = condition(branch, around.bound)
        if density.key not in self.known:
            shape = around.shape if branch.event_shape is None else branch.event_shape
            options = {**self.options, **({} if shape is None else {"event_shape": shape})}
            self.known[density.key] = density, log_z(density, **options).value
        return self.known[density.key][1]


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


def _with_terms(node: Energy, terms: Sequence[Energy]) -> Energy:
    """Returns a node like another, of other terms; a node of an unknown kind as it is."""
    match node:
        case Conjunction():
            return Conjunction(*terms)
        case Negation():
            return Negation(terms[0], node.mode, node.weight, node.offset)
        case Weighted():
            return Weighted(terms[0], node.weight, node.inverse)
        case Sharpened():
            return Sharpened(terms[0], node.weight)
        case Difference():
            return Difference(terms[0], terms[1])
        case Relative():
            return Relative(terms[0], terms[1])
        case Conditioned():
            return Conditioned(terms[0], node.values)
        case PulledBack():
            return PulledBack(terms[0], node.generator)
        case _:
            return node
