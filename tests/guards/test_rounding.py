"""Energies that are too large for the dtype in which their differences decide."""

import math
import warnings

import pytest
import torch

import composable_energy as ce
from composable_energy import SamplingWarning

HINT = r"rounding: Energies are about .* apart: too coarse for what they decide, .* dtype=torch.float64, .* leave a constant"


def bowl(constant, centre=0.0):
    return ce.as_energy(lambda x: (x - centre).square().sum(1) / 2 + constant, event_shape=(1,))


OPTIONS = {
    "mala": {"step_size": 0.5, "steps": 20},
    "chees": {"step_size": 0.5, "trajectory": 1.0, "steps": 20},
    "tempering": {"levels": 2, "mean": 0.0, "scale": 1.5, "steps": 20},
    "smc": {"mean": 0.0, "scale": 1.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", OPTIONS)
def test_samplers_that_compare_energies_warn(sampler):
    with pytest.warns(SamplingWarning, match=HINT):
        _, trace = bowl(1e8).sample(100, sampler=sampler, seed=0, trace=True, **OPTIONS[sampler])
    assert "rounding" in {warning.kind for warning in trace.warnings()}


@pytest.mark.parametrize("constant", [0.0, -5e5])
def test_energies_of_usual_size_do_not(constant):
    x = bowl(constant).sample(2000, sampler="mala", step_size=1.0, steps=100, seed=2, init=torch.zeros(2000, 1))
    assert abs(x.std().item() - 1) < 4 / math.sqrt(2 * 2000)


def test_float64_and_gradients_alone_do_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = bowl(1e8).sample(2000, sampler="mala", step_size=1.0, steps=100, seed=2, dtype=torch.float64)
        bowl(1e8).sample(100, sampler="langevin", step_size=0.1, steps=20, seed=0)
    assert abs(x.std().item() - 1) < 4 / math.sqrt(2 * 2000)


def test_shares_of_branches_warn_by_any_sampler():
    pair = ce.any_of(bowl(1e8), bowl(1e8, 3.0), weights=[1, 1])
    with pytest.warns(SamplingWarning, match=rf"{HINT}"):
        pair.sample(100, sampler="langevin", step_size=0.1, steps=20, seed=0)


@pytest.mark.full
def test_normalisers_and_calibrated_mixtures_warn():
    with pytest.warns(SamplingWarning, match=r"what they decide, log Z"):
        ce.log_z(bowl(1e8), seed=0, particles=256)
    with pytest.warns(SamplingWarning, match=r"what they decide, log Z"):
        ce.calibrate(bowl(1e8) | bowl(1e8, 3.0), particles=256)
