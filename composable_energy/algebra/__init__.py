"""The algebra of energies: the nodes of expressions, and the rules of operators."""

from composable_energy.algebra.conjunction import Conjunction
from composable_energy.algebra.decoded import Decoded
from composable_energy.algebra.disjunction import Disjunction
from composable_energy.algebra.leaves import NoiseLeaves, noise_leaves, subtracts, weakens_evidence
from composable_energy.algebra.negation import Mode, Negation
from composable_energy.algebra.node import Node, Transformed
from composable_energy.algebra.operators import all_of, any_of, apply_operator, implies, negate, one_of, scale_temperature, scale_weight
from composable_energy.algebra.preparation import Branch, fill_levels, known_branches, lacks_level, warn_of_shares, with_levels
from composable_energy.algebra.relative import Conditioned, PulledBack, Relative, bind_conditions
from composable_energy.algebra.restricted import Inside, Restricted, inside
from composable_energy.algebra.shares import Shares, describe_shares
from composable_energy.algebra.spaces import to_common_space
from composable_energy.algebra.text import tree
from composable_energy.algebra.weights import Difference, Sharpened, Weighted
from composable_energy.bases import value_of

__all__ = [
    "Branch",
    "Conditioned",
    "Conjunction",
    "Decoded",
    "Difference",
    "Disjunction",
    "Inside",
    "Mode",
    "Negation",
    "Node",
    "NoiseLeaves",
    "PulledBack",
    "Relative",
    "Restricted",
    "Shares",
    "Sharpened",
    "Transformed",
    "Weighted",
    "all_of",
    "any_of",
    "apply_operator",
    "bind_conditions",
    "describe_shares",
    "fill_levels",
    "implies",
    "inside",
    "known_branches",
    "lacks_level",
    "negate",
    "noise_leaves",
    "one_of",
    "scale_temperature",
    "scale_weight",
    "subtracts",
    "to_common_space",
    "tree",
    "value_of",
    "warn_of_shares",
    "weakens_evidence",
    "with_levels",
]
