"""Bad input to the samplers: what they refuse and why, and pilots that start where there is no density."""

import math

import pytest
import torch
from composable_energy_mcmc import HMC, MALA, ChEES
from composable_energy_mcmc.metric import Spread

import composable_energy as ce
from composable_energy.errors import SamplingDiverged

ADJUSTED = {"mala": MALA(tuning_steps=80), "hmc": HMC(tuning_steps=60, leapfrogs=8), "chees": ChEES(tuning_steps=80, max_leapfrogs=16)}
HALF = ce.as_energy(torch.distributions.Exponential(torch.ones(1, dtype=torch.float64)))


@pytest.mark.parametrize("sampler", ADJUSTED.values(), ids=ADJUSTED)
def test_pilots_outside_the_support_do_not_spoil_the_step(sampler):
    """Half of all starts are; were they counted as rejected, no step would be short enough."""
    draws = [
        HALF.sample((200, 1), sampler=sampler, steps=40, seed=0, on_divergence="restart", init=init, dtype=torch.float64, trace=True)
        for init in (None, torch.ones(200, 1, dtype=torch.float64))
    ]
    steps = [trace.sampler.step_size for _, trace in draws]
    assert 0.5 < steps[0] / steps[1] < 2
    for x, _ in draws:
        assert x.min() > 0 and abs(x.mean() - 1) < 5 / math.sqrt(200)


@pytest.mark.parametrize("sampler", [*ADJUSTED.values(), ChEES(tuning_steps=4, metric="dense")], ids=[*ADJUSTED, "chees, dense"])
def test_a_start_outside_the_support_is_told(sampler):
    with pytest.raises(SamplingDiverged, match=r"5 of 5 chains .* at the start: check the energy there, or give `init`"):
        HALF.sample((5, 1), sampler=sampler, seed=0, init=torch.full((5, 1), -1.0, dtype=torch.float64))


def test_a_metric_of_no_draws_is_none():
    assert Spread("dense", torch.zeros(4, 3)).metric(torch.float32).kind == "identity"
