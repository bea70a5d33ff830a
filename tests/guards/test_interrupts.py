"""Ctrl-C keeps what was done: points, trace and checkpoint of sampling, weights and checkpoint of training."""

import pytest
import torch
from torch.distributions import HalfNormal, Independent

import composable_energy as ce
from composable_energy.errors import SamplingInterrupted

CALL = {"sampler": "langevin", "step_size": 0.1, "seed": 3}


def bowl(x):
    return x.square().sum(1) / 2


def interrupting(step):
    """Returns a callback that presses Ctrl-C at a step."""

    def callback(now, state, info):
        if now == step:
            raise KeyboardInterrupt

    return callback


def interrupting_energy(calls):
    """Returns a bowl that presses Ctrl-C in one of its evaluations."""
    left = [calls]

    def energy(x):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return bowl(x)

    return ce.as_energy(energy)


def test_an_interrupt_carries_the_points_and_the_trace_of_the_steps_so_far():
    energy = ce.as_energy(bowl)
    with pytest.raises(KeyboardInterrupt) as caught:
        energy.sample((5, 3), steps=100, observers=[ce.sampling.Stop(interrupting(40))], **CALL)
    error = caught.value
    assert isinstance(error, SamplingInterrupted) and not isinstance(error, Exception)
    assert torch.equal(error.points, energy.sample((5, 3), steps=40, **CALL)) and error.trace.steps == 40
    assert "after 40 of 100 steps" in str(error) and "resume=error.trace, steps=60" in str(error)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_an_interrupted_call_is_continued_to_the_same_bits(batch_size):
    """Ctrl-C in an evaluation in the middle of a step, or of a batch of it."""
    call = {"batch_size": batch_size, "trace": 2}
    with pytest.raises(SamplingInterrupted) as caught:
        interrupting_energy(31).sample((6, 3), steps=30, **CALL, **call)
    before = caught.value.trace
    assert 0 < before.steps < 30 and len(before.energies) == before.steps and before.point_steps == list(range(2, before.steps + 1, 2))
    points, trace = ce.as_energy(bowl).sample((6, 3), steps=30 - before.steps, resume=before, **call)
    whole, record = ce.as_energy(bowl).sample((6, 3), steps=30, **CALL, **call)
    assert torch.equal(points, whole)
    assert torch.equal(torch.cat([before.energies, trace.energies]), record.energies)


def test_an_interrupted_call_returns_points_of_the_support():
    energy = ce.as_energy(Independent(HalfNormal(torch.ones(2)), 1))
    with pytest.raises(SamplingInterrupted) as caught:
        energy.sample(4, steps=50, observers=[ce.sampling.Stop(interrupting(20))], **CALL)
    assert torch.equal(caught.value.points, energy.sample(4, steps=20, **CALL))
    assert (caught.value.points > 0).all() and caught.value.points.shape == (4, 2)


def test_an_interrupt_still_writes_the_checkpoint(tmp_path):
    energy = ce.as_energy(bowl)
    call, checkpoint = {**CALL, "steps": 20}, ce.sampling.Checkpoint(tmp_path / "chains")
    with pytest.raises(SamplingInterrupted):
        energy.sample((5, 3), observers=[ce.sampling.Stop(interrupting(7)), checkpoint], **call)
    assert torch.equal(energy.sample((5, 3), observers=[checkpoint], **call), energy.sample((5, 3), **call))


def test_an_interrupt_while_the_sampler_is_tuned_stays_as_it_is():
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupting_energy(10).sample((5, 3), seed=0)
    assert type(caught.value) is KeyboardInterrupt
