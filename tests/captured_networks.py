"""Energies that reach a network in every way that Python has, for tests of twins."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn

import composable_energy as ce


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.SiLU(), nn.Linear(16, 1))


GLOBAL = network()


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


class Inside(ce.Energy):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.hidden = Holder(net)  # not registered, as no module

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden.score(x)


class Functions(NamedTuple):
    first: object
    second: object


class WithFunctions(ce.Energy):
    """Functions in attributes of every kind."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        score = lambda x: net(x).squeeze(1)
        self.alone, self.listed, self.named = score, [score], {"a": score}
        self.together, self.partial = Functions(score, (score, score)), functools.partial(score)

    def forward(self, x: Tensor) -> Tensor:
        of_tuple = self.together.first(x) + self.together.second[1](x)
        return self.alone(x) + self.listed[0](x) + self.named["a"](x) + self.partial(x) + of_tuple


class UsesGlobal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return GLOBAL(x).squeeze(1)


class Space:
    net = GLOBAL


def scored(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).squeeze(1)


def by_default(net: nn.Module):
    def score(x, *, _net=net):
        return _net(x).squeeze(1)

    return score


def helper(x: Tensor) -> Tensor:
    return GLOBAL(x).squeeze(1)


def recursive(net: nn.Module):
    def score(x, depth=2):
        return score(x, depth - 1) if depth else net(x).squeeze(1)

    return lambda x: score(x)


def head(net: nn.Module) -> ce.Energy:
    return ce.GaussianHead(lambda x: torch.cat([net(x), 0 * net(x)], 1), dims=1)(torch.tensor([0.5]))


WAYS = {
    "registered": lambda net: ce.as_energy(nn.Sequential(net, nn.Flatten(0))),
    "handed over": lambda net: ce.as_energy(lambda x, net: net(x).squeeze(1), modules=[net]),
    "partial": lambda net: ce.as_energy(functools.partial(scored, net)),
    "bound method": lambda net: ce.as_energy(Holder(net).score),
    "slots": lambda net: ce.as_energy(Slotted(net)),
    "attribute": Inside,
}
REFUSED = {
    "closure": lambda net: ce.as_energy(lambda x: net(x).squeeze(1)),
    "nested closure": lambda net: ce.as_energy(lambda x: (lambda y: (lambda z: net(z).squeeze(1))(y))(x)),
    "closure that calls itself": lambda net: ce.as_energy(recursive(net)),
    "keyword default": lambda net: ce.as_energy(by_default(net)),
    "partial of a closure": lambda net: ce.as_energy(functools.partial(lambda x, k: k * net(x).squeeze(1), k=2)),
    "method in a closure": lambda net: (lambda call: ce.as_energy(lambda x: call(x).squeeze(1)))(net.forward),
    "container": lambda net: (lambda nets: ce.as_energy(lambda x: nets[0]["a"](x).squeeze(1)))([{"a": net}]),
    "functions in attributes": WithFunctions,
    "energy in a closure": lambda net: (lambda inner: ce.as_energy(lambda x: inner(x)))(ce.as_energy(lambda x: net(x).squeeze(1))),
    "network of an event": lambda net: ce.ClassifierEnergy(lambda x: net(x), 1),
    "network of a head": head,
    "global": lambda _: ce.as_energy(lambda x: GLOBAL(x).squeeze(1)),
    "global in a comprehension": lambda _: ce.as_energy(lambda x: sum(GLOBAL(x + i).squeeze(1) for i in range(2))),
    "global in a helper": lambda _: ce.as_energy(lambda x: helper(x)),
    "object in a closure": lambda net: (lambda holder: ce.as_energy(lambda x: holder.score(x)))(Holder(net)),
    "callable object in a closure": lambda net: (lambda call: ce.as_energy(lambda x: call(x)))(Slotted(net)),
    "method of an object in a closure": lambda net: (lambda call: ce.as_energy(lambda x: call(x)))(Holder(net).score),
    "class": lambda _: ce.as_energy(lambda x: Space.net(x).squeeze(1)),
    "global in a method": lambda _: ce.as_energy(UsesGlobal()),
}
GROUND = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))


def state_of(net: nn.Module) -> list:
    return [
        [p.requires_grad for p in net.parameters()],
        [p.grad for p in net.parameters()],
        [m.training for m in net.modules()],
        [t.tolist() for t in net.state_dict().values()],
        [id(p) for p in net.parameters()],
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    ]
