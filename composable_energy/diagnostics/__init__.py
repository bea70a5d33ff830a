"""Diagnostics of runs: convergence statistics, warnings, and running moments without a trace."""

from composable_energy.diagnostics.advice import SamplingWarning
from composable_energy.diagnostics.moments import RunningMoments
from composable_energy.diagnostics.statistics import Row
from composable_energy.diagnostics.summary import Summary

__all__ = ["Row", "RunningMoments", "SamplingWarning", "Summary"]
