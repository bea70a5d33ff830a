"""Diagnostics of runs: convergence statistics and warnings."""

from composable_energy.diagnostics.statistics import Row
from composable_energy.diagnostics.summary import Summary
from composable_energy.errors import SamplingWarning

__all__ = ["Row", "SamplingWarning", "Summary"]
