"""Shared sub-networks of terms: evaluated once, forward and backward, with unchanged results."""

import threading

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.sampling import energy_and_gradient
from tests.factories import DTYPE, LEAVES, Affine, points

RING, NORMAL = LEAVES["ring"], LEAVES["distribution"]


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
    """A linear map that counts how often it is evaluated, and how often a gradient passes it."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(0), dtype=DTYPE))
        self.forwards = self.backwards = 0

    def forward(self, x):
        self.forwards += 1
        return Passed.apply(x @ self.weight, self)


def counts(energy, module, x=None, **conditions):
    """Evaluates an energy with its gradient, which is that of training mode, where nothing is shared; returns how often a module ran."""
    x = points(6) if x is None else x
    plain = energy_and_gradient(energy.train(), x, **conditions)
    module.forwards = module.backwards = 0
    torch.testing.assert_close(energy_and_gradient(energy.eval(), x, **conditions), plain, rtol=1e-12, atol=1e-12)
    return module.forwards, module.backwards


def heads(module):
    """Four events over heads on a shared module, with a base on it as well."""
    base = ce.as_energy(lambda x, features: features(x).square().sum(1) / 2 + x.square().sum(1), modules=[module])
    logits = [nn.Sequential(module, nn.Linear(8, 3, dtype=DTYPE)) for _ in range(4)]
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
    energy = EXPRESSIONS[name](*heads(ce.shared(features)))
    assert counts(energy, features) == (1, 1)
    energy.explain(points(6))
    assert features.forwards == 2
    for seed in (1, 2):  # other points are other points
        energy(points(4, seed=seed))
        assert features.forwards == 2 + seed


class Noisy(ce.Energy):
    def __init__(self):
        super().__init__()
        self.net = Counted(2, 1)

    def forward(self, x, sigma):
        return self.net(x).square().squeeze(1) / (1 + sigma)


def test_a_base_is_evaluated_once_beside_energies_that_are_measured_against_it_also_under_a_condition():
    net, base = Counted(2, 1), Noisy()
    plain = ce.as_energy(nn.Sequential(net, nn.Flatten(0)))
    a, b = (LEAVES[name].relative_to(plain) for name in ("ring", "network"))
    for energy in (a & b, (a | b) & 2 * a, ~a & b, a.sharpened(2) | b):
        assert counts(energy, net) == (1, 1)
    a, b = (LEAVES[name].relative_to(base) for name in ("ring", "network"))
    for energy in ((a & b).at(0.3), a.at(0.3) & b.at(0.3), (a & b).given(sigma=torch.rand(6, dtype=DTYPE))):
        assert counts(energy, base.net) == (1, 1)
    for value in (0.3, torch.tensor(0.3, dtype=DTYPE)):
        assert counts(a & b, base.net, sigma=value) == (1, 1)
        assert counts(a & b, base.net, points(1), sigma=value) == (1, 1)
    assert counts(a.at(0.3) | b.at(0.4), base.net)[0] == 2


def test_networks_of_heads_and_decoders_are_evaluated_once():
    net, centre = Counted(2, 4), torch.zeros(2, dtype=DTYPE)
    head = ce.GaussianHead(net, NORMAL, dims=2)
    assert counts(head(centre) & head.near(centre, 1.0) & (head.near(centre, 2.0) | RING), net) == (1, 1)
    method = ce.GaussianHead(net.forward, NORMAL, dims=2)
    assert counts(method(centre) & method.near(centre, 1.0), net) == (1, 1)
    decoder = Counted(2, 2)
    latent = ce.energies.CallableEnergy(NORMAL, decoder=decoder)
    seen = [LEAVES[name].pull_back(decoder) for name in ("ring", "network", "red", "tilt")]
    energy = latent & seen[0] & seen[1] & (seen[2] | seen[3])
    assert counts(energy, decoder) == counts(energy.at(0.5), decoder) == (1, 1)
    assert counts(energy, decoder, sigma=torch.rand(6, dtype=DTYPE)) == (1, 1)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::UserWarning")  # that torch.compile looks through our caches
def test_torch_compiles_expressions_as_one_graph_which_may_be_a_term_of_another():
    energy = (LEAVES["event"] | ~LEAVES["near"]) & LEAVES["relative"] & (LEAVES["density"] | 2 * RING)
    expected = energy(points(6))  # the first call makes the diagrams
    torch.testing.assert_close(torch.compile(energy, fullgraph=True, backend="eager")(points(6)), expected)
    # Inside of an evaluation, whose memo no graph may read or write, each call is computed at its own points.
    inside = LEAVES["relative"] & LEAVES["event"]
    inside(points(6))
    outside = ce.as_energy(torch.compile(inside, backend="eager"), event_shape=(2,)) & RING
    for seed in (1, 2, 3):
        x = points(6, seed=seed)
        torch.testing.assert_close(energy_and_gradient(outside, x), energy_and_gradient(inside & RING, x))


def test_masks_of_training_differ():
    features = ce.shared(nn.Dropout(0.5))
    a, b = (ce.as_energy(nn.Sequential(features, nn.Flatten(0)), name=name) for name in "ab")
    assert a.relative_to(b).evidence(torch.ones(200, 1)).any()
    assert not a.eval().relative_to(b.eval()).evidence(torch.ones(200, 1)).any()


def beside_a_base(function) -> ce.Energy:
    """An energy beside another with a base, so that its evaluation has a memo."""
    return (ce.as_energy(function) & RING.relative_to(NORMAL)).eval()


def test_what_differs_is_evaluated_again():
    x, features = points(3), ce.shared(Counted(2, 2)).eval()

    def moved(x):
        z = x.clone()
        first = features(z).sum(1)
        z += 1
        return features(z).sum(1) - first

    expected = features(x + 1).sum(1) - features(x).sum(1)
    torch.testing.assert_close(beside_a_base(moved)(x) - RING(x), expected)  # points that were changed in place
    weights = [torch.ones(2, 2, dtype=DTYPE), torch.zeros(2, 2, dtype=DTYPE)]
    name = next(iter(dict(features.named_parameters())))
    calls = lambda x: sum(torch.func.functional_call(features, {name: w}, (x,)) for w in weights).sum(1)
    torch.testing.assert_close(beside_a_base(calls)(x) - RING(x), 2 * x.sum(1))  # other weights

    def half(x):
        with torch.no_grad():
            features(x)
        return features(x).sum(1)

    gradient = energy_and_gradient(beside_a_base(half), x)[1] - energy_and_gradient(RING, x)[1]
    torch.testing.assert_close(gradient, next(features.parameters()).sum(1).detach().expand(3, 2))  # a value without a gradient


@pytest.mark.slow
def test_it_maps_and_runs_in_threads():
    energy = EXPRESSIONS["not"](*heads(ce.shared(Affine(8, 1)))).eval()
    x = points(6)
    each = torch.func.vmap(torch.func.grad(lambda row: energy(row.unsqueeze(0)).sum()))(x)
    torch.testing.assert_close(each.detach(), energy_and_gradient(energy, x)[1])
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
