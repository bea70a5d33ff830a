"""Identity: copies and saved files are the same energy, a change of one number is another, and what is bound stays as it was."""

import copy

import numpy as np
import pytest
import torch
from torch import distributions as td
from torch import nn

import composable_energy as ce
from composable_energy.energies.identity import Origin, inherit_token
from composable_energy.errors import DtypeError, ExpressionError, OptionError, PluginLoadError
from tests.factories import quadratic
from tests.refusals import refused

X = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))


class Ring(ce.Energy):
    """A number in an attribute, described by `config()`."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius
        self.event_shape = (2,)

    def forward(self, x):
        return (x.norm(dim=1) - self.radius).square()

    def config(self):
        return {"radius": self.radius}


class Tilt(ce.Energy):
    """A number in an attribute, without `config()`."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return self.slope * x[:, 0] + x.square().sum(1)


class Noisy(ce.Energy):
    """Weights, and a noise level."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.net = filled(nn.Linear(2, 3), weight)
        self.weight = weight
        self.event_shape = (2,)

    def forward(self, x, sigma=0.1):
        return self.net(x).square().sum(1) + sigma * x.square().sum(1)

    def config(self):
        return {"weight": self.weight}


def filled(module: nn.Module, number: float) -> nn.Module:
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter) + number + i)
    return module


class Scaled(nn.Module):
    """A module that is lifted."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x):
        return self.scale * x.square().sum(1)


def pull(x):
    return -x


@pytest.fixture(scope="module", autouse=True)
def names():
    """Registers the energies that are loaded by name."""
    with ce.register("energy", "ring", Ring), ce.register("energy", "noisy", Noisy), ce.register("encoder", "linear", nn.Linear):
        yield


def loaded(energy: ce.Energy, folder) -> ce.Energy:
    energy.save(folder)
    return ce.load(folder)


def check_same(energy: ce.Energy, other: ce.Energy) -> None:
    assert energy.equals(other) and other.equals(energy) and [base.weight for base in other.bases] == [base.weight for base in energy.bases]
    assert len((energy & other).bases) == len(energy.bases)  # a base is one with that of its copy
    (value, gradient), (same_value, same_gradient) = energy.with_gradient(X.clone()), other.with_gradient(X.clone())
    assert torch.equal(value, same_value)
    torch.testing.assert_close(gradient, same_gradient, rtol=1e-5, atol=1e-5)  # in eval mode networks are evaluated once


def head(number: float) -> nn.Module:
    return filled(ce.get("encoder", "linear", in_features=2, out_features=4), number)


def pair(number: float) -> td.MixtureSameFamily:
    parts = td.MultivariateNormal(torch.tensor([[0.0, number], [1.0, 2.0]]), torch.eye(2))
    return td.MixtureSameFamily(td.Categorical(torch.tensor([0.3, 0.7])), parts)


LABELS = torch.tensor([0, 1, 2, 3, 0])
SAVED = {
    "normal": lambda base, a, k: ce.as_energy(td.Normal(torch.tensor([k, 0.0]), 1.0)),
    "mixture": lambda base, a, k: ce.as_energy(pair(k)),
    "ring": lambda base, a, k: Ring(k),
    "noisy": lambda base, a, k: Noisy(k),
    "event": lambda base, a, k: ce.ClassifierEnergy(head(k), 1, base),
    "labels": lambda base, a, k: ce.ClassifierEnergy(head(k), base=base).given(y=LABELS),
    "density": lambda base, a, k: ce.GaussianHead(head(0.1), base, dims=2)((k, 0.5)),
    "interval": lambda base, a, k: ce.GaussianHead(head(0.1), base, dims=2).near((k, 0.5), 3.0),
    "weighted": lambda base, a, k: torch.tensor(k) * a,
    "cooled": lambda base, a, k: a / nn.Parameter(torch.tensor(k)),
    "sharpened": lambda base, a, k: a.sharpened(k),
    "contrast": lambda base, a, k: ce.negate(a, "contrast", offset=k),
    "power": lambda base, a, k: ce.negate(a, "power", weight=k),
    "relative": lambda base, a, k: Ring(k).relative_to(base),
    "and": lambda base, a, k: a & Ring(k),
    "or": lambda base, a, k: a | k * Ring(2.0),
    "any": lambda base, a, k: ce.any_of(a, Ring(2.0), weights=[1.0, k]),
    "minus": lambda base, a, k: a - k * Ring(2.0),
    "nested": lambda base, a, k: (a & Ring(1.0)) | (2 * a & ~Ring(k).relative_to(base)),
}
ENERGIES = {
    **SAVED,
    "tilt": lambda base, a, k: Tilt(k),
    "module": lambda base, a, k: ce.as_energy(Scaled(k)),
    "function": lambda base, a, k: k * ce.as_energy(quadratic),
    "score": lambda base, a, k: k * ce.ScoreEnergy(pull),
}


