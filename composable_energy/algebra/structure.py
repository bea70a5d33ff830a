"""What samplers ask of an expression: the densities that it is a function of, its branches, and its powers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from composable_energy.algebra.disjunction import Disjunction
from composable_energy.algebra.negation import Negation
from composable_energy.algebra.node import Node, Transformed, as_float
from composable_energy.algebra.sums import Difference, Relative, Sharpened, Weighted
from composable_energy.algebra.transformed import Decoded, PulledBack, Restricted
from composable_energy.arithmetic import Estimate
from composable_energy.energies.energy import Energy
from composable_energy.errors import MixtureWarning, warn_caller
from composable_energy.events import HeadEnergy

_UNKNOWN_ERROR = 0.1  # of a log Z that was given without one


class NoiseLeaves(NamedTuple):
    """The parts that an expression is a function of.

    Args:
        leaves: Absolute energies, and energies without value, that depend on the noise level `sigma`.
        others: All other parts, such as energies without noise levels and evidence with values.
        additive: Whether parts without noise levels add to the energy, as terms of a conjunction do, and are not inside of a mixture.
    """

    leaves: tuple[Energy, ...]
    others: tuple[Energy, ...]
    additive: bool

    @property
    def plain(self) -> tuple[Energy, ...]:
        """The other parts that do not depend on the noise level itself, such as a network of pictures."""
        return tuple(part for part in self.others if not _takes_noise(part))

    @property
    def widened(self) -> bool:
        """Whether all terms without noise levels allow for the spread of the data around denoised points themselves."""
        terms = (term for part in self.plain for term in part.modules() if isinstance(term, Energy) and not term.terms)
        return all(term.widens_itself for term in terms)


def noise_leaves(energy: Energy) -> NoiseLeaves:
    r"""Returns the parts that an expression is a function of, those that depend on a noise level apart from the others.

    An expression is $E(x, \sigma) = G(E_1(x, \sigma), \dots, E_M(x, \sigma))$ with the leaves $E_i$, if there are no others. An energy
    relative to a base whose evidence has values counts as another part; its base is a leaf.
    """
    leaves: dict[Energy, None] = {}
    others: dict[Energy, None] = {}
    seen, todo = {energy}, [energy]
    while todo:
        part = todo.pop()
        bases = [base.energy for base in part.bases]
        if isinstance(part, Node) and not isinstance(part, Transformed):
            parts = [*part.terms, *bases]
        elif "sigma" in part.conditions and not (bases and part.evidence_has_value) and not isinstance(part, PulledBack | Restricted):
            leaves[part], parts = None, []
        else:
            others[part], parts = None, bases
        todo += [inner for inner in reversed(parts) if inner not in seen]
        seen.update(parts)
    plain = {part for part in others if not _takes_noise(part)}
    mixtures = [part for part in seen if isinstance(part, Node) and not part.sums] if plain else []
    additive = all(plain.isdisjoint(mixture.modules()) for mixture in mixtures)
    return NoiseLeaves(tuple(leaves), tuple(others), additive)


def weakens_evidence(energy: Energy) -> bool:
    """Returns whether an expression with noise levels takes a power below 1 of a density or of evidence.

    At a noise level such a power is far from the density of the data with noise, and correctors do not make up for it.
    """
    powers = (part for part in energy.modules() if isinstance(part, Weighted | Sharpened) and "sigma" in part.conditions)
    weak = [part for part in powers if 0 < as_float(part.factor if isinstance(part, Weighted) else part.weight) < 1]
    return any(noise_leaves(part).leaves for part in weak)


def subtracts(energy: Energy) -> bool:
    """Returns whether an expression takes a negative power of a density or of evidence; its tails decide whether it has a density."""
    return any(
        isinstance(part, Difference)
        or (isinstance(part, Negation) and part.mode == "power")
        or (isinstance(part, Weighted | Sharpened) and as_float(part.weight) < 0)
        for part in energy.modules()
    )


def _takes_noise(part: Energy) -> bool:
    """Returns whether a part that is no leaf depends on the noise level, as a classifier of points with noise does."""
    if isinstance(part, PulledBack):
        return False
    return "sigma" in (part.head_conditions if isinstance(part, HeadEnergy) else part.conditions)


class Branch(NamedTuple):
    r"""A branch of a mixture whose shares are known.

    Attributes:
        energy: $E_k$, with the bases.
        shift: $s_k$, so that the energy of the mixture is $-\log \sum_k e^{-E_k - s_k}$.
        share: The probability of the branch.
        error: The standard error of the share.
    """

    energy: Energy
    shift: float
    share: float
    error: float


def known_branches(energy: Energy) -> tuple[Branch, ...]:
    """Returns the branches of a mixture with known shares, those of mixtures inside it included; none for any other energy."""
    found = _find_branches(energy) if isinstance(energy, Disjunction | Relative | Decoded) else ()
    if len(found) < 2:
        return ()
    logs = [log for *_, log, _ in found]
    highest = max(logs)
    parts = [math.exp(log - highest) for log in logs]
    shares, errors = [part / sum(parts) for part in parts], [error for *_, error in found]
    others = sum((share * error) ** 2 for share, error in zip(shares, errors, strict=True))
    return tuple(
        Branch(part, shift, share, share * math.sqrt(max(0.0, others + (1 - 2 * share) * error**2)))
        for (part, shift, _, error), share in zip(found, shares, strict=True)
    )


def _find_branches(energy: Energy) -> Sequence[tuple[Energy, float, float, float]]:
    """Returns branches, each with its shift, the logarithm of the integral of its part of the mixture, and the standard error of that."""
    if isinstance(energy, Relative | Decoded):  # the same density
        return _find_branches(energy.terms[0])
    if not isinstance(energy, Disjunction) or energy.formula is not None or energy.unsatisfiable:
        return ()
    found: list[tuple[Energy, float, float, float]] = []
    ones, none = (1.0,) * len(energy.terms), (None,) * len(energy.terms)
    numbers = (energy.weights or ones, energy.log_z or none, energy.log_z_errors or none)
    for term, weight, log_z, error in zip(energy.terms, *numbers, strict=True):
        if term.unsatisfiable:
            continue
        inside, shift = _find_branches(term), (log_z or 0.0) - math.log(weight)
        if not inside:
            known = term.log_normalizer
            if known is None and log_z is not None:
                known = Estimate(log_z, _UNKNOWN_ERROR if error is None else error)
            if known is None:
                return ()
            inside = [(term, 0.0, known.value, known.standard_error)]
        found += [(part, own + shift, log - shift, error) for part, own, log, error in inside]
    return found


def warn_of_shares(energy: Energy) -> None:
    """Warns of mixtures of densities whose shares depend on unknown normalisers."""
    for part in energy.modules():
        if isinstance(part, Disjunction) and part.shares == "unknown":
            warn_caller(
                f"{part} mixes densities with unknown normalisers: a constant added to one energy changes the shares of its branches. "
                "Estimate them by `composable_energy.calibrate(E)` or `any_of(..., calibrate=True)`; or accept the shares as they are by "
                "`any_of(..., weights=[1, 1])`.",
                MixtureWarning,
            )
            return
