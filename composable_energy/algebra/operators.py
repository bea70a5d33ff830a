"""Operators: checks of operands, and rules that combine nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from numbers import Real
from typing import Any

from torch import Tensor

from composable_energy.algebra.disjunction import Disjunction
from composable_energy.algebra.negation import Mode, Negation, has_level, with_exact_level
from composable_energy.algebra.node import Node, Weight, as_float
from composable_energy.algebra.sums import Conjunction, Sharpened, Weighted
from composable_energy.algebra.transformed import Conditioned, PulledBack
from composable_energy.energies.energy import Energy
from composable_energy.energies.lift import as_energy, liftable
from composable_energy.errors import OptionError
from composable_energy.options import check_flag
from composable_energy.registry import get


def all_of(*terms: Any) -> Energy:
    """Returns the conjunction `A & B & ...`; a single term is returned as it is.

    Args:
        *terms: Energies, or objects that `as_energy` takes.
    """
    lifted = [as_energy(term) for term in terms]
    return lifted[0] if len(lifted) == 1 else Conjunction(*lifted)


def any_of(*terms: Any, weights: Sequence[Weight] | None = None, calibrate: bool = False, **options: Any) -> Energy:
    """Returns the disjunction `A | B | ...`; a single term without weights is returned as it is.

    Args:
        *terms: Energies, or objects that `as_energy` takes.
        weights: Positive weights of the mixture, one for each term; 1 each if None.
        calibrate: Whether to estimate the normaliser of each branch now, so that the weights are the shares of the branches; see
            `composable_energy.calibrate`.
        **options: With `calibrate`, its options, such as `seed` and `event_shape`.

    Raises:
        OptionError: There are options without `calibrate`.
    """
    if options and not check_flag("calibrate", calibrate):
        raise OptionError(
            f"any_of takes weights, and options of `composable_energy.calibrate` with calibrate=True; got {', '.join(options)}."
        )
    lifted = [as_energy(term) for term in terms]
    mixture = lifted[0] if len(lifted) == 1 and weights is None else Disjunction(*lifted, weights=weights)
    if not check_flag("calibrate", calibrate):
        return mixture
    return get("estimator", "calibrate")(mixture, **options)


def one_of(left: Energy, right: Energy) -> Energy:
    """Returns `A ^ B`, which is `(A & ~B) | (~A & B)`."""
    return any_of(all_of(left, negate(right)), all_of(negate(left), right))


def implies(condition: Energy, conclusion: Energy) -> Energy:
    """Returns `A >> B`, which is `~A | B`."""
    return any_of(negate(condition), conclusion)


def negate(
    energy: Any,
    mode: Mode | None = None,
    *,
    weight: Weight | None = None,
    offset: float = 0.0,
    quantile: float | None = None,
    temperature: float | None = None,
    level: float | None = None,
) -> Energy:
    """Returns the complement of an energy; see `Negation` for the modes.

    Without options it is `~energy`: `~~A` is `A`, and `~(A | B)` is `~A & ~B`. For relative energies and events `~(A & B)` is `~A | ~B`,
    and the operand of `sharpened`, `given` and `at` is negated. A conjunction with an absolute density has a level of its own, because
    the draws of `A & B` need not be where those of A or of B are.

    Args:
        energy: The energy, or an object that `as_energy` takes.
        mode: `complement`, `contrast`, `level` or `power`; None for the default of the energy.
        weight: The weight, above 0; None for 1, or .01 for `power`.
        offset: For `contrast`, the evidence at which A and the base are equally likely.
        quantile: For `level`, the share of the draws of A in the region that is excluded; None for .95.
        temperature: For `level`, the width of its border in units of energy; None for .1.
        level: For `level`, the energy at the border; None for that of a distribution, or to estimate it by `composable_energy.calibrate`.

    Raises:
        OptionError: The mode is unknown, or a number is out of range.
        ExpressionError: The energy has no complement in this mode.
    """
    energy = as_energy(energy)
    numbers: dict[str, Any] = {"quantile": quantile, "temperature": temperature, "level": level}
    numbers = {name: value for name, value in numbers.items() if value is not None}
    if mode is not None or weight is not None or offset != 0.0 or numbers:
        return with_exact_level(Negation(energy, mode, weight, offset, **numbers))
    existing = energy.opposite if isinstance(energy, Node) else None
    return complement(energy) if existing is None else existing


def scale_weight(energy: Energy, weight: object) -> Any:
    """Returns `w * A` for a number or a 0-d tensor, and A for the number 1; NotImplemented for anything else."""
    if not _is_weight(weight):
        return NotImplemented
    if not isinstance(weight, Tensor) and weight == 1:
        return energy
    return Weighted(energy, weight if isinstance(weight, Tensor) else float(weight))  # pyright: ignore[reportArgumentType]


def scale_temperature(energy: Energy, temperature: object) -> Any:
    """Returns `A / T` for a number or a 0-d tensor; NotImplemented for anything else."""
    if not _is_weight(temperature):
        return NotImplemented
    if as_float(temperature) == 0:  # pyright: ignore[reportArgumentType]
        raise OptionError("A temperature must not be zero; use gradient descent to find the lowest energy.")
    return Weighted(energy, temperature, inverse=True) if isinstance(temperature, Tensor) else scale_weight(energy, 1 / temperature)  # pyright: ignore[reportOperatorIssue]


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
        case Sharpened() if energy.bases:
            opposite = Sharpened(negate(energy.terms[0]), energy.weight)
        case Conditioned() if energy.bases or energy.formula is not None:
            opposite = Conditioned(negate(energy.terms[0]), energy.values)
        case PulledBack():
            opposite = PulledBack(negate(energy.terms[0]), energy.generator, energy.damping)
        case _:
            return with_exact_level(Negation(energy))
    energy.link_opposite(opposite)
    return opposite


def apply_operator(build: Callable[..., Energy], left: object, right: object) -> Any:
    """Builds a node of two operands; returns NotImplemented if one cannot be lifted, so that Python raises the error."""
    if not (liftable(left) and liftable(right)):
        return NotImplemented
    return build(as_energy(left), as_energy(right))


def _is_weight(value: object) -> bool:
    return (isinstance(value, Real) and not isinstance(value, bool)) or (isinstance(value, Tensor) and value.ndim == 0)
