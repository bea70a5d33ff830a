"""Without a number of steps, chains that have not converged take more."""

import warnings

import pytest
import torch

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy.errors import SamplingInterrupted
from composable_energy.sampling import Checkpoint, Stop
from composable_energy_mcmc import ChEES

# The mean of its first coordinate is 3; 100 steps are too few.
BANANA = ce.as_energy(lambda x: 5 * (x[:, 0] - 3 * x[:, 1] ** 2) ** 2 + x[:, 1] ** 2 / 2, event_shape=(2,))
SHORT = ChEES(0.1, 0.3)  # trajectories that are too short, and need no pilot chains
APART = ce.as_energy(lambda x: -torch.logaddexp(-(x - 20).square().sum(1) / 2, -(x + 20).square().sum(1) / 2), event_shape=(2,))


@pytest.mark.full
def test_steps_are_doubled_until_the_chains_agree():
    """The points are those of a call with as many steps, and right."""
    points, trace = BANANA.sample(200, seed=1, trace=True)
    assert trace.steps in (200, 400, 800)
    assert torch.equal(points, BANANA.sample(200, seed=1, steps=trace.steps))
    assert abs(points[:, 0].mean() - 3) < 4 * 18**0.5 / 200**0.5


def test_steps_are_doubled_until_the_points_of_a_trace_are_enough():
    """Eight chains of 500 steps, each worth a few draws of the wide coordinate."""
    wide = ce.as_energy(torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.tensor([1.0, 8.0])), 1))
    _, trace = wide.sample(8, sampler="mala", seed=0, trace=1)
    assert trace.points is not None
    assert trace.steps > 500
    assert len(trace.points) == trace.steps


@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
def test_an_interrupted_call_says_how_many_steps_are_left():
    def stop(step, state, info):
        if step == 150:
            raise KeyboardInterrupt

    with pytest.raises(SamplingInterrupted, match=r"after 150 of 200 steps.*steps=50\)") as caught:
        BANANA.sample(64, sampler=SHORT, seed=1, observers=[Stop(stop)])
    points = BANANA.sample(64, resume=caught.value.trace, steps=50)
    assert torch.equal(points, BANANA.sample(64, sampler=SHORT, seed=1, steps=200))


def test_chains_in_modes_that_are_apart_are_given_up_early():
    with pytest.warns(SamplingWarning, match="R-hat"):
        assert APART.sample(64, seed=0, trace=True)[1].steps == 200


def test_calls_whose_chains_others_continue_keep_the_number_of_steps(tmp_path):
    """As those with a checkpoint, a trace to resume, or a part of the chains, which would not know the others; and those with starts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        with pytest.warns(SamplingWarning, match="R-hat"):
            first = BANANA.sample(64, sampler=SHORT, seed=1, steps=100, trace=True)[1]
        assert BANANA.sample(64, sampler=SHORT, seed=1, trace=True)[1].steps > 100
        checkpoint = {"observers": [Checkpoint(tmp_path / "chains")]}
        calls = ({"sampler": SHORT, "seed": 1, **keeps} for keeps in (checkpoint, {"first_chain": 64}, {"init": torch.zeros(64, 2)}))
        assert [BANANA.sample(64, trace=True, **call)[1].steps for call in (*calls, {"resume": first})] == [100, 100, 100, 200]
