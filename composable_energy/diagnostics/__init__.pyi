from composable_energy.diagnostics.advice import SamplingWarning as SamplingWarning
from composable_energy.diagnostics.moments import RunningMoments as RunningMoments
from composable_energy.diagnostics.statistics import Row as Row
from composable_energy.diagnostics.summary import Summary as Summary
