"""Sampling runs on a twin: nothing of the caller's changes at any moment, whatever other threads do, and however a call ends."""

import copy
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.captures import tensors_of
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.sampling import twin
from composable_energy_mcmc import HMC, Langevin


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
    "closure": lambda net: ce.as_energy(lambda x: net(x).squeeze(1)),
    "nested closure": lambda net: ce.as_energy(lambda x: (lambda y: (lambda z: net(z).squeeze(1))(y))(x)),
    "closure that calls itself": lambda net: ce.as_energy(recursive(net)),
    "keyword default": lambda net: ce.as_energy(by_default(net)),
    "partial": lambda net: ce.as_energy(functools.partial(scored, net)),
    "partial of a closure": lambda net: ce.as_energy(functools.partial(lambda x, k: k * net(x).squeeze(1), k=2)),
    "bound method": lambda net: ce.as_energy(Holder(net).score),
    "method in a closure": lambda net: (lambda call: ce.as_energy(lambda x: call(x).squeeze(1)))(net.forward),
    "slots": lambda net: ce.as_energy(Slotted(net)),
    "container": lambda net: (lambda nets: ce.as_energy(lambda x: nets[0]["a"](x).squeeze(1)))([{"a": net}]),
    "attribute": Inside,
    "functions in attributes": WithFunctions,
    "energy in a closure": lambda net: (lambda inner: ce.as_energy(lambda x: inner(x)))(ce.as_energy(lambda x: net(x).squeeze(1))),
    "network of an event": lambda net: ce.ClassifierEnergy(lambda x: net(x), 1),
    "network of a head": head,
    "global": lambda _: ce.as_energy(lambda x: GLOBAL(x).squeeze(1)),
    "global in a helper": lambda _: ce.as_energy(lambda x: helper(x)),
}

REFUSED = {
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


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ends", ["well", "error", "interrupt"])
def test_modules_stay_as_they_are_at_every_step(way, ends):
    net = GLOBAL if "global" in way else network()
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

    draw = functools.partial(energy.sample, (5, 2), sampler=Langevin(0.1), steps=4, seed=0, callback=callback)
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
    net = GLOBAL if way in ("class", "global in a method") else network()
    net.train()
    energy = REFUSED[way](net) & GROUND
    with pytest.raises(ExpressionError, match=r"in training mode.*modules="):
        energy.sample((5, 2), sampler=Langevin(0.1), steps=1)
    net.eval()
    energy.sample((5, 2), sampler=Langevin(0.1), steps=1)


class TakesGlobal(ce.Energy):
    """Makes a global network its own part."""

    def __init__(self) -> None:
        super().__init__()
        self.net = GLOBAL

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)


def test_a_constructor_may_take_a_global_network():
    GLOBAL.train()  # whatever other tests left
    copied = twin(TakesGlobal())
    assert GLOBAL.training and not copied.net.training
    GLOBAL.eval()


class NamedLikeAGlobal(ce.Energy):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.GLOBAL = net

    def forward(self, x: Tensor) -> Tensor:
        return self.GLOBAL(x).squeeze(1)


def test_an_attribute_that_is_called_as_a_global_is_none():
    GLOBAL.train()
    net = network().eval()
    twin(NamedLikeAGlobal(net))
    energy = ce.as_energy(lambda x: NamedLikeAGlobal(net)(x))
    assert not {id(p) for p in GLOBAL.parameters()} & {id(p) for p in tensors_of(energy)}


def test_many_helpers_that_call_each_other_are_searched_once():
    space: dict = {"torch": torch}
    for i in range(60):
        exec(f"def f{i}(x): return f{i + 1}(x) + f{i + 2}(x) if f{i + 1} else x.sum(1)", space)
    space["f60"] = space["f61"] = torch.sum
    assert tensors_of(twin(ce.as_energy(space["f0"]))) == []


def test_running_statistics_stay_and_an_unrelated_module_is_left_alone():
    net, other = network(), network()
    holder = Holder(net)
    holder.other = other  # pyright: ignore[reportAttributeAccessIssue]
    energy = ce.as_energy(holder.score) & GROUND
    before, seen = copy.deepcopy(net.state_dict()), []
    energy.sample((5, 2), sampler=Langevin(0.1), steps=3, callback=lambda *_: seen.append((other.training, other[0].weight.requires_grad)))
    assert seen == [(True, True)] * 3
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_global_random_state_goes_on_under_a_call():
    torch.manual_seed(5)
    expected = [torch.rand(()).item() for _ in range(6)]
    torch.manual_seed(5)
    drawn = [torch.rand(()).item()]
    GROUND.sample((5, 2), sampler=Langevin(0.1), steps=4, seed=0, callback=lambda *_: drawn.append(torch.rand(()).item()))
    drawn.append(torch.rand(()).item())
    assert drawn == expected