def build(name: str, number: float) -> ce.Energy:
    """Builds an expression whose objects are all of one origin, so that values alone tell them apart."""
    with inherit_token(Origin("test")):
        base = Noisy(0.5)
        return ENERGIES[name](base, ce.ClassifierEnergy(head(0.3), 1, base), number)


@pytest.mark.parametrize("name", ENERGIES)
def test_equal_numbers_and_saved_files_are_one_energy_and_a_change_of_one_number_is_another(name, tmp_path):
    energy = build(name, 0.75)
    assert energy.equals(build(name, 0.75)) and not energy.equals(build(name, 0.75 + 1 / 64))
    if name in SAVED:
        check_same(energy, loaded(energy, tmp_path))


@pytest.mark.parametrize("make", [lambda: np.zeros(5, np.float32), lambda: [0.0] * 5, lambda: torch.zeros(5)])
def test_conditions_are_copied_when_they_are_bound(make):
    base, z = Noisy(0.3), make()
    left, right = Ring(1.0).relative_to(base.at(z)), Ring(2.0).relative_to(base.at(make()))
    before = left(X)
    assert len((left & right).bases) == 1
    z[0] = 3.0
    assert torch.equal(left(X), before) and len((left & right).bases) == 1 and len((Ring(1.0).relative_to(base.at(z)) & right).bases) == 2
    refused(OptionError, "A condition is a number or a tensor, got list", base.at, ["a"])
    learnt = torch.tensor(0.5, requires_grad=True)
    base.at(learnt)(X).sum().backward()
    assert learnt.grad is not None


def test_a_base_under_equal_conditions_stays_one_when_it_is_converted_or_copied():
    base, z = Noisy(0.3), torch.rand(5, 1).squeeze(1)
    pair = [Ring(radius).relative_to(base.at(z)) for radius in (1.0, 2.0)]
    assert len((pair[0] & pair[1]).bases) == 1 and len((copy.deepcopy(pair[0]) & pair[1]).bases) == 1
    doubled = [copy.deepcopy(term).double() for term in pair]
    assert len((doubled[0] & doubled[1]).bases) == 1
    torch.testing.assert_close((doubled[0] & doubled[1])(X.double()), (pair[0] & pair[1])(X).double(), rtol=1e-5, atol=1e-5)


def test_a_whole_number_and_a_real_one_are_two_conditions():
    class Typed(ce.Energy):
        def forward(self, x, k):
            return x.sum(1) * (2.0 if k.is_floating_point() else 1.0)

    base = Typed()
    left, right = Ring(1.0).relative_to(base.given(k=1)), Ring(2.0).relative_to(base.given(k=1.0))
    assert len((left & right).bases) == 2 and len((left & Ring(2.0).relative_to(base.given(k=1))).bases) == 1


def test_a_copy_that_is_trained_while_it_is_sampled_is_another_base():
    base = Noisy(0.3)
    trained = copy.deepcopy(base)
    joined = Ring(1.0).relative_to(base) & Ring(2.0).relative_to(trained)

    def train(step, state, info):
        if step == 3:
            with torch.no_grad():
                trained.net.weight += 0.1

    with pytest.raises(ExpressionError, match="counts two copies of one Noisy once, but their numbers differ now"):
        joined.sample(X.shape, sampler="langevin", step_size=1e-3, steps=6, init=X, seed=0, observers=[ce.sampling.Stop(train)])


