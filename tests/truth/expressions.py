"""Random expressions with their energies by the table of operators, which use no code of the library."""

from dataclasses import dataclass

import numpy as np

import composable_energy as ce
from tests.truth.leaves import LEAVES, Known, event, ratio, tilt
from tests.truth.spaces import SPACES, Array, Space

_TEMPERATURE = 0.1  # of the border of a level
_BEYOND = 1e-7  # the share of the outermost cells, above which a density is taken for improper


@dataclass(frozen=True)
class Case:
    """An expression, its energies in the cells of a grid, and the probabilities of these cells."""

    space: Space
    energy: ce.Energy
    energies: Array
    shares: Array

    def __str__(self) -> str:
        return f"{self.energy} on {self.space.name}"


def draw_case(seed: int, number: int) -> Case:
    """Returns a random expression that is a density."""
    rng = np.random.default_rng((seed, number))
    space = list(SPACES.values())[number % len(SPACES)]
    points, log_volume = space.grid()
    while True:
        known = _grow(rng, space, _leaf(rng, space), int(rng.integers(1, 4)), points, log_volume)
        energies = known.total(points)
        shares = _shares(energies, log_volume)
        if shares is not None:
            return Case(space, known.energy, energies, shares)


def _shares(energies: Array, log_volume: Array) -> Array | None:
    """Returns the probabilities of cells; None if the density is not proper or too narrow for the grid."""
    logs = log_volume - energies
    if np.isnan(logs).any() or np.isposinf(logs).any():
        return None
    shares = np.exp(logs - logs.max())
    shares /= shares.sum()
    side = round(len(shares) ** 0.5)
    grid = shares if side * side != len(shares) else shares.reshape(side, side)
    edges = [grid[0].sum(), grid[-1].sum()] + ([] if grid.ndim == 1 else [grid[:, 0].sum(), grid[:, -1].sum()])
    is_bounded = log_volume.max() - log_volume.min() < 1e-9  # a circle has no outermost cells
    return None if (max(edges) > _BEYOND and not is_bounded) or shares.max() > 0.02 else shares


def _leaf(rng: np.random.Generator, space: Space) -> Known:
    kinds = LEAVES[space.name]
    return kinds[int(rng.integers(len(kinds)))](rng, space)


def _grow(rng: np.random.Generator, space: Space, base: Known, depth: int, points: Array, log_volume: Array) -> Known:
    """Returns a random tree; all relative parts share one base, and events over it are joined before."""
    if depth == 0:
        kind = int(rng.integers(3))
        return _leaf(rng, space) if kind == 0 else tilt(rng, space, base) if kind == 1 else event(rng, space, base)
    a = _grow(rng, space, base, depth - 1, points, log_volume)
    match int(rng.integers(9)):
        case 0 | 1:
            return _and(a, _relative_or_leaf(rng, space, base))
        case 2 | 3:
            return _or(rng, a, _leaf(rng, space))
        case 4:
            return _and(a, _not(rng, _leaf(rng, space), points, log_volume))
        case 5:
            return _and(a, _not(rng, tilt(rng, space, base), points, log_volume))
        case 6 if not a.bases:
            weight = rng.uniform(0.4, 2)
            return Known(weight * a.energy if rng.integers(2) else a.energy / (1 / weight), lambda x: weight * a.evidence(x))
        case 6 if a.is_leaf:
            weight = rng.uniform(0.4, 2)
            return Known(a.energy.sharpened(weight), lambda x: weight * a.evidence(x), a.bases)
        case 7 if not a.bases:
            wave, values = ratio(rng, space)
            return Known(a.energy - wave, lambda x: a.evidence(x) - values(x))
        case _:
            return a


def _relative_or_leaf(rng: np.random.Generator, space: Space, base: Known) -> Known:
    return tilt(rng, space, base) if rng.integers(2) else _leaf(rng, space)


def _and(a: Known, b: Known) -> Known:
    return Known(a.energy & b.energy, lambda x: a.evidence(x) + b.evidence(x), {**a.bases, **b.bases})


def _or(rng: np.random.Generator, a: Known, b: Known) -> Known:
    """Returns `A | B`, or a mixture with weights; what is no base of both belongs to its branch."""
    weights = (1.0, 1.0) if rng.integers(2) else tuple(rng.uniform(0.2, 1, 2))
    energy = a.energy | b.energy if weights == (1.0, 1.0) else ce.any_of(a.energy, b.energy, weights=list(weights))

    def evidence(x: Array) -> Array:
        return -np.logaddexp(*[np.log(w) - part.total(x) for w, part in zip(weights, (a, b), strict=True)])

    return Known(energy, evidence)


def _not(rng: np.random.Generator, a: Known, points: Array, log_volume: Array) -> Known:
    """Returns the complement of a leaf: contrast over a base, else a level, which for a distribution `~` finds itself."""
    if a.bases:
        return Known(~a.energy, lambda x: np.logaddexp(0, -a.evidence(x)), a.bases)
    energies = a.evidence(points)
    order = np.argsort(energies)
    shares = np.exp(log_volume - energies - (log_volume - energies).max())[order]
    level = float(energies[order][np.searchsorted(shares.cumsum() / shares.sum(), 0.95)])
    negated = ~a.energy if a.draws_known and rng.integers(2) else ce.negate(a.energy, mode="level", level=level)
    return Known(negated, lambda x: np.logaddexp(0, (level - a.evidence(x)) / _TEMPERATURE))
