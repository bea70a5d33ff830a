"""Events: labels of classifiers and intervals of continuous heads, whose Boolean formulas have exact probabilities."""

from composable_energy.events.cells import ChainLabels, Interval, log_probability
from composable_energy.events.formula import Formula, complement, conjoin, disjoin
from composable_energy.events.heads import ClassifierEnergy, DensityEnergy, GaussianHead, HeadEnergy, IntervalEnergy
from composable_energy.events.variables import LOG_WIDTHS, Categorical, Continuous, Variable

__all__ = [
    "LOG_WIDTHS",
    "Categorical",
    "ChainLabels",
    "ClassifierEnergy",
    "Continuous",
    "DensityEnergy",
    "Formula",
    "GaussianHead",
    "HeadEnergy",
    "Interval",
    "IntervalEnergy",
    "Variable",
    "complement",
    "conjoin",
    "disjoin",
    "log_probability",
]