def test_an_energy_by_name_is_the_callers_own():
    male, other = ce.get("energy", "faces/male"), ce.get("energy", "faces/male")
    z = torch.randn(3, *male.event_shape)
    before = other(z)
    male.double()
    male.train()
    male.recommended = None
    assert torch.equal(other(z), before)
    smiling = ce.get("energy", "faces/smiling")
    assert torch.isfinite(smiling(z)).all() and smiling.recommended is not None
    with torch.no_grad():
        next(smiling.bases[0].energy.parameters()).zero_()
    assert torch.equal(other(z), before) and len((other & ce.get("energy", "faces/hat") & ~ce.get("energy", "faces/old")).bases) == 1
    assert len((other & smiling).bases) == 2  # whose base was changed


def test_terms_of_two_precisions_are_a_typed_error():
    male, old = ce.get("energy", "faces/male").double(), ce.get("energy", "faces/old")
    z = torch.randn(2, *old.event_shape)
    for energy, points in ((male & old, z), (old & male, z.double())):
        refused(DtypeError, r"convert one with `\.to", energy, points)


def test_an_option_may_be_called_name(tmp_path):
    class Named(ce.Energy):
        stored_texts = ("name",)

        def __init__(self, name: str = "") -> None:
            super().__init__()
            self.name = name

        def forward(self, x):
            return x.square().sum(1)

        def config(self):
            return {"name": self.name}

    with ce.register("energy", "named", Named):
        assert str(loaded(ce.get("energy", "named", name="mine") & Ring(1.0), tmp_path)) == "mine & Ring"


def test_what_cannot_be_copied_is_a_fault_of_the_plug_in():
    def make():
        energy = ce.as_energy(quadratic)
        energy.handle = (i for i in ())
        return energy

    with ce.register("energy", "stuck", make), pytest.raises(PluginLoadError, match="cannot be copied"):
        ce.get("energy", "stuck")


def test_rebuilding_takes_other_terms_and_arguments():
    a, b, c = Ring(1.0), Ring(2.0), Tilt(1.0)
    torch.testing.assert_close((2 * a).rebuild(b)(X), 2 * b(X))
    torch.testing.assert_close((2 * a).rebuild(weight=3.0)(X), 3 * a(X))
    assert Ring(1.0).rebuild(radius=2.0).equals(Ring(2.0)) is False  # another origin
    torch.testing.assert_close((a & b).rebuild(b, c)(X), b(X) + c(X))
    refused(ExpressionError, r"takes no wieght\. Did you mean 'weight'", (2 * a).rebuild, wieght=3.0)
    refused(ExpressionError, "has no `config", c.rebuild, slope=2.0)


class Counted(ce.Energy):
    calls = 0

    def forward(self, x):
        Counted.calls += 1
        return x.square().sum(1)


@pytest.mark.parametrize(
    ("combine", "draw"),
    [
        (lambda e: e & e, True),
        (lambda e: e | e, True),
        (lambda e: ce.all_of(e, e, 0.5 * e), True),
        (lambda e: (e & e) | (e & e), False),
        (lambda e: e - 0.5 * e, False),
    ],
)
def test_a_shared_sub_expression_is_evaluated_once_and_drawn_without_counting_its_uses(combine, draw):
    """Whatever looks at each of the 2^40 uses would never end."""
    leaf = Counted()
    energy: ce.Energy = leaf
    for _ in range(40):
        energy = combine(energy)
    torch.testing.assert_close(combine(leaf)(X), combine(ce.as_energy(lambda x: x.square().sum(1)))(X))
    Counted.calls = 0
    _, gradient = energy.with_gradient(X)
    assert Counted.calls <= 2 and gradient.shape == X.shape and len(str(energy)) < 50_000 and len(repr(energy)) < 100_000
    check_same(combine(leaf), copy.deepcopy(combine(leaf)))
    assert len(str(energy.explain(X)).splitlines()) < 300
    if draw:
        assert energy.sample((2, 2), sampler="langevin", step_size=1e-30, steps=1, seed=0).isfinite().all()
