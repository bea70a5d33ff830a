"""Sampling leaves no trace: weights, modes, statistics and random states are as before, whatever reaches the module and however it ends."""

import functools
import types

import pytest
import torch
from composable_energy_mcmc import HMC, Langevin
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.sampling import frozen
from composable_energy.sampling.freezing import reachable


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.SiLU(), nn.Linear(16, 1))


GLOBAL = network()
IN_A_MODULE = types.ModuleType("somewhere")
IN_A_MODULE.net = GLOBAL  # pyright: ignore[reportAttributeAccessIssue]


class Holder:
    """An object that is no module, with a method that uses one."""

    def __init__(self, net: nn.Module) -> None:
        self.nets = {"first": [net]}

    def score(self, x: Tensor) -> Tensor:
        return self.nets["first"][0](x).squeeze(1)


class Slotted:
    __slots__ = ("net",)

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)


class UsesGlobal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def inner(self, x: Tensor) -> Tensor:
        return GLOBAL(x).squeeze(1)


class Inside(ce.Energy):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.hidden = Holder(net)  # not registered, as no module

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden.score(x)


def scored(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).squeeze(1)


def by_default(net: nn.Module):
    def score(x, *, _net=net):
        return _net(x).squeeze(1)

    return score


def nested(net: nn.Module):
    return lambda x: (lambda y: (lambda z: net(z).squeeze(1))(y))(x)


WAYS = {
    "registered": lambda net: ce.as_energy(nn.Sequential(net, nn.Flatten(0))),
    "closure": lambda net: ce.as_energy(lambda x: net(x).squeeze(1)),
    "nested closure": lambda net: ce.as_energy(nested(net)),
    "keyword default": lambda net: ce.as_energy(by_default(net)),
    "partial": lambda net: ce.as_energy(functools.partial(scored, net)),
    "bound method": lambda net: ce.as_energy(Holder(net).score),
    "object in a closure": lambda net: ce.as_energy((lambda holder: lambda x: holder.score(x))(Holder(net))),
    "slots": lambda net: ce.as_energy(Slotted(net)),
    "container": lambda net: ce.as_energy((lambda nets: lambda x: nets[0]["a"](x).squeeze(1))([{"a": net}])),
    "attribute": Inside,
    "global": lambda _: ce.as_energy(lambda x: GLOBAL(x).squeeze(1)),
    "global in a method": lambda _: ce.as_energy(UsesGlobal()),
    "global in a module": lambda _: ce.as_energy(lambda x: IN_A_MODULE.net(x).squeeze(1)),
}


def state_of(net: nn.Module) -> list:
    return [
        [p.requires_grad for p in net.parameters()],
        [p.grad for p in net.parameters()],
        [m.training for m in net.modules()],
        [t.tolist() for t in net.state_dict().values()],
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ends", ["well", "error", "interrupt"])
def test_everything_is_as_before(way, ends):
    net = GLOBAL if "global" in way else network()
    net.train()
    net[4].eval()
    net[0].weight.requires_grad_(False)
    grounded = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
    energy = WAYS[way](net) & grounded
    before, seen = state_of(net), []

    def callback(step, state, info):
        seen.append(([p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]))
        torch.rand(3)
        if ends == "error" and step == 2:
            raise ZeroDivisionError
        if ends == "interrupt" and step == 2:
            raise KeyboardInterrupt

    draw = functools.partial(energy.sample, (5, 2), sampler=Langevin(0.1), steps=4, seed=0, callback=callback)
    if ends == "well":
        assert torch.equal(draw(), draw())  # dropout in training would differ
    else:
        with pytest.raises(ZeroDivisionError if ends == "error" else KeyboardInterrupt):
            draw()
    assert not any(any(flags) for pair in seen for flags in pair)
    assert state_of(net) == before


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_callers_in_any_mode_get_the_same(context):
    energy = WAYS["closure"](network()) & ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
    plain = energy.sample((5, 2), sampler=HMC(0.2), steps=4, seed=0)
    with context():
        init = torch.zeros(5, 2)
        inside = energy.sample((5, 2), sampler=HMC(0.2), steps=4, seed=0)
        started = energy.sample((5, 2), sampler=HMC(0.2), steps=4, seed=0, init=init)
    assert torch.equal(plain, inside) and not inside.is_inference() and not inside.requires_grad
    assert not started.requires_grad and not init.requires_grad
    inside.requires_grad_().sum().backward()  # not an inference tensor: it can be trained on


def test_learnable_weights_of_an_expression_are_frozen_too():
    weight = torch.tensor(2.0, requires_grad=True)
    loose = torch.ones(2, requires_grad=True)
    energy = weight * ce.as_energy(lambda x: (x * loose).square().sum(1))
    energy.sample((3, 2), sampler=Langevin(0.01), steps=2, callback=lambda *_: assert_off(loose))
    assert weight.requires_grad and loose.requires_grad and loose.grad is None
    assert all(parameter.requires_grad for parameter in energy.parameters())


def assert_off(tensor: Tensor) -> None:
    assert not tensor.requires_grad


def test_conditions_computed_with_a_graph_are_left_alone():
    encoder = nn.Linear(2, 2)
    z = encoder(torch.ones(3, 2))
    energy = ce.as_energy(lambda x, z: (x - z).square().sum(1)).given(z=z)
    x = energy.sample((3, 2), sampler=Langevin(0.1), steps=3, seed=0)
    assert not x.requires_grad and z.requires_grad
    z.sum().backward()
    assert encoder.weight.grad is not None


def test_what_is_reached_is_reached_once_and_no_more():
    net, other = network(), network()
    holder = Holder(net)
    holder.again = (holder, {"net": net})  # pyright: ignore[reportAttributeAccessIssue]

    def energy(x: Tensor) -> Tensor:
        return holder.score(x) + torch.nn.functional.silu(x).sum(1)

    tensors, modules = reachable(energy)
    assert [id(m) for m in modules].count(id(net)) == 1 and other not in modules
    assert {id(p) for p in net.parameters()} <= {id(t) for t in tensors}
    assert len(modules) == 6
    assert reachable(3, "a", None, torch.nn, int, [1.0] * 20_000) == ([], [])


def test_a_closure_that_is_not_bound_yet_is_no_obstacle():
    def make():
        def energy(x):
            return late(x)

        assert reachable(energy) == ([], [])
        late = torch.sin
        return late

    make()


def test_frozen_nests_and_restores_threads():
    net = network()
    with frozen(net, threads=2):
        assert torch.get_num_threads() == 2
        with frozen(net):
            assert not net.training
        assert not net.training and not net[0].weight.requires_grad
    assert net.training and net[0].weight.requires_grad and torch.get_num_threads() == 1
