"""Events: labels of classifiers and intervals of continuous heads, whose Boolean formulas have exact probabilities."""

from composable_energy.events.cells import ChainLabels, Interval
from composable_energy.events.formula import Formula, complement, conjoin, disjoin
from composable_energy.events.gaussian import DensityEnergy, GaussianHead, IntervalEnergy
from composable_energy.events.leaves import ClassifierEnergy
from composable_energy.events.variables import Categorical, Continuous, Variable

__all__ = [
    "Categorical",
    "ChainLabels",
    "ClassifierEnergy",
    "Continuous",
    "DensityEnergy",
    "Formula",
    "GaussianHead",
    "Interval",
    "IntervalEnergy",
    "Variable",
    "complement",
    "conjoin",
    "disjoin",
]
