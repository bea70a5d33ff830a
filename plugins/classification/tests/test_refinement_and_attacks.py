"""Refinement and attacks against closed forms: Gaussians, and linear classifiers, whose worst points are known."""

import math

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError
from composable_energy_classification import Classifier, Refinement, pgd

CHAINS = 20_000


def refine(energy, x, **options):
    return Refinement(**options)(energy, x)


def bowl(width=1.0):
    return ce.as_energy(lambda x: x.square().sum(1) / (2 * width**2))


def line(labels=2, dimension=4, seed=0):
    net = nn.Linear(dimension, labels)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)))
    return net


def test_refinement_has_the_moments_of_langevin():
    """After n steps from x the mean is a^n x and the variance the sum of lambda a^2k, with a = 1 - lambda / 2."""
    step, steps = 0.2, 5
    a = 1 - step / 2
    found = refine(bowl(), torch.full((CHAINS, 1), 3.0), steps=steps, step_size=step, seed=1)
    variance = sum(step * a ** (2 * k) for k in range(steps))
    assert abs(found.mean() - 3 * a**steps) < 4 * math.sqrt(variance / CHAINS)
    assert abs(found.var() - variance) < 4 * variance * math.sqrt(2 / CHAINS)


def test_refinement_can_be_differentiated_through_its_noise():
    energy = ce.as_energy(lambda x: x.pow(4).sum(1))
    refinement, x = Refinement(steps=4, step_size=0.05), torch.tensor([[0.7, -0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda points: refinement(energy, points, graph=True), (x,))


def test_refinement_stays_within_its_clamp_and_refuses_what_diverges():
    positive = ce.as_energy(lambda x: x.sum(1), support=torch.distributions.constraints.positive)
    with pytest.raises(OptionError, match="give the refinement a `clamp`"):
        refine(positive, torch.ones(2, 1))
    found = refine(positive, torch.ones(100, 1), steps=20, step_size=0.5, clamp=(0.1, 2.0))
    assert found.min() >= 0.1 and found.max() <= 2.0 and found.std() > 0.1
    with pytest.raises(ExpressionError, match="smaller step_size"):
        refine(bowl(0.01), torch.ones(2, 1), steps=200, step_size=10.0)
    with pytest.raises(DtypeError):
        refine(bowl(), [1.0])
    for options in ({"steps": 0}, {"temperature": -1}, {"clamp": (1, 0)}):
        with pytest.raises(OptionError):
            Refinement(**options)


def test_a_classifier_without_a_base_has_no_density_to_refine_on():
    """Its classes exhaust, so that the energy of points of any class is 0, and its gradient only rounding."""
    refined = Classifier(ce.ClassifierEnergy(line(), labels=2)).refined(steps=2)
    with pytest.raises(ExpressionError, match="gradient"):
        refined.probabilities(torch.rand(3, 4))


@pytest.mark.parametrize(
    ("norm", "dual", "loss", "dtype"), [("linf", 1, "margin", torch.float32), ("l2", 2, "cross-entropy", torch.float64)]
)
def test_the_worst_point_of_a_linear_classifier_is_found(norm, dual, loss, dtype):
    """In a ball of radius r the margin of two classes grows by r times the dual norm of the difference of their weights."""
    net, radius = line().to(dtype), 0.3
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)
    y = net(x).argmax(1)
    attacked = pgd(net, x, y, radius, norm=norm, loss=loss, bounds=None, step_size=10 * radius)
    difference = net.weight[1] - net.weight[0]
    sign = 1 - 2.0 * y.to(dtype)

    def margin(points):
        return sign * (net(points)[:, 1] - net(points)[:, 0])

    torch.testing.assert_close(
        margin(attacked) - margin(x), torch.full_like(sign, radius * float(difference.detach().norm(dual))), rtol=1e-3, atol=1e-4
    )
    lengths = (attacked - x).abs().amax(1) if norm == "linf" else (attacked - x).norm(dim=1)
    assert lengths.max() <= radius * (1 + 1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacked_points_stay_within_bounds_and_the_ball(norm):
    net, x = line(labels=3), torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    attacked = pgd(net, x, net(x).argmax(1), 0.4, norm=norm, steps=7, restarts=2)
    change = attacked - x
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert (change.abs().amax(1) if norm == "linf" else change.norm(dim=1)).max() <= 0.4 * (1 + 1e-5)
    assert (net(attacked).argmax(1) != net(x).argmax(1)).float().mean() > (net(x).argmax(1) != net(x).argmax(1)).float().mean()


def test_a_module_is_attacked_in_eval_mode_and_keeps_its_own():
    net, x = nn.Sequential(line(), nn.Dropout(0.9)), torch.rand(20, 4)
    y = net.eval()(x).argmax(1)
    net.train()
    attacked = pgd(net, x, y, 0.5, steps=10, bounds=None)
    assert net.training and all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(attacked, pgd(net[0], x, y, 0.5, steps=10, bounds=None))


def test_the_adaptive_attack_sees_what_the_refinement_does():
    """The step removes coordinate 0, which the plain classifier reads most: its attack changes coordinate 1 by a tenth of the radius."""
    base = ce.as_energy(lambda x: x[:, 0].square() / 2)
    weights = torch.tensor([[10.0, -10.0], [1.0, -1.0]])
    classifier = Classifier(ce.ClassifierEnergy(lambda x: x @ weights, base=base, labels=2))
    refined = classifier.refined(steps=1, step_size=2.0, temperature=1e-5, draws=2)
    x = torch.cat([torch.zeros(20, 1), torch.linspace(0.1, 0.4, 20)[:, None]], 1)
    y = torch.zeros(20, dtype=torch.int64)
    options = {"norm": "l2", "bounds": None, "steps": 10, "step_size": 1.0}
    adaptive, unaware = (refined.predict(pgd(model, x, y, 0.5, draws=2, **options)) for model in (refined, refined.plain))
    assert torch.equal(refined.predict(x), y) and torch.equal(unaware, y) and torch.equal(adaptive, 1 - y)


def test_bad_attacks_are_refused():
    net, x, y = line(), torch.rand(3, 4), torch.tensor([0, 1, 0])
    for options, error in (
        ({"x": [0.5]}, DtypeError),
        ({"radius": -1.0}, OptionError),
        ({"bounds": (0.5, 1.0)}, OptionError),
        ({"y": torch.tensor([0, 1])}, ShapeError),
        ({"y": torch.tensor([0, 1, 2])}, OptionError),
        ({"model": lambda x: x.sum(1)}, ShapeError),
        ({"model": lambda x: x.detach()}, ExpressionError),
    ):
        with pytest.raises(error):
            pgd(**{"model": net, "x": x, "y": y, "radius": 0.1, **options})
