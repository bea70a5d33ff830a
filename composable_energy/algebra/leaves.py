"""The leaves of an expression that depend on a noise level: the densities that its own density is a function of."""

from __future__ import annotations

from typing import NamedTuple

from composable_energy.algebra.conjunction import Conjunction
from composable_energy.algebra.disjunction import Disjunction
from composable_energy.algebra.negation import Negation
from composable_energy.algebra.relative import PulledBack, Relative
from composable_energy.algebra.restricted import Restricted
from composable_energy.algebra.weights import Difference, Sharpened, Weighted
from composable_energy.energy import Energy
from composable_energy.events.leaves import HeadEnergy

__all__ = ["NoiseLeaves", "noise_leaves"]

_FUNCTIONS_OF_TERMS = (Conjunction, Disjunction, Negation, Relative, Weighted, Sharpened, Difference)


class NoiseLeaves(NamedTuple):
    """The parts that an expression is a function of.

    Args:
        leaves: Absolute energies, and energies without value, that depend on the noise level `sigma`.
        others: All other parts, such as energies without noise levels and evidence with values.
    """

    leaves: tuple[Energy, ...]
    others: tuple[Energy, ...]

    @property
    def others_take_noise(self) -> bool:
        """Whether one of the other parts depends on the noise level itself, as a classifier of points with noise."""
        own = (part.head_conditions[0] if isinstance(part, HeadEnergy) else part.conditions for part in self.others)
        return any("sigma" in names for names in own)


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
        if isinstance(part, _FUNCTIONS_OF_TERMS):
            parts = [*part.terms, *bases]
        elif "sigma" in part.conditions and not (bases and part.evidence_has_value) and not isinstance(part, PulledBack | Restricted):
            leaves[part], parts = None, []
        else:
            others[part], parts = None, bases
        todo += [inner for inner in reversed(parts) if inner not in seen]
        seen.update(parts)
    return NoiseLeaves(tuple(leaves), tuple(others))
