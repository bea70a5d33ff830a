"""Diagnostics of runs: convergence statistics, warnings, and running moments without a trace."""

from composable_energy.diagnostics.moments import RunningMoments
from composable_energy.diagnostics.statistics import Row
from composable_energy.diagnostics.summary import Summary
from composable_energy.diagnostics.warnings import SamplingWarning

__all__ = ["Row", "RunningMoments", "SamplingWarning", "Summary"]
