"""Operators: checks of operands, and rules that combine nodes."""

from collections.abc import Callable, Sequence
from functools import singledispatch
from inspect import signature
from numbers import Number, Real
from typing import Any

from torch import Tensor

from composable_energy.algebra.disjunction import Disjunction
from composable_energy.algebra.factors import Factor
from composable_energy.algebra.negation import Mode, Negation, has_level
from composable_energy.algebra.node import Node, Weight, as_float
from composable_energy.algebra.sums import Conjunction, Difference, Weighted
from composable_energy.algebra.transformed import Conditioned, PulledBack
from composable_energy.energies.energy import Energy
from composable_energy.energies.lift import as_energy
from composable_energy.errors import OptionError
from composable_energy.options import check_flag
from composable_energy.registry import get


def all_of(*terms: Any) -> Energy:
    """Returns the conjunction `A & B & ...` of energies, or objects that `as_energy` takes; a single term is returned as it is.

    Example:
        >>> print(ce.all_of(ce.load("plane/ring"), ce.load("plane/bar")))
        ring & bar
    """
    return as_energy(terms[0]) if len(terms) == 1 else Conjunction(*map(as_energy, terms))


def any_of(*terms: Any, weights: Sequence[Weight] | None = None, calibrate: bool = False, **options: Any) -> Energy:
    """Returns the disjunction `A | B | ...`; a single term without weights is returned as it is.

    Args:
        *terms: Energies, or objects that `as_energy` takes.
        weights: Positive weights of the mixture, one for each term; 1 each if None.
        calibrate: Whether `composable_energy.calibrate` estimates the normaliser of each branch, so that the weights are the shares.
        **options: With `calibrate`, its options, such as `seed` and `event_shape`.

    Raises:
        OptionError: There are options without `calibrate`.

    Example:
        >>> print(ce.any_of(ce.load("plane/ring"), ce.load("plane/bar"), weights=[1, 3]))
        any_of(ring, bar, weights=[1, 3])
    """
    if options and not check_flag("calibrate", calibrate):
        raise OptionError(f"any_of takes options of `composable_energy.calibrate` only with calibrate=True; got {', '.join(options)}.")
    mixture = as_energy(terms[0]) if len(terms) == 1 and weights is None else Disjunction(*map(as_energy, terms), weights=weights)
    return get("estimator", "calibrate")(mixture, **options) if check_flag("calibrate", calibrate) else mixture


def negate(energy: Any, mode: Mode | None = None, **options: Any) -> Energy:
    """Returns the complement of an energy; see `Negation` for the modes.

    Without options it is `~energy`. A conjunction with an absolute density has a level of its own, as its draws may be elsewhere.

    Args:
        energy: The energy, or an object that `as_energy` takes.
        mode: `complement`, `contrast`, `level` or `power`; None for the default of the energy.
        **options: Those of `Negation`: `weight`, for `contrast` an `offset`, for `level` the `quantile`, `temperature` and `level`.

    Raises:
        OptionError: The mode or an option is unknown, or a number is out of range.
        ExpressionError: The energy has no complement in this mode.

    Example:
        >>> print(ce.load("plane/ring") & ce.negate(ce.load("plane/bar"), quantile=0.99))
        ring & negate(bar, mode='level', quantile=0.99)
    """
    energy = as_energy(energy)
    if unknown := options.keys() - signature(Negation).parameters.keys():
        raise OptionError(f"negate takes {', '.join(list(signature(Negation).parameters)[1:])}, got {', '.join(sorted(unknown))}.")
    if mode is not None or options:
        return Negation(energy, mode, **options)
    return complement(energy) if (existing := energy.opposite if isinstance(energy, Node) else None) is None else existing


@singledispatch
def complement(energy: Energy) -> Energy:
    """Returns `~E` by the rule for its class, which `complement.register(MyEnergy)` sets as a decorator of a function."""
    match energy:
        case Negation():
            return energy.terms[0]
        case Conjunction() if not has_level(energy):
            opposite = Disjunction(*map(negate, energy.concepts))
        case Disjunction() if not energy.weighted:
            opposite = Conjunction(*map(negate, energy.satisfiable_terms))
        case Weighted() if energy.of_evidence and energy.bases:
            opposite = Weighted(negate(energy.terms[0]), energy.weight, of_evidence=True)
        case Conditioned() if energy.bases or energy.formula is not None:
            opposite = Conditioned(negate(energy.terms[0]), energy.values)
        case Factor() if not energy.values or energy.bases or energy.terms[0].formula is not None:
            opposite = energy.around(negate(energy.terms[0]))
        case PulledBack():
            opposite = PulledBack(negate(energy.terms[0]), energy.generator, energy.damping)
        case _:
            return Negation(energy)
    energy.link_opposite(opposite)
    return opposite


_BINARY: dict[str, Callable[[Energy, Energy], Energy]] = {
    "&": Conjunction,
    "|": Disjunction,
    "^": lambda left, right: Disjunction(Conjunction(left, negate(right)), Conjunction(negate(left), right)),
    ">>": lambda condition, conclusion: Disjunction(negate(condition), conclusion),
    "-": Difference,
}


def operate(energy: Energy, sign: str, other: object, *, reflected: bool = False) -> Any:
    """Returns the node of a binary operator."""
    if sign == "-" and isinstance(other, Number | Tensor):
        energy._refuse_arithmetic()
    return _BINARY[sign](as_energy(other), energy) if reflected else _BINARY[sign](energy, as_energy(other))


def scale(energy: Energy, weight: Any, *, inverse: bool = False) -> Any:
    """Returns `w * A`, or `A / T` with `inverse`, for a number or a 0-d tensor."""
    if isinstance(weight, bool) or not (weight.ndim == 0 if isinstance(weight, Tensor) else isinstance(weight, Real)):
        energy._refuse_arithmetic()
    if inverse and as_float(weight) == 0:
        raise OptionError("A temperature must not be zero; use gradient descent to find the lowest energy.")
    if isinstance(weight, Tensor):
        return Weighted(energy, weight, inverse)
    weight = 1 / weight if inverse else weight
    return energy if weight == 1 else Weighted(energy, float(weight))


def sharpen(energy: Energy, weight: Weight) -> Energy:
    """Returns `A.sharpened(w)`."""
    return Weighted(energy, weight, of_evidence=True)
