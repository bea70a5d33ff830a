"""Diagnostics: whether the chains have arrived, what is wrong if they have not, and moments that need no trace."""

from composable_energy.diagnostics.moments import RunningMoments
from composable_energy.diagnostics.statistics import Row
from composable_energy.diagnostics.summary import Summary
from composable_energy.diagnostics.warnings import SamplingWarning

__all__ = ["Row", "RunningMoments", "SamplingWarning", "Summary"]
