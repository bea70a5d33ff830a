"""Combine energy-based models with logic: `(E_male & ~E_smile).sample(shape)`."""

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
    all_of,
    any_of,
    negate,
)
from composable_energy.energy import Energy, Recommendation, RelativeEnergy, WeightedBase
from composable_energy.events import ClassifierEnergy, GaussianHead
from composable_energy.explain import Explanation
from composable_energy.inference import Inference
from composable_energy.lifting import CallableEnergy, DistributionEnergy, as_energy

__version__ = "0.1.0"

__all__ = [
    "CallableEnergy",
    "ClassifierEnergy",
    "Conditioned",
    "Conjunction",
    "Difference",
    "Disjunction",
    "DistributionEnergy",
    "Energy",
    "Explanation",
    "GaussianHead",
    "Inference",
    "Negation",
    "PulledBack",
    "Recommendation",
    "Relative",
    "RelativeEnergy",
    "Sharpened",
    "Weighted",
    "WeightedBase",
    "all_of",
    "any_of",
    "as_energy",
    "negate",
]
