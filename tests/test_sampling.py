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
from composable_energy_mcmc import HMC, MALA, Annealed, Langevin
from tests.sampling_energies import F64, Bowl, Network

SAMPLERS = [Langevin(0.1), MALA(0.3), HMC(0.3, leapfrogs=4), Annealed(levels=30, corrector_steps=1)]


def same(a, b):
    return torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [*SAMPLERS, MALA(tuning_steps=10), HMC(tuning_steps=10)], ids=repr)
def test_chunks_change_no_bit_of_elementwise_energies(sampler):
    draw = functools.partial(Bowl().sample, (22, 3), sampler=sampler, steps=5)
    whole = draw(seed=4)
    assert same(whole, draw(seed=4)) and all(same(whole, draw(seed=4, batch_size=size)) for size in (1, 7, 16))
    assert same(whole[:5], Bowl().sample((5, 3), sampler=sampler, steps=5, seed=4))
    assert same(whole[6:], Bowl().sample((16, 3), sampler=sampler, steps=5, seed=4, first_chain=6))
    assert not torch.isclose(whole, draw(seed=5)).any()


@pytest.mark.full
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_chunks_change_networks_by_the_rounding_of_a_product(sampler):
    draw = functools.partial(Network().sample, 22, sampler=sampler, steps=12, seed=4)
    whole = draw()
    assert whole.dtype == F64
    for size in (1, 7, 16):
        assert (draw(batch_size=size) - whole).abs().max() < 1e-12


@pytest.mark.full
@pytest.mark.parametrize("sampler", [*SAMPLERS, HMC(tuning_steps=10)], ids=repr)
@pytest.mark.parametrize("size", [None, 7])
def test_a_resumed_run_is_one_long_run(sampler, size):
    long, long_trace = Bowl().sample((20, 3), sampler=sampler, steps=30, seed=0, trace=2)
    _, trace = Bowl().sample((20, 3), sampler=sampler, steps=11, seed=0, trace=True, batch_size=size)
    trace = pickle.loads(pickle.dumps(trace))
    x, rest = Bowl().sample(20, resume=trace, steps=19, trace=2, batch_size=size)
    assert same(x, long) and same(rest.energies, long_trace.energies[11:]) and rest.steps == 30
    assert same(rest.points, long_trace.points[5:]) and rest.point_steps == long_trace.point_steps[5:]


def test_an_annealed_run_resumes_to_its_end():
    sampler = Annealed(levels=10)
    _, trace = Bowl().sample((4, 3), sampler=sampler, steps=4, seed=0, trace=True)
    x, trace = Bowl().sample((4, 3), resume=trace, trace=True)
    assert same(x, Bowl().sample((4, 3), sampler=sampler, seed=0)) and trace.steps == 10
    with pytest.raises(OptionError, match="takes 10 steps: 10 are done, and 1 were asked for"):
        Bowl().sample((4, 3), resume=trace)


@pytest.mark.parametrize(
    "given",
    [
        {"sampler": "hmc"},
        {"seed": 1},
        {"init": torch.zeros(3, 2)},
        {"step_size": 0.2},
        {"first_chain": 1},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_resumed_run_changes_nothing(given):
    _, trace = Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2, seed=0, trace=True)
    with pytest.raises(OptionError, match=f"leave out {next(iter(given))}"):
        Bowl().sample((3, 2), resume=trace, **given)
    with pytest.raises(OptionError, match="leave out shape"):
        Bowl().sample((4, 2), resume=trace)
    with pytest.raises(OptionError, match="resume takes the Trace"):
        Bowl().sample((4, 2), resume=3)


def test_a_resumed_run_keeps_its_dtype():
    _, trace = Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2, dtype=F64, trace=True)
    assert Bowl().sample((3, 2), resume=trace, steps=1).dtype == F64


def test_a_seed_that_nobody_gave_is_reported():
    x, trace = Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2, trace=True)
    assert same(x, Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2, seed=trace.seed))
    assert not same(x, Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2))


@pytest.mark.slow
def test_chunks_get_their_own_rows_of_conditions():
    centred = ce.as_energy(lambda x, c: (x - c).square().sum(1) * 50)
    targets = torch.arange(10.0)[:, None].expand(10, 2)
    draw = functools.partial(centred.given(c=targets).sample, (10, 2), sampler=Langevin(0.01), steps=60, seed=0)
    x = draw()
    assert (x - targets).abs().max() < 0.6
    for size in (1, 3):
        assert same(x, draw(batch_size=size))
    tuned = centred.given(c=targets).sample((10, 2), sampler=HMC(tuning_steps=40), steps=40, seed=0)
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
    assert same(first, Bowl().sample((5, 2), resume=trace, steps=1, batch_size=4))
