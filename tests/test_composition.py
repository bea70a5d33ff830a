"""Shared sub-networks of terms: evaluated once, forward and backward, with unchanged results."""

import threading
import warnings

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.sampling import energy_and_gradient
from tests.factories import DTYPE, LEAVES, Affine, points


class Passed(torch.autograd.Function):
    """The identity; tells when a gradient comes back."""

    @staticmethod
    def forward(ctx, x, counted):
        ctx.counted = counted
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        ctx.counted.backwards += 1
        return grad, None


class Counted(nn.Module):
    """An affine map that counts how often it is evaluated, and how often a gradient passes it."""

    def __init__(self, inputs, outputs, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(inputs, outputs, generator=generator, dtype=DTYPE))
        self.forwards = self.backwards = 0

    def forward(self, x):
        self.forwards += 1
        return Passed.apply(x @ self.weight, self)


class Squares(nn.Module):
    """An energy on features."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, x):
        return self.features(x).square().sum(1) / 2 + x.square().sum(1)


def counts(energy, module, x=None, **conditions):
    """Evaluates an energy with its gradient, which is that of training mode, where nothing is shared; returns how often a module ran."""
    x = points(6) if x is None else x
    plain = energy_and_gradient(energy.train(), x, **conditions)
    module.forwards = module.backwards = 0
    torch.testing.assert_close(energy_and_gradient(energy.eval(), x, **conditions), plain, rtol=1e-12, atol=1e-12)
    return module.forwards, module.backwards


def heads(module, count=4):
    """Events and a density over heads on a shared module, with a base on it as well."""
    base = ce.as_energy(Squares(module))
    logits = [nn.Sequential(module, nn.Linear(8, 3, dtype=DTYPE)) for _ in range(count)]
    return [ce.ClassifierEnergy(net, 1, base, name=f"h{i}") for i, net in enumerate(logits)]


EXPRESSIONS = {
    "and": lambda a, b, c, d: a & b & c & d,
    "or": lambda a, b, c, d: a | b | c | d,
    "not": lambda a, b, c, d: ~(a & b) & ~(c | d),
    "weighted": lambda a, b, c, d: 2 * a & ce.any_of(b, c.sharpened(2), weights=[1, 2]) & ce.negate(d, "contrast"),
    "bound": lambda a, b, c, d: (a & b) & (c >> d),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_features_under_a_base_and_four_heads_are_evaluated_once(name):
    features = Counted(2, 8)
    assert counts(EXPRESSIONS[name](*heads(ce.shared(features))), features) == (1, 1)


def test_explaining_evaluates_them_once_for_all_terms():
    features = Counted(2, 8)
    energy = EXPRESSIONS["weighted"](*heads(ce.shared(features))).eval()
    energy.explain(points(6))
    assert features.forwards == 1


def test_a_base_is_evaluated_once_beside_energies_that_are_measured_against_it():
    net = Counted(2, 1)
    base = ce.as_energy(nn.Sequential(net, nn.Flatten(0)), name="base")
    a, b = (LEAVES[name].relative_to(base) for name in ("ring", "network"))
    for energy in (a & b, (a | b) & 2 * a, ~a & b, a.sharpened(2) | b):
        assert counts(energy, net) == (1, 1)


def test_a_base_under_a_condition_is_evaluated_once():
    class Noisy(ce.Energy):
        def __init__(self):
            super().__init__()
            self.net = Counted(2, 1)

        def forward(self, x, sigma):
            return self.net(x).square().squeeze(1) / (1 + sigma)

    base = Noisy()
    a, b = (LEAVES[name].relative_to(base) for name in ("ring", "network"))
    for energy in ((a & b).at(0.3), a.at(0.3) & b.at(0.3), (a & b).given(sigma=torch.rand(6, dtype=DTYPE))):
        assert counts(energy, base.net) == (1, 1)
    for value in (0.3, torch.tensor(0.3, dtype=DTYPE)):
        assert counts(a & b, base.net, sigma=value) == (1, 1)
        assert counts(a & b, base.net, points(1), sigma=value) == (1, 1)
    assert counts(a.at(0.3) | b.at(0.4), base.net)[0] == 2


def test_a_network_is_evaluated_once_under_formulas_and_densities():
    net = Counted(2, 4)
    head = ce.GaussianHead(net, LEAVES["distribution"], dims=2)
    centre = torch.zeros(2, dtype=DTYPE)
    assert counts(head(centre) & head.near(centre, 1.0) & (head.near(centre, 2.0) | LEAVES["ring"]), net) == (1, 1)
    method = ce.GaussianHead(net.forward, LEAVES["distribution"], dims=2)
    assert counts(method(centre) & method.near(centre, 1.0), net) == (1, 1)


def test_a_decoder_is_evaluated_once_for_all_that_it_shows():
    decoder = Counted(2, 2)
    prior = ce.as_energy(torch.distributions.Normal(torch.zeros(2, dtype=DTYPE), 1.0), name="prior")
    latent = ce.energies.CallableEnergy(prior, decoder=decoder)
    seen = [LEAVES[name].pull_back(decoder) for name in ("ring", "network", "red", "tilt")]
    energy = latent & seen[0] & seen[1] & (seen[2] | seen[3])
    assert counts(energy, decoder) == (1, 1)
    assert counts(energy.at(0.5), decoder) == (1, 1)
    assert counts(energy, decoder, sigma=torch.rand(6, dtype=DTYPE)) == (1, 1)


@pytest.mark.slow
def test_torch_compiles_expressions_as_one_graph():
    energy = (LEAVES["event"] | ~LEAVES["near"]) & LEAVES["relative"] & (LEAVES["density"] | 2 * LEAVES["ring"])
    expected = energy(points(6))  # the first call makes the diagrams
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it looks through our caches
        torch.testing.assert_close(torch.compile(energy, fullgraph=True, backend="eager")(points(6)), expected)


@pytest.mark.slow
def test_a_compiled_expression_is_a_term_of_another():
    """Inside of an evaluation, whose memo no graph may read or write: each call is computed at its own points."""
    inside = LEAVES["relative"] & LEAVES["event"]
    inside(points(6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        energy = ce.as_energy(torch.compile(inside, backend="eager"), event_shape=(2,)) & LEAVES["ring"]
        for seed in (1, 2, 3):
            found = energy_and_gradient(energy, points(6, seed=seed))
            expected = energy_and_gradient(inside & LEAVES["ring"], points(6, seed=seed))
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other)


class TestSharingChangesNothing:
    def test_other_points_are_other_points(self):
        features = Counted(2, 8)
        energy = ce.all_of(*heads(ce.shared(features))).eval()
        for count in (1, 2, 3):
            energy(points(4, seed=count))
            assert features.forwards == count

    def test_masks_of_training_differ(self):
        features = ce.shared(nn.Dropout(0.5))
        a, b = (ce.as_energy(nn.Sequential(features, nn.Flatten(0)), name=name) for name in "ab")
        difference = a.relative_to(b).evidence(torch.ones(200, 1))
        assert not torch.equal(difference, torch.zeros(200))
        assert torch.equal(a.eval().relative_to(b.eval()).evidence(torch.ones(200, 1)), torch.zeros(200))

    def test_points_that_were_changed_in_place_are_evaluated_again(self):
        features = ce.shared(Counted(2, 2))

        def twice(x):
            z = x.clone()
            first = features(z).sum(1)
            z += 1
            return features(z).sum(1) - first

        energy = (ce.as_energy(twice) & LEAVES["ring"].relative_to(LEAVES["distribution"])).eval()
        features.eval()
        expected = features(points(3) + 1).sum(1) - features(points(3)).sum(1)
        torch.testing.assert_close(energy(points(3)) - LEAVES["ring"](points(3)), expected)

    def test_other_weights_are_another_function(self):
        net = ce.shared(Counted(2, 1)).eval()
        weights = [torch.ones(2, 1, dtype=DTYPE), torch.zeros(2, 1, dtype=DTYPE)]
        name = next(iter(dict(net.named_parameters())))
        both = ce.as_energy(lambda x: sum(torch.func.functional_call(net, {name: w}, (x,)) for w in weights).squeeze(1))
        energy = (both & LEAVES["ring"].relative_to(LEAVES["distribution"])).eval()
        torch.testing.assert_close(energy(points(3)) - LEAVES["ring"](points(3)), points(3).sum(1))

    def test_a_value_without_gradient_is_not_taken_for_one_with(self):
        features = Counted(2, 2)
        module = ce.shared(features)

        def half(x):
            with torch.no_grad():
                module(x)
            return module(x).sum(1)

        energy = (ce.as_energy(half) & LEAVES["ring"].relative_to(LEAVES["distribution"])).eval()
        module.eval()
        _, gradient = energy_and_gradient(energy, points(3))
        expected = features.weight.sum(1) + energy_and_gradient(LEAVES["ring"], points(3))[1]
        torch.testing.assert_close(gradient, expected.detach())

    @pytest.mark.slow
    def test_it_maps_and_runs_in_threads(self):
        energy = EXPRESSIONS["not"](*heads(ce.shared(Affine(8, 1)))).eval()
        x = points(6)
        expected = energy_and_gradient(energy, x)[1]
        each = torch.func.vmap(torch.func.grad(lambda row: energy(row.unsqueeze(0)).sum()))(x)
        torch.testing.assert_close(each.detach(), expected)
        results = [None] * 8

        def work(i):
            results[i] = [energy_and_gradient(energy, x + i)[0] for _ in range(20)]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, found in enumerate(results):
            assert all(torch.equal(values, energy_and_gradient(energy, x + i)[0]) for values in found)
