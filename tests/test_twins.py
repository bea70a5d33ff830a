"""Twins, on which sampling runs: they share storage, leave the caller's modules and random state alone, also in threads."""

import copy
import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

import composable_energy as ce
from composable_energy.energies.identity import tensors_of
from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError
from composable_energy.sampling import Stop, twin
from composable_energy_mcmc import HMC, Langevin
from tests.factories import quadratic
from tests.refusals import refused

DRAW = {"sampler": Langevin(0.1), "steps": 4, "seed": 0}


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


class WithFunctions(ce.Energy):
    """A function in an attribute."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.parts = (1.0, {"a": functools.partial(lambda x: net(x).squeeze(1))})

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[1]["a"](x)


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
    "closure that calls itself": lambda net: ce.as_energy(recursive(net)),
    "keyword default": lambda net: ce.as_energy(by_default(net)),
    "container": lambda net: (lambda nets: ce.as_energy(lambda x: nets[0]["a"](x).squeeze(1)))([{"a": net}]),
    "functions in attributes": WithFunctions,
    "energy in a closure": lambda net: (lambda inner: ce.as_energy(lambda x: inner(x)))(ce.as_energy(lambda x: net(x).squeeze(1))),
    "network of an event": lambda net: ce.ClassifierEnergy(lambda x: net(x), 1),
    "global in a comprehension": lambda _: ce.as_energy(lambda x: sum(GLOBAL(x + i).squeeze(1) for i in range(2))),
    "global in a helper": lambda _: ce.as_energy(lambda x: helper(x)),
    "object in a closure": lambda net: (lambda holder: ce.as_energy(lambda x: holder.score(x)))(Holder(net)),
    "class": lambda _: ce.as_energy(lambda x: Space.net(x).squeeze(1)),
    "global in a method": lambda _: ce.as_energy(UsesGlobal()),
}
GROUND = ce.as_energy(Normal(torch.zeros(2), 1.0))


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


def test_a_twin_that_was_evaluated_equals_its_energy_and_still_checks_points():
    """A twin remembers which points fit, so that those of each step need no check."""
    energy = WAYS["registered"](network()).eval()
    copied = twin(energy)
    copied(torch.zeros(3, 2))
    assert copied.equals(energy) and energy.equals(copied) and twin(copied).equals(copy.deepcopy(copied))
    for wrong, error in ((torch.zeros(3, 2).double(), DtypeError), (torch.zeros(3, 2).long(), DtypeError), (torch.zeros(()), ShapeError)):
        refused(error, None, copied, wrong)
    copied.double()
    refused(DtypeError, "float64 weights", copied, torch.zeros(3, 2))


def test_hooks_of_an_energy_are_called_at_each_step_and_change_the_draws():
    """Also pins the names of the hooks in `Energy.became_twin`."""
    calls: list[int] = []
    hooked, steep = ce.as_energy(quadratic), ce.as_energy(lambda x: 5 * quadratic(x))
    hooked.register_forward_pre_hook(lambda *_: calls.append(1))
    hooked.register_forward_hook(lambda module, given, energies: 5 * energies)
    assert torch.equal(hooked.sample((4, 2), **DRAW), steep.sample((4, 2), **DRAW)) and len(calls) == 5 + 3  # at the end


class Marked(nn.Parameter):
    """A parameter of one's own class, as quantised and distributed ones are."""


def test_a_twin_shares_storage_and_takes_no_gradients():
    net = network()
    net.extra, net.listed = torch.ones(2, requires_grad=True) * 2, [torch.ones(2)]  # not a leaf, which a deep copy refuses
    net.marked = Marked(torch.ones(2))
    net.marked.note = "kept"
    weight = torch.tensor(2.0, requires_grad=True)
    energy = weight * ce.as_energy(nn.Sequential(net, nn.Flatten(0))) & ce.as_energy(Normal(torch.zeros(2), 1.0))
    copied = twin(energy)
    own, theirs = list(tensors_of(copied)), list(tensors_of(energy))
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
    net, counts = network().eval(), [0]

    def logits(x):
        counts[0] += 1
        return net(x)

    a, b = (ce.ClassifierEnergy(logits, label) for label in (0, 1))
    twin((a | b) & GROUND)(torch.zeros(3, 2))
    assert counts == [1]


def test_a_parametrised_and_a_compiled_network_have_twins():
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 1))
    wrapped = torch.compile(nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1), nn.Flatten(0)), backend="eager")
    energy = ce.as_energy(nn.Sequential(normed, nn.Flatten(0))) & wrapped & GROUND
    before = copy.deepcopy(energy.state_dict())
    assert torch.equal(*[energy.sample((5, 2), sampler=Langevin(0.1), steps=2, seed=0) for _ in range(2)]) and wrapped.training
    assert all(torch.equal(value, before[name]) for name, value in energy.state_dict().items())


def test_what_cannot_be_copied_is_refused():
    refused(ExpressionError, "lazy", twin, ce.as_energy(nn.Sequential(nn.LazyLinear(1), nn.Flatten(0))))
    net = nn.Linear(2, 1)
    net.lock = threading.Lock()  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    refused(ExpressionError, "cannot be copied", twin, ce.as_energy(nn.Sequential(net, nn.Flatten(0))))


