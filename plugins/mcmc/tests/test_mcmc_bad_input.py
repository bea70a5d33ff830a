"""Bad input to the samplers: what they refuse and why, and pilots that start where there is no density."""

import math
import re

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import DtypeError, OptionError, SamplingDiverged
from composable_energy_mcmc import HMC, MALA, ChEES, Descent, Langevin, Underdamped

ADJUSTED = {"mala": MALA(tuning_steps=80), "hmc": HMC(tuning_steps=60, leapfrogs=8), "chees": ChEES(tuning_steps=80, max_leapfrogs=16)}
BOWL = ce.as_energy(lambda x: x.square().sum(1) / 2)
HALF = ce.as_energy(lambda x: torch.where(x[:, 0] > 0, x[:, 0], torch.inf), event_shape=(1,))  # without a support: points may be outside


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ADJUSTED.values(), ids=ADJUSTED)
def test_pilots_outside_the_support_do_not_spoil_the_step(sampler):
    """Half of all starts are; were they counted as rejected, no step would be short enough."""
    draws = [
        HALF.sample((200, 1), sampler=sampler, steps=40, seed=0, on_divergence="keep", init=init, dtype=torch.float64, trace=True)
        for init in (None, torch.ones(200, 1, dtype=torch.float64))
    ]
    steps = [trace.sampler.step_size for _, trace in draws]
    assert 1 / 3 < steps[0] / steps[1] < 3
    for x, trace in draws:
        x = x[~trace.diverged]
        assert len(x) > 60 and x.min() > 0 and abs(x.mean() - 1) < 5 / math.sqrt(len(x))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [*ADJUSTED.values(), ChEES(tuning_steps=4, metric="dense")], ids=[*ADJUSTED, "chees, dense"])
def test_a_start_outside_the_support_is_reported(sampler):
    with pytest.raises(SamplingDiverged, match=r"5 of 5 .* is infinite at 5 of 5.*give other points in `init`"):
        HALF.sample((5, 1), sampler=sampler, seed=0, init=torch.full((5, 1), -1.0, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["mala", "hmc", "chees"])
def test_a_temperature_is_refused_with_the_way_to_it(sampler):
    with pytest.raises(OptionError, match=r"refuses temperature: .* that of `energy / T`: sample that. At 0 there is none; `descent`"):
        BOWL.sample((4, 2), sampler=sampler, temperature=0.5)
    cooled = (BOWL / 0.5).sample((2000, 2), sampler=HMC(0.6), steps=30, seed=0)
    assert abs(cooled.var() / 0.5 - 1) < 5 * math.sqrt(1 / 2000)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sampler", [*ADJUSTED.values(), MALA(0.1), HMC(0.1), ChEES(0.1, 0.5)], ids=repr)
def test_energies_too_coarse_to_accept_by_are_refused(sampler, dtype):
    """Points of that dtype, and an energy alone that returns it."""
    with pytest.raises(DtypeError, match=rf"which {dtype} rounds away: draw with dtype=torch.float32 .*`energy.float\(\)`.* langevin"):
        BOWL.sample((4, 2), sampler=sampler, seed=0, dtype=dtype)
    coarse = ce.as_energy(lambda x: (x.square().sum(1) / 2).to(dtype))
    with pytest.raises(DtypeError, match=f"which {dtype} rounds away"):
        coarse.sample((4, 2), sampler=sampler, seed=0)
    assert coarse.sample((4, 2), sampler=Langevin(0.1), steps=3, seed=0).dtype == torch.float32


@pytest.mark.parametrize("value", [math.nan, 0, "0.1", True])
@pytest.mark.parametrize("make", [Langevin, MALA, HMC, Underdamped, Descent, lambda value: ChEES(value, 1.0)])
def test_step_sizes_that_are_none_are_reported_with_their_value(make, value):
    with pytest.raises(OptionError, match=re.escape(f"got {value!r}")):
        make(value)
