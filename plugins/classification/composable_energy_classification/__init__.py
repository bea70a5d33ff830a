"""Classification by energies: probabilities, abstention, refinement, attacks, and scores of unusual points."""

from composable_energy_classification.attacks import pgd
from composable_energy_classification.calibration import CalibrationWarning, calibration_error, fit_probabilities
from composable_energy_classification.class_energies import Branches, ClassEnergies, Marginal, Values
from composable_energy_classification.classifier import Classifier
from composable_energy_classification.detection import Histogram, auroc, fpr_at_95, histogram
from composable_energy_classification.refinement import Refinement, refine
from composable_energy_classification.scores import (
    energy_score,
    gradient_score,
    relative_score,
    typicality_score,
    uncertainty_score,
)

__all__ = [
    "Branches",
    "CalibrationWarning",
    "ClassEnergies",
    "Classifier",
    "Histogram",
    "Marginal",
    "Refinement",
    "Values",
    "auroc",
    "calibration_error",
    "energy_score",
    "fit_probabilities",
    "fpr_at_95",
    "gradient_score",
    "histogram",
    "pgd",
    "refine",
    "relative_score",
    "typicality_score",
    "uncertainty_score",
]