def test_two_threads_that_sample_one_energy_never_evaluate_in_training_mode():
    modes = set()

    class Watched(nn.Module):
        def forward(self, x):
            modes.add((self.training, torch.is_grad_enabled()))
            return x.square().sum(1)

    watched = Watched()
    energy = ce.as_energy(watched)

    def draw(seed):
        return energy.sample((5, 2), sampler=Langevin(0.1), steps=100, seed=seed)

    serial = [draw(seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(draw, range(2)))
    assert modes == {(False, True)} and watched.training
    assert all(map(torch.equal, serial, together))


def test_a_thread_that_trains_gets_all_gradients_while_others_sample():
    net = network()
    energy = WAYS["closure"](net) & GROUND
    x, stop, without = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), threading.Event(), []

    def backward():
        net.zero_grad()
        torch.nn.functional.mse_loss(net[4](net[3](net[0](x))), x[:, :1]).backward()
        return [p.grad for p in (*net[0].parameters(), *net[4].parameters())]

    alone = [grad.clone() for grad in backward()]

    def draw(seed):
        while not stop.is_set():
            energy.sample((5, 2), sampler=Langevin(0.1), steps=3, seed=seed)

    with ThreadPoolExecutor(2) as pool:
        draws = [pool.submit(draw, seed) for seed in range(2)]
        try:
            for _ in range(100):
                grads = backward()
                without.append(any(grad is None or not torch.equal(grad, one) for grad, one in zip(grads, alone, strict=True)))
        finally:
            stop.set()
        assert all(done.result() is None for done in draws)
    assert not any(without) and net.training


@pytest.mark.slow
def test_eight_threads_draw_faces_while_a_ninth_trains_the_same_network():
    male, smiling = ce.load("faces/male"), ce.load("faces/smiling")
    energy = male & ~smiling
    for parameter in energy.parameters():
        parameter.requires_grad_(True)
    energy.train()
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))

    def gradients():
        energy.zero_grad()
        twice = (male(x, sigma=0.5) + smiling(x, sigma=0.5)).sum()
        twice.backward()
        return [parameter.grad for parameter in energy.parameters() if parameter.grad is not None]

    def draw(seed):
        return energy.sample(20, sampler="annealed", levels=2, corrector_steps=1, seed=seed, latents=True)

    serial, alone, off = [draw(seed) for seed in range(8)], [grad.clone() for grad in gradients()], []
    stop = threading.Event()

    def train():
        count = 0
        while count < 3 or not stop.is_set():
            grads = gradients()
            off.append(len(grads) != len(alone) or not all(map(torch.equal, grads, alone)))
            count += 1

    with ThreadPoolExecutor(9) as pool:
        training = pool.submit(train)
        try:
            together = list(pool.map(draw, range(8)))
        finally:
            stop.set()
        training.result()
    assert all(map(torch.equal, serial, together))
    assert alone and not any(off)


def test_threads_inside_an_operation_are_those_of_before_after_calls_at_once():
    energy = ce.as_energy(lambda x: x.square().sum(1))
    energy.recommended = ce.Recommendation("langevin", {"step_size": 0.1}, threads=2)
    assert torch.get_num_threads() == 1
    inside = threading.Barrier(3)

    def draw(seed):
        seen = []

        def callback(*_):
            seen.append(torch.get_num_threads())
            inside.wait(60)

        energy.sample((3, 2), steps=1, seed=seed, callback=callback)
        return seen, torch.get_num_threads()

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(draw, range(3))) == [([2], 1)] * 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
    seen = []
    energy.sample(
        (3, 2), steps=2, callback=lambda step, *_: step == 1 and energy.sample((3, 2), steps=1) is seen.append(torch.get_num_threads())
    )
    assert seen == [2] and torch.get_num_threads() == 1


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_callers_in_any_mode_get_the_same(context):
    energy = WAYS["closure"](network()) & GROUND
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


class Marked(nn.Parameter):
    """A parameter of one's own class, as quantised and distributed ones are."""


def test_a_twin_shares_storage_and_takes_no_gradients():
    net = network()
    net.extra, net.listed = torch.ones(2, requires_grad=True) * 2, [torch.ones(2)]  # not a leaf, which a deep copy refuses
    net.marked = Marked(torch.ones(2))
    net.marked.note = "kept"
    weight = torch.tensor(2.0, requires_grad=True)
    energy = weight * ce.as_energy(nn.Sequential(net, nn.Flatten(0))) & ce.as_energy(
        torch.distributions.Normal(nn.Parameter(torch.zeros(2)), 1.0)
    )
    copied = twin(energy)
    own, theirs = tensors_of(copied), tensors_of(energy)
    assert len(own) == len(theirs) > 10
    assert all(a.data_ptr() == b.data_ptr() and not a.requires_grad for a, b in zip(own, theirs, strict=True))
    assert not any(module.training for module in copied.modules()) and energy.training
    assert [type(p) for p in copied.parameters()] == [type(p) for p in energy.parameters()]
    (marked,) = [p for p in copied.parameters() if isinstance(p, Marked)]
    assert marked.note == "kept" and copied.state_dict().keys() == energy.state_dict().keys()
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(copied(x), energy.eval()(x)) and len(copied.bases) == len(energy.bases)
    with torch.no_grad():
        net[4].bias.add_(1.0)
    assert torch.equal(copied(x), energy(x))  # weights are shared, so that a step of training is seen


