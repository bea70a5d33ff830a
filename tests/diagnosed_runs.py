"""Runs of a Gaussian, good and bad, for the tests of diagnostics."""

import warnings

import torch
from torch.distributions import Independent, Normal

import composable_energy as ce
from composable_energy.sampling import Trace

F64 = torch.float64


def gaussian(*sd: float) -> ce.Energy:
    return ce.as_energy(Independent(Normal(torch.zeros(len(sd), dtype=F64), torch.tensor(sd, dtype=F64)), 1))


def run(energy: ce.Energy, shape, sampler, steps: int, **options) -> Trace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ce.SamplingWarning)
        return energy.sample(shape, sampler=sampler, steps=steps, **{"seed": 0, "trace": True, **options})[1]


def kinds(trace: Trace, burn_in: int | None = None) -> set[str]:
    return {warning.kind for warning in trace.warnings(burn_in)}
