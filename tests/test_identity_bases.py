"""Identity of bases: bound conditions, trained copies, registry objects, tokens and shared sub-expressions."""

import copy

import numpy as np
import pytest
import torch

import composable_energy as ce
from composable_energy.errors import DtypeError, ExpressionError, OptionError, PluginLoadError
from tests.identity_energies import Noisy, Ring, Tilt, X, bowl, check_same, loaded

pytestmark = pytest.mark.usefixtures("identity_registry")


def test_conditions_are_copied_when_they_are_bound():
    base, z = Noisy(0.3), torch.rand(5)
    energy = base.at(z)
    before = energy(X)
    z.zero_()
    assert torch.equal(energy(X), before)
    learnt = torch.tensor(0.5, requires_grad=True)
    base.at(learnt)(X).sum().backward()
    assert learnt.grad is not None


@pytest.mark.parametrize("make", [lambda: np.zeros(5, np.float32), lambda: [0.0] * 5], ids=["array", "list"])
def test_arrays_and_lists_are_copied_when_they_are_bound(make):
    base, z = Noisy(0.3), make()
    left, right = Ring(1.0).relative_to(base.at(z)), Ring(2.0).relative_to(base.at(make()))
    before = left(X)
    assert len((left & right).bases) == 1
    z[0] = 3.0
    assert torch.equal(left(X), before) and len((left & right).bases) == 1
    assert len((Ring(1.0).relative_to(base.at(z)) & right).bases) == 2
    with pytest.raises(OptionError, match="A condition is a number or a tensor, got list"):
        base.at(["a"])


def test_latents_that_become_different_are_two_bases():
    base, z, other = Noisy(0.3), torch.zeros(5), torch.zeros(5)
    left, right = Ring(1.0).relative_to(base.at(z)), Ring(2.0).relative_to(base.at(other))
    other += 1
    assert len((left & right).bases) == 1  # each has what was bound
    assert len((left & Ring(2.0).relative_to(base.at(other))).bases) == 2


def test_a_base_under_equal_conditions_stays_one_when_it_is_converted_or_copied():
    base, z = Noisy(0.3), torch.rand(5, 1).squeeze(1)
    pair = [Ring(radius).relative_to(base.at(z)) for radius in (1.0, 2.0)]
    assert len((pair[0] & pair[1]).bases) == 1
    assert len((copy.deepcopy(pair[0]) & pair[1]).bases) == 1
    doubled = [copy.deepcopy(term).double() for term in pair]
    assert len((doubled[0] & doubled[1]).bases) == 1
    expected = (pair[0] & pair[1])(X)
    torch.testing.assert_close((doubled[0] & doubled[1])(X.double()), expected.double(), rtol=1e-5, atol=1e-5)


def test_a_whole_number_and_a_real_one_are_two_conditions():
    class Typed(ce.Energy):
        def forward(self, x, k):
            return x.sum(1) * (2.0 if k.is_floating_point() else 1.0)

    base = Typed()
    left, right = Ring(1.0).relative_to(base.given(k=1)), Ring(2.0).relative_to(base.given(k=1.0))
    assert len((left & right).bases) == 2
    assert len((left & Ring(2.0).relative_to(base.given(k=1))).bases) == 1


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
    assert torch.equal(other(z), before)
    assert len((other & ce.get("energy", "faces/hat") & ~ce.get("energy", "faces/old")).bases) == 1
    assert len((other & smiling).bases) == 2  # whose base was changed


def test_terms_of_two_precisions_are_a_typed_error():
    male, old = ce.get("energy", "faces/male").double(), ce.get("energy", "faces/old")
    z = torch.randn(2, *old.event_shape)
    for energy, points in ((male & old, z), (old & male, z.double())):
        with pytest.raises(DtypeError, match=r"convert one with `\.to"):
            energy(points)


def test_an_option_may_be_called_name():
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
        energy = loaded(ce.get("energy", "named", name="mine") & Ring(1.0))
        assert str(energy) == "mine & Ring"


def test_what_cannot_be_copied_is_a_fault_of_the_plug_in():
    def make():
        energy = ce.as_energy(bowl)
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
    with pytest.raises(ExpressionError, match=r"takes no wieght\. Did you mean 'weight'"):
        (2 * a).rebuild(wieght=3.0)
    with pytest.raises(ExpressionError, match="has no `config"):
        c.rebuild(slope=2.0)


class Counted(ce.Energy):
    calls = 0

    def forward(self, x):
        Counted.calls += 1
        return x.square().sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("combine", [lambda e: e & e, lambda e: e | e, lambda e: (e & e) | (e & e), lambda e: e - 0.5 * e])
def test_a_shared_sub_expression_is_evaluated_once(combine):
    Counted.calls = 0
    leaf = Counted()
    energy: ce.Energy = leaf
    expected = leaf(X)
    for _ in range(30):
        energy = combine(energy)
    Counted.calls = 0
    once, (twice, gradient) = combine(leaf), (energy.with_gradient(X))
    torch.testing.assert_close(once(X), combine(ce.as_energy(lambda x: x.square().sum(1)))(X))
    assert Counted.calls <= 3 and twice.isfinite().all() == expected.isfinite().all() and gradient.shape == X.shape
    assert len(str(energy)) < 50_000 and len(repr(energy)) < 100_000
    check_same(combine(leaf), copy.deepcopy(combine(leaf)), "copied")
    assert len(str(energy.explain(X)).splitlines()) < 300


@pytest.mark.parametrize("combine", [lambda e: e & e, lambda e: e | e, lambda e: ce.all_of(e, e, 0.5 * e)])
def test_a_shared_sub_expression_is_drawn_without_counting_its_uses(combine):
    """Whatever looks at each of the 2^40 uses would never end."""
    energy: ce.Energy = Counted()
    for _ in range(40):
        energy = combine(energy)
    assert energy.sample((2, 2), sampler="langevin", step_size=1e-30, steps=1, seed=0).isfinite().all()
