"""The algebra of energies: the nodes of expressions, and the rules of operators."""

from composable_energy.algebra.disjunction import Disjunction, Shares, describe_shares
from composable_energy.algebra.levels import fill_levels, lacks_level, with_levels
from composable_energy.algebra.negation import Mode, Negation
from composable_energy.algebra.node import Node, Transformed, tree
from composable_energy.algebra.operators import (
    all_of,
    any_of,
    apply_operator,
    complement,
    implies,
    negate,
    one_of,
    scale_temperature,
    scale_weight,
)
from composable_energy.algebra.structure import (
    Branch,
    NoiseLeaves,
    known_branches,
    noise_leaves,
    subtracts,
    warn_of_shares,
    weakens_evidence,
)
from composable_energy.algebra.sums import Conjunction, Difference, Relative, Sharpened, Weighted
from composable_energy.algebra.terms import to_common_space
from composable_energy.algebra.transformed import Conditioned, Decoded, Inside, PulledBack, Restricted, bind_conditions, inside
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
    "complement",
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
