"""Twins: copies in eval mode that share storage, and what they refuse."""

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.energies.identity import tensors_of
from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError
from composable_energy.sampling import twin
from composable_energy_mcmc import Langevin
from tests.captured_networks import GLOBAL, GROUND, network


def bowl(x: Tensor) -> Tensor:
    return x.square().sum(1) / 2


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


def test_a_twin_that_was_evaluated_equals_its_energy_and_still_checks_points():
    """A twin remembers which points fit, so that those of each step need no check."""
    energy = TakesGlobal().eval()
    copied = twin(energy)
    copied(torch.zeros(3, 2))
    assert copied.equals(energy) and energy.equals(copied) and twin(copied).equals(copy.deepcopy(copied))
    for wrong, error in ((torch.zeros(3, 2).double(), DtypeError), (torch.zeros(3, 2).long(), DtypeError), (torch.zeros(()), ShapeError)):
        with pytest.raises(error):
            copied(wrong)
    copied.double()
    with pytest.raises(DtypeError, match="float64 weights"):
        copied(torch.zeros(3, 2))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_an_energy_are_called_at_each_step(register):
    """Also pins the names of the hooks in `Energy.became_twin`."""
    calls: list[int] = []
    energy = ce.as_energy(bowl)
    getattr(energy, register)(lambda *_: calls.append(1))
    energy.sample((4, 2), sampler=Langevin(0.1), steps=6, seed=0)
    assert len(calls) == 7


def test_a_hook_that_changes_energies_changes_the_draws():
    hooked, steep = ce.as_energy(bowl), ce.as_energy(lambda x: 5 * bowl(x))
    hooked.register_forward_hook(lambda module, given, energies: 5 * energies)
    draw = {"sampler": Langevin(0.1), "steps": 6, "seed": 0}
    assert torch.equal(hooked.sample((4, 2), **draw), steep.sample((4, 2), **draw))


class Marked(nn.Parameter):
    """A parameter of one's own class, as quantised and distributed ones are."""


def test_a_twin_shares_storage_and_takes_no_gradients():
    net = network()
    net.extra, net.listed = torch.ones(2, requires_grad=True) * 2, [torch.ones(2)]  # not a leaf, which a deep copy refuses
    net.marked = Marked(torch.ones(2))
    net.marked.note = "kept"
    weight = torch.tensor(2.0, requires_grad=True)
    energy = weight * ce.as_energy(nn.Sequential(net, nn.Flatten(0))) & ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
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