def test_one_function_has_one_twin():
    net, counts = network(), [0]

    def logits(x):
        counts[0] += 1
        return net(x)

    a, b = (ce.ClassifierEnergy(logits, label) for label in (0, 1))
    twin((a | b) & GROUND)(torch.zeros(3, 2))
    assert counts == [1]


@pytest.mark.slow
def test_a_parametrised_and_a_compiled_network_have_twins():
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 1))
    wrapped = torch.compile(nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1), nn.Flatten(0)), backend="eager")
    energy = ce.as_energy(nn.Sequential(normed, nn.Flatten(0))) & wrapped & GROUND
    before = copy.deepcopy(energy.state_dict())
    draws = [energy.sample((5, 2), sampler=Langevin(0.1), steps=2, seed=0) for _ in range(2)]
    assert torch.equal(*draws) and wrapped.training
    assert all(torch.equal(value, before[name]) for name, value in energy.state_dict().items())


def test_the_conditions_of_a_compiled_network_are_those_of_the_network():
    class Noisy(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, shift: float = 0.0) -> Tensor:
            return x.square().sum(1) / sigma + shift

    energy = ce.as_energy(torch.compile(Noisy(), backend="eager"))  # through a private name of torch, `_orig_mod`
    assert (energy.conditions, energy.required_conditions) == ({"sigma", "shift"}, {"sigma"})


def test_what_cannot_be_copied_is_refused():
    net = nn.Sequential(nn.LazyLinear(1), nn.Flatten(0))
    with pytest.raises(ExpressionError, match="lazy"):
        twin(ce.as_energy(net))
    net = nn.Linear(2, 1)
    net.lock = threading.Lock()  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    with pytest.raises(ExpressionError, match="cannot be copied"):
        twin(ce.as_energy(nn.Sequential(net, nn.Flatten(0))))


def test_deep_expressions_have_twins():
    energy = GROUND
    for _ in range(100):
        energy = 1.01 * energy
    x = torch.ones(3, 2)
    assert torch.equal(twin(energy)(x), energy(x))


def test_what_a_function_captures_is_found_and_no_more():
    net, other = network(), network()
    holder = Holder(other)
    numbers = [1.0] * 20_000

    def energy(x: Tensor) -> Tensor:
        return net(x).squeeze(1) * numbers[0] + len(holder.nets) + torch.nn.functional.silu(x).sum(1)

    other.eval()
    found = {id(tensor) for tensor in tensors_of(energy)}
    assert {id(p) for p in net.parameters()} <= found and not {id(p) for p in other.parameters()} & found
    assert tensors_of([3, "a", None, nn, int]) == []


def test_a_closure_that_is_not_bound_yet_is_no_obstacle():
    def make():
        def energy(x):
            return late(x)

        assert tensors_of(energy) == []
        late = torch.sin
        return late

    make()


def test_modules_that_are_handed_over_are_parts_of_the_energy():
    first, second = nn.Linear(2, 3), nn.Linear(3, 1)
    energy = ce.as_energy(lambda x, a, b, sigma=1.0: b(a(x)).squeeze(1) / sigma, modules=[first, second])
    assert energy.conditions == {"sigma"} and not energy.required_conditions
    assert {id(p) for p in energy.parameters()} == {id(p) for p in (*first.parameters(), *second.parameters())}
    x = torch.ones(2, 2)
    assert torch.equal(energy(x, sigma=2.0), second(first(x)).squeeze(1) / 2)
    assert energy.double()(x.double()).dtype == torch.float64
    with pytest.raises(OptionError, match="takes modules"):
        ce.as_energy(lambda x, a: x, modules=[3])
    with pytest.raises(OptionError, match="called as f"):
        ce.as_energy(lambda x: x.sum(1), modules=[first])


def test_a_long_list_in_a_global_is_not_copied():
    data = list(range(100_000))
    holder, net = {"data": data, "other": nn.Linear(1, 1)}, nn.Linear(2, 1)

    def energy(x):
        return net(x).squeeze(1) + x.square().sum(1) + len(holder["data"])

    copied = twin(ce.as_energy(energy)).function
    captured = dict(zip(copied.__code__.co_freevars, (cell.cell_contents for cell in copied.__closure__), strict=True))
    assert captured["net"] is not net and captured["holder"]["data"] is data
