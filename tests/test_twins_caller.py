"""Sampling leaves the caller's modules, gradients and random state as they are."""

import copy
import functools

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExpressionError
from composable_energy_mcmc import HMC, Langevin
from tests.captured_networks import GLOBAL, GROUND, REFUSED, WAYS, Holder, network, state_of


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ends", ["well", "error", "interrupt"])
def test_modules_stay_as_they_are_at_every_step(way, ends):
    net = network()
    net.train()
    net[4].eval()
    net[0].weight.requires_grad_(False)
    energy = WAYS[way](net) & GROUND
    before, seen = state_of(net), []

    def callback(step, state, info):
        seen.append(state_of(net)[:5])
        if ends == "error" and step == 2:
            raise ZeroDivisionError
        if ends == "interrupt" and step == 2:
            raise KeyboardInterrupt

    draw = functools.partial(energy.sample, (5, 2), sampler=Langevin(0.1), steps=4, seed=0, observers=[ce.sampling.Stop(callback)])
    if ends == "well":
        drawn = draw()
        assert torch.equal(draw(), drawn)  # dropout in training would differ
        net.eval()
        assert torch.equal(draw(), drawn)
        net.train()
        net[4].eval()
    else:
        with pytest.raises(ZeroDivisionError if ends == "error" else KeyboardInterrupt):
            draw()
    assert all(state == before[:5] for state in seen if state[2] == before[2]) and seen
    assert state_of(net) == before


@pytest.mark.parametrize("way", REFUSED)
def test_a_module_in_training_mode_that_no_copy_reaches_is_refused(way):
    net = GLOBAL if "global" in way or way == "class" else network()
    net.train()
    energy = REFUSED[way](net) & GROUND
    with pytest.raises(ExpressionError, match=r"in training mode.*modules="):
        energy.sample((5, 2), sampler=Langevin(0.1), steps=1)
    net.eval()
    energy.sample((5, 2), sampler=Langevin(0.1), steps=1)


def test_running_statistics_stay_and_an_unrelated_module_is_left_alone():
    net, other = network(), network()
    holder = Holder(net)
    holder.other = other  # pyright: ignore[reportAttributeAccessIssue]
    energy = ce.as_energy(holder.score) & GROUND
    before, seen = copy.deepcopy(net.state_dict()), []
    energy.sample(
        (5, 2),
        sampler=Langevin(0.1),
        steps=3,
        observers=[ce.sampling.Stop(lambda *_: seen.append((other.training, other[0].weight.requires_grad)))],
    )
    assert seen == [(True, True)] * 3
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_global_random_state_goes_on_under_a_call():
    torch.manual_seed(5)
    expected = [torch.rand(()).item() for _ in range(6)]
    torch.manual_seed(5)
    drawn = [torch.rand(()).item()]
    GROUND.sample(
        (5, 2), sampler=Langevin(0.1), steps=4, seed=0, observers=[ce.sampling.Stop(lambda *_: drawn.append(torch.rand(()).item()))]
    )
    drawn.append(torch.rand(()).item())
    assert drawn == expected


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_callers_in_any_mode_get_the_same(context):
    energy = WAYS["registered"](network()) & GROUND
    plain = energy.sample((5, 2), sampler=HMC(0.2), steps=4, seed=0)
    with context():
        init = torch.zeros(5, 2)
        inside = energy.sample((5, 2), sampler=HMC(0.2), steps=4, seed=0)
        started = energy.sample((5, 2), sampler=HMC(0.2), steps=4, seed=0, init=init)
    assert torch.equal(plain, inside) and not inside.is_inference() and not inside.requires_grad
    assert not started.requires_grad and not init.requires_grad
    inside.requires_grad_().sum().backward()  # not an inference tensor: it can be trained on


def test_conditions_computed_with_a_graph_are_left_alone():
    encoder = nn.Linear(2, 2)
    z = encoder(torch.ones(3, 2))
    energy = ce.as_energy(lambda x, z: (x - z).square().sum(1)).given(z=z)
    x = energy.sample((3, 2), sampler=Langevin(0.1), steps=3, seed=0)
    assert not x.requires_grad and z.requires_grad
    z.sum().backward()
    assert encoder.weight.grad is not None
