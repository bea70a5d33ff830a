"""Metrics of decompositions: segmentation scores, disentanglement scores of codes, and baselines without learning."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
