"""Metrics of decompositions: segmentation scores, disentanglement scores of codes, and baselines without learning."""

from composable_energy_comet.metrics.baselines import kmeans_labels, quadrant_labels, territory_labels
from composable_energy_comet.metrics.codes import beta_vae_score, linear_r2, mean_correlation, mutual_information_gap
from composable_energy_comet.metrics.segmentation import adjusted_rand_index, mean_segmentation_covering

__all__ = [
    "adjusted_rand_index",
    "beta_vae_score",
    "kmeans_labels",
    "linear_r2",
    "mean_correlation",
    "mean_segmentation_covering",
    "mutual_information_gap",
    "quadrant_labels",
    "territory_labels",
]
