"""`sample`: chunks and resumed runs give the same chains, and draws have the requested shape."""

import functools
import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, energy_and_gradient
from composable_energy_mcmc import MALA, Annealed, Langevin
from tests.sampling_energies import F64, Bowl


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [Langevin(0.1), MALA(tuning_steps=10)], ids=repr)
def test_chunks_and_resumed_runs_draw_the_same_bits(sampler):
    draw = functools.partial(Bowl().sample, (20, 3), sampler=sampler, steps=12, dtype=F64)
    whole, trace = draw(seed=4, trace=2)
    assert torch.equal(whole, draw(seed=4)) and all(torch.equal(whole, draw(seed=4, batch_size=size)) for size in (1, 16))
    assert torch.equal(whole[6:], Bowl().sample((14, 3), sampler=sampler, steps=12, seed=4, first_chain=6, dtype=F64))
    assert not torch.isclose(whole, draw(seed=5)).any()
    for size in (None, 7):
        _, part = draw(seed=4, steps=5, trace=True, batch_size=size)
        x, rest = Bowl().sample(20, resume=pickle.loads(pickle.dumps(part)), steps=7, trace=2, batch_size=size)
        assert torch.equal(x, whole) and torch.equal(rest.energies, trace.energies[5:]) and rest.steps == 12
        assert torch.equal(rest.points, trace.points[2:]) and rest.point_steps == trace.point_steps[2:]


def test_a_resumed_run_changes_nothing():
    _, trace = Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2, seed=0, trace=True)
    for given in ({"sampler": "hmc"}, {"seed": 1}, {"init": torch.zeros(3, 2)}, {"step_size": 0.2}, {"first_chain": 1}):
        with pytest.raises(OptionError, match=f"leave out {next(iter(given))}"):
            Bowl().sample((3, 2), resume=trace, **given)
    with pytest.raises(OptionError, match="leave out shape"):
        Bowl().sample((4, 2), resume=trace)
    with pytest.raises(OptionError, match="resume takes the Trace"):
        Bowl().sample((4, 2), resume=3)


def test_an_annealed_run_resumes_to_its_end():
    sampler = Annealed(levels=10)
    _, trace = Bowl().sample((4, 3), sampler=sampler, steps=4, seed=0, trace=True)
    x, trace = Bowl().sample((4, 3), resume=trace, trace=True)
    assert torch.equal(x, Bowl().sample((4, 3), sampler=sampler, seed=0)) and trace.steps == 10
    with pytest.raises(OptionError, match="takes 10 steps: 10 are done, and 1 were asked for"):
        Bowl().sample((4, 3), resume=trace)


def test_a_seed_that_nobody_gave_is_reported():
    x, trace = Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2, trace=True)
    assert torch.equal(x, Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2, seed=trace.seed))
    assert not torch.equal(x, Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2))


@pytest.mark.slow
def test_chunks_get_their_own_rows_of_conditions():
    centred = ce.as_energy(lambda x, c: (x - c).square().sum(1) * 50)
    targets = torch.arange(10.0)[:, None].expand(10, 2)
    draw = functools.partial(centred.given(c=targets).sample, (10, 2), sampler=Langevin(0.01), steps=60, seed=0)
    x = draw()
    assert (x - targets).abs().max() < 0.6
    for size in (1, 3):
        assert torch.equal(x, draw(batch_size=size))
    tuned = centred.given(c=targets).sample((10, 2), sampler=MALA(tuning_steps=10), steps=40, seed=0)
    assert (tuned - targets).abs().max() < 0.6


@dataclass(frozen=True)
class Counting(Sampler):
    """Uses hooks, and a state with rows and a shared number of its own."""

    shift: float | None = None

    def start(self, like, noise):
        return noise.normal(like) + 100

    traits = Traits(start=start)

    def tune(self, energy, x, noise):
        assert x.shape == (64, 2) and (x > 90).all() and len(noise.chains) == 64
        return replace(self, shift=float(energy(x).mean() * 0 + 1)), x

    def init(self, energy, x, noise):
        return Counted(x, *energy_and_gradient(energy, x), torch.zeros(len(x)), torch.zeros(()))

    def step(self, energy, state, noise):
        x = state.x + self.shift
        moved = Counted(x, *energy_and_gradient(energy, x), state.age + 1, state.total + 1)
        return moved, Info(scalars={"age": float(moved.total)})


@dataclass(frozen=True)
class Counted(State):
    age: Tensor
    total: Tensor


def test_samplers_may_have_a_start_a_tuning_and_a_state_of_their_own():
    first = Bowl().sample((5, 2), sampler=Counting(), steps=3, seed=0, batch_size=2)
    torch.testing.assert_close(first, Noise(0, range(5)).child("start").normal(first) + 103)
    _, trace = Bowl().sample((5, 2), sampler=Counting(), steps=2, seed=0, batch_size=3, trace=True)
    assert trace.sampler == Counting(1.0) and trace.scalars == {"age": [1.0, 2.0]}
    assert (trace.state.age.tolist(), float(trace.state.total)) == ([2.0] * 5, 2.0)
    assert torch.equal(first, Bowl().sample((5, 2), resume=trace, steps=1, batch_size=4))
