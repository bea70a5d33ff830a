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
from tests.sampling_energies import Bowl

HOLE = ce.as_energy(lambda x: torch.where(x[:, 0] > 2, torch.nan, x.square().sum(1) / 2))


@dataclass(frozen=True)
class Scaled(State):
    scales: Tensor = field(metadata={"per_chain": False})


@dataclass(frozen=True)
class Unscaled(State):
    scales: Tensor


@dataclass(frozen=True)
class Walk(Sampler):
    """A walk in units that all chains share, as many as there are coordinates; it tells scalars of every kind."""

    option: object = None
    hidden: object = field(default=0, compare=False)
    kind: type = Scaled
    wide: bool = False

    def init(self, energy, x, noise):
        return self.kind(x, *energy_and_gradient(energy, x), torch.linspace(0.5, 1, x.shape[1]))

    def step(self, energy, state, noise):
        x = state.x + state.scales * noise.normal(state.x)
        height = x[:, 0].double()
        scalars = {"level": 0.1 * noise.step, "height": height, "positive": torch.where(height > 0, height, torch.nan)}
        told = {"wide": x} if self.wide else {**scalars, "mean": height.mean().item()}
        return self.kind(x, *energy_and_gradient(energy, x), state.scales), Info(scalars=told)


@pytest.mark.parametrize("size", [1, 4])
def test_scalars_are_those_of_all_chains_whatever_the_batch_size(size):
    seen = []
    watch = [ce.sampling.Stop(lambda step, state, info: seen.append(dict(info.scalars)))]
    _, trace = Bowl().sample((10, 2), sampler=Walk(), steps=4, seed=1, trace=1, batch_size=size, observers=watch)
    heights = trace.points[:, :, 0].double()
    assert trace.scalars["level"] == [0.1 * step for step in (1, 2, 3, 4)]
    for name in ("height", "mean"):
        assert trace.scalars[name] == pytest.approx(heights.mean(1).tolist(), abs=1e-12)
    assert trace.scalars["positive"] == pytest.approx(torch.where(heights > 0, heights, torch.nan).nanmean(1).tolist())
    assert seen == [{name: values[step] for name, values in trace.scalars.items()} for step in range(4)]


def test_scalars_of_chains_that_were_stopped_do_not_count():
    call = {"sampler": Walk(), "steps": 5, "seed": 0, "trace": 1, "on_divergence": "keep"}
    whole, parts = (HOLE.sample((30, 2), batch_size=size, **call)[1] for size in (None, 4))
    assert whole.diverged.any()
    for name, values in whole.scalars.items():
        assert parts.scalars[name] == pytest.approx(values)


@pytest.mark.parametrize(("chains", "size"), [(4, None), (4, 2), (5, 4)])  # as many chains, or rows, as coordinates
def test_a_tensor_that_all_chains_share_is_never_cut(chains, size):
    call = {"sampler": Walk(), "seed": 0, "trace": 1}
    whole, trace = Bowl().sample((chains, 4), steps=3, **call)
    parts, other = Bowl().sample((chains, 4), steps=3, batch_size=size, **call)
    assert torch.equal(whole, parts) and len(other.state.scales) == 4
    assert torch.equal(Bowl().sample((chains, 4), resume=trace, steps=2, batch_size=size), Bowl().sample((chains, 4), steps=5, **call)[0])
    start = torch.linspace(0, 1.9, chains)[:, None].repeat(1, 4)
    _, kept = HOLE.sample((chains, 4), steps=3, on_divergence="keep", batch_size=size, init=start, **call)
    assert 0 < kept.diverged.sum() < chains and torch.equal(kept.state.scales, torch.linspace(0.5, 1, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wide": True}, r"scalar 'wide' of Walk has shape \(5, 4\) for 5 chains"),
        ({"kind": Unscaled}, r"Unscaled.scales has shape \(4,\) in a state of 5 chains.*write `scales: Tensor = field\(metadata="),
    ],
)
def test_scalars_and_tensors_that_have_no_rows_are_refused(options, message):
    with pytest.raises(ShapeError, match=message):
        Bowl().sample((5, 4), sampler=Walk(**options), steps=3)


VALUES = [
    *(torch.ones(2), torch.tensor([1.0, 2.0]), torch.ones(2, dtype=torch.float64), torch.ones(3), torch.ones(())),
    *(np.ones(2), np.arange(2.0), [torch.ones(2)], (torch.ones(2), 1), [1], {"a": torch.ones(2)}, {"a": 1}, 1, None, "text"),
]


@pytest.mark.parametrize("make", [Walk, lambda value: replace(Walk(0), option=value)])
def test_samplers_compare_by_value_whatever_their_options_are(make):
    for i, one in enumerate(VALUES):
        for j, other in enumerate(VALUES):
            left, right = make(one), make(copy.deepcopy(other))
            assert (left == right) is (i == j) and (left != right) is (i != j)
            assert i != j or hash(left) == hash(right)
    assert Walk(1, hidden=torch.ones(2)) == Walk(1, hidden=torch.zeros(2))
    assert Langevin(0.1) != MALA(0.1) and Langevin(0.1) == Langevin(0.1) and Langevin(0.1) != 0.1
