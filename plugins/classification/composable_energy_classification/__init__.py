"""Classification by energies: probabilities, abstention, refinement, attacks, and scores of unusual points."""

from composable_energy_classification.attacks import pgd
from composable_energy_classification.calibration import CalibrationWarning, calibration_error, fit_probabilities
from composable_energy_classification.class_energies import ClassEnergies, Marginal
from composable_energy_classification.classifier import Classifier
from composable_energy_classification.refinement import Refinement
from composable_energy_classification.unusual import (
    Histogram,
    auroc,
    energy_score,
    fpr_at_95,
    gradient_score,
    histogram,
    relative_score,
    typicality_score,
    uncertainty_score,
)

__all__ = [
    "CalibrationWarning",
    "ClassEnergies",
    "Classifier",
    "Histogram",
    "Marginal",
    "Refinement",
    "auroc",
    "calibration_error",
    "energy_score",
    "fit_probabilities",
    "fpr_at_95",
    "gradient_score",
    "histogram",
    "pgd",
    "relative_score",
    "typicality_score",
    "uncertainty_score",
]