def test_modules_that_are_handed_over_are_parts_of_the_energy():
    first, second = nn.Linear(2, 3), nn.Linear(3, 1)
    energy = ce.as_energy(lambda x, a, b, sigma=1.0: b(a(x)).squeeze(1) / sigma, modules=[first, second])
    assert energy.conditions == {"sigma"} and not energy.required_conditions
    assert {id(p) for p in energy.parameters()} == {id(p) for p in (*first.parameters(), *second.parameters())}
    x = torch.ones(2, 2)
    assert torch.equal(energy(x, sigma=2.0), second(first(x)).squeeze(1) / 2) and energy.double()(x.double()).dtype == torch.float64
    refused(OptionError, "a list of modules", ce.as_energy, lambda x, a: x, modules=[3])
    refused(OptionError, "called as f", ce.as_energy, lambda x: x.sum(1), modules=[first])


@pytest.mark.slow
@pytest.mark.parametrize(("way", "ends"), [*((way, None) for way in WAYS), ("registered", ZeroDivisionError), ("slots", KeyboardInterrupt)])
def test_modules_stay_as_they_are_at_every_step(way, ends):
    net = network()
    net.train()
    net[4].eval()
    net[0].weight.requires_grad_(False)
    energy = WAYS[way](net) & GROUND
    before, seen = state_of(net), []

    def callback(step, state, info):
        seen.append(state_of(net)[:5])
        if ends and step == 2:
            raise ends

    draw = functools.partial(energy.sample, (5, 2), observers=[Stop(callback)], **DRAW)
    if ends is None:
        drawn = draw()
        assert torch.equal(draw(), drawn)  # dropout in training would differ
        net.eval()
        assert torch.equal(draw(), drawn)
        net.train()
        net[4].eval()
    else:
        refused(ends, None, draw)
    assert all(state == before[:5] for state in seen if state[2] == before[2]) and seen and state_of(net) == before


@pytest.mark.parametrize("way", REFUSED)
def test_a_module_in_training_mode_that_no_copy_reaches_is_refused(way):
    net = GLOBAL if "global" in way or way == "class" else network()
    net.train()
    energy = REFUSED[way](net) & GROUND
    refused(ExpressionError, r"in training mode.*modules=", energy.sample, (5, 2), sampler=Langevin(0.1), steps=1)
    net.eval()
    energy.sample((5, 2), sampler=Langevin(0.1), steps=1)


def test_a_global_with_the_name_of_an_attribute_is_another_object():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.GLOBAL = nn.Linear(2, 1)

        def forward(self, x):
            return self.GLOBAL(x).squeeze(1)

    GLOBAL.train()
    assert (ce.as_energy(Model()) & GROUND).sample((5, 2), sampler=Langevin(0.1), steps=1).isfinite().all()


def test_the_global_random_state_goes_on_under_a_call():
    torch.manual_seed(5)
    expected = [torch.rand(()).item() for _ in range(6)]
    torch.manual_seed(5)
    drawn = [torch.rand(()).item()]
    GROUND.sample((5, 2), observers=[Stop(lambda *_: drawn.append(torch.rand(()).item()))], **DRAW)
    assert [*drawn, torch.rand(()).item()] == expected


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_callers_in_any_mode_get_the_same(context):
    energy = WAYS["registered"](network()) & GROUND
    plain = energy.sample((5, 2), sampler=HMC(0.2), steps=4, seed=0)
    with context():
        init, built = torch.zeros(5, 2), WAYS["registered"](network())
        inside = energy.sample((5, 2), sampler=HMC(0.2), steps=4, seed=0)
        started = energy.sample((5, 2), sampler=HMC(0.2), steps=4, seed=0, init=init)
    assert torch.equal(plain, inside) and torch.equal(plain, (built & GROUND).sample((5, 2), sampler=HMC(0.2), steps=4, seed=0))
    assert not (inside.is_inference() or inside.requires_grad or started.requires_grad or init.requires_grad)
    inside.requires_grad_().sum().backward()  # not an inference tensor: it can be trained on


def test_a_thread_that_trains_gets_all_gradients_while_others_sample():
    net = network()
    energy = WAYS["registered"](net) & GROUND
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
            for _ in range(40):
                without.append(any(grad is None or not torch.equal(grad, one) for grad, one in zip(backward(), alone, strict=True)))
        finally:
            stop.set()
        assert all(done.result() is None for done in draws)
    assert not any(without) and net.training


def test_weights_may_be_trained_between_the_forward_and_the_backward_pass():
    (net := network())(torch.ones(4, 2)).sum().backward()
    step = torch.optim.SGD(net.parameters(), lr=0.0).step
    energy = WAYS["registered"](net) & ce.as_energy(lambda x: x.square().sum(1) + (step() or 0))
    assert energy.sample((5, 2), sampler=Langevin(0.1), steps=3, seed=0).isfinite().all()


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

        energy.sample((3, 2), steps=1, seed=seed, observers=[Stop(callback)])
        return seen, torch.get_num_threads()

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(draw, range(3))) == [([2], 1)] * 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
    seen = []
    watch = Stop(lambda step, *_: step == 1 and energy.sample((3, 2), steps=1) is seen.append(torch.get_num_threads()))
    energy.sample((3, 2), steps=2, observers=[watch])
    assert seen == [2] and torch.get_num_threads() == 1
