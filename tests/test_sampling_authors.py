"""Guarantees for authors of samplers: scalars of all chains, states with rows and shared tensors, comparison of samplers."""

import copy
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import ShapeError
from composable_energy.sampling import Info, Sampler, State, energy_and_gradient
from composable_energy_mcmc import MALA, Langevin


class Bowl(ce.Energy):
    """A unit Gaussian; elementwise, so chunks change no bit."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(1) / 2


@dataclass(frozen=True)
class Telling(Sampler):
    """Scalars of every kind: one that all chains share, one for each chain, and one that has no value for some."""

    def init(self, energy, x, noise):
        return State(x, *energy_and_gradient(energy, x))

    def step(self, energy, state, noise):
        x = state.x + noise.normal(state.x)
        new = State(x, *energy_and_gradient(energy, x))
        height = x[:, 0].double()
        positive = torch.where(height > 0, height, torch.nan)
        return new, Info(scalars={"level": 0.1 * noise.step, "height": height, "positive": positive, "mean": height.mean().item()})


@pytest.mark.parametrize("size", [1, 4])
def test_scalars_are_those_of_all_chains_whatever_the_batch_size(size):
    call = {"sampler": Telling(), "steps": 4, "seed": 1, "trace": 1}
    seen = []
    _, trace = Bowl().sample(
        (10, 2), batch_size=size, observers=[ce.sampling.Stop(lambda step, state, info: seen.append(dict(info.scalars)))], **call
    )
    heights = trace.points[:, :, 0].double()
    assert trace.scalars["level"] == [0.1 * step for step in (1, 2, 3, 4)]
    assert trace.scalars["height"] == pytest.approx(heights.mean(1).tolist(), abs=1e-12)
    assert trace.scalars["mean"] == pytest.approx(heights.mean(1).tolist(), abs=1e-12)
    assert trace.scalars["positive"] == pytest.approx(torch.where(heights > 0, heights, torch.nan).nanmean(1).tolist())
    assert seen == [{name: values[step] for name, values in trace.scalars.items()} for step in range(4)]


def test_scalars_of_chains_that_were_stopped_do_not_count():
    hole = ce.as_energy(lambda x: torch.where(x[:, 0] > 2, torch.nan, x.square().sum(1) / 2))
    traces = [
        hole.sample((30, 2), sampler=Telling(), steps=5, seed=0, trace=1, on_divergence="keep", batch_size=size)[1] for size in (None, 4)
    ]
    assert traces[0].diverged.any()
    for name, values in traces[0].scalars.items():
        assert traces[1].scalars[name] == pytest.approx(values)


def test_scalars_of_another_shape_are_refused():
    @dataclass(frozen=True)
    class Wide(Telling):
        def step(self, energy, state, noise):
            return state, Info(scalars={"wide": state.x})

    with pytest.raises(ShapeError, match=r"scalar 'wide' of Wide has shape \(3, 2\) for 3 chains"):
        Bowl().sample((3, 2), sampler=Wide(), steps=1)


@dataclass(frozen=True)
class Scaled(State):
    scales: Tensor = field(metadata={"per_chain": False})


@dataclass(frozen=True)
class Unscaled(State):
    scales: Tensor


@dataclass(frozen=True)
class Scaling(Sampler):
    """A walk in units that all chains share, as many as there are coordinates."""

    kind: type = Scaled

    def init(self, energy, x, noise):
        return self.kind(x, *energy_and_gradient(energy, x), torch.linspace(1, 2, x.shape[1]))

    def step(self, energy, state, noise):
        x = state.x + state.scales * noise.normal(state.x)
        return self.kind(x, *energy_and_gradient(energy, x), state.scales), Info()


@pytest.mark.parametrize(("chains", "size"), [(4, None), (4, 2), (5, 4)])  # as many chains, or rows, as coordinates
def test_a_tensor_that_all_chains_share_is_never_cut(chains, size):
    call = {"sampler": Scaling(), "seed": 0, "trace": 1}
    whole, trace = Bowl().sample((chains, 4), steps=3, **call)
    parts, other = Bowl().sample((chains, 4), steps=3, batch_size=size, **call)
    assert torch.equal(whole, parts) and len(other.state.scales) == 4
    assert torch.equal(Bowl().sample((chains, 4), resume=trace, steps=2, batch_size=size), Bowl().sample((chains, 4), steps=5, **call)[0])
    hole = ce.as_energy(lambda x: torch.where(x[:, 0] > 1, torch.nan, x.square().sum(1) / 2))
    _, kept = hole.sample((chains, 4), steps=3, on_divergence="keep", batch_size=size, init=torch.zeros(chains, 4), **call)
    assert 0 < kept.diverged.sum() < chains
    assert torch.equal(kept.state.scales, torch.linspace(1, 2, 4))


def test_a_tensor_without_rows_that_is_not_declared_is_refused():
    with pytest.raises(
        ShapeError, match=r"Unscaled.scales has shape \(4,\) in a state of 5 chains.*write `scales: Tensor = field\(metadata="
    ):
        Bowl().sample((5, 4), sampler=Scaling(Unscaled), steps=3)


@dataclass(frozen=True)
class Options(Sampler):
    """What options may be, for equality."""

    scale: object
    hidden: object = field(default=0, compare=False)

    def init(self, energy, x, noise):
        return State(x, *energy_and_gradient(energy, x))

    def step(self, energy, state, noise):
        return state, Info()


VALUES = [
    *(torch.ones(2), torch.tensor([1.0, 2.0]), torch.ones(2, dtype=torch.float64), torch.ones(3), torch.ones(())),
    *(np.ones(2), np.arange(2.0), [torch.ones(2)], (torch.ones(2), 1), [1], {"a": torch.ones(2)}, {"a": 1}, 1, None, "text"),
]


@pytest.mark.parametrize("make", [Options, lambda value: replace(Options(0), scale=value)])
def test_samplers_compare_by_value_whatever_their_options_are(make):
    for i, one in enumerate(VALUES):
        for j, other in enumerate(VALUES):
            left, right = make(one), make(copy.deepcopy(other))
            assert (left == right) is (i == j) and (left != right) is (i != j)
            assert i != j or hash(left) == hash(right)
    assert Options(1, hidden=torch.ones(2)) == Options(1, hidden=torch.zeros(2))
    assert Langevin(0.1) != MALA(0.1) and Langevin(0.1) == Langevin(0.1) and Langevin(0.1) != 0.1
