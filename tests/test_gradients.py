"""Custom gradients inside expressions: they compose as autograd does and must match the values."""

import math

import pytest
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import ExpressionError, ShapeError
from composable_energy_mcmc import HMC, MALA
from tests.gradient_energies import BROAD, DRAWS, OwnRelative, Score, points


class Silent(Score):
    """The same, which does not say that it has no value."""

    has_value = True


class Own(ce.Energy):
    """N(mean, 1) with right values, which autograd cannot follow, and a gradient of its own, which counts its uses."""

    def __init__(self, mean: float = 1.0) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.uses = 0

    def forward(self, x: Tensor) -> Tensor:
        return (x.detach() - self.mean).square().flatten(1).sum(1) / 2

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.uses += 1
        return self.forward(x).detach(), (x - self.mean).detach()


class Plain(Own):
    """The same by autograd."""

    with_gradient = ce.Energy.with_gradient

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean).square().flatten(1).sum(1) / 2


class PlainRelative(OwnRelative):
    with_gradient = ce.Energy.with_gradient

    def forward_evidence(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1).sin()


@pytest.mark.slow
def test_values_that_do_not_fit_the_own_gradient_are_refused():
    for expression in (Silent(), Silent() & BROAD, Silent().relative_to(BROAD), ce.any_of(Silent(), BROAD, weights=[1, 1])):
        for sampler in (HMC(0.3, leapfrogs=4), MALA(0.3)):
            with pytest.raises(ExpressionError, match=r"do not fit its `with_gradient`.*has_value = False"):
                expression.sample(50, sampler=sampler, steps=2, seed=0)
    with pytest.raises(ExpressionError, match=r"do not fit its `with_gradient`.*has_value = False"):
        Silent().sample(50, steps=2, seed=0)


@pytest.mark.parametrize(
    "mixture",
    [
        lambda: ce.any_of(Silent(), Silent(-3.0), weights=[1, 1]),
        lambda: ce.any_of(BROAD, 2 * Silent() & BROAD, weights=[1, 1]),
        lambda: BROAD & ce.negate(Silent().relative_to(BROAD), "contrast"),
    ],
    ids=["of two", "inside", "contrast"],
)
def test_a_mixture_whose_values_do_not_fit_is_refused_by_samplers_of_gradients(mixture):
    """The gradient of a mixture depends on the values of its branches."""
    with pytest.raises(ExpressionError, match="do not fit its `with_gradient`"):
        mixture().sample(50, **{**DRAWS, "steps": 1})


@pytest.mark.slow
def test_right_values_of_an_own_gradient_are_accepted():
    draws = (Own(1.0) & Own(3.0)).sample((2000, 1), sampler="hmc", steps=60, seed=0, dtype=torch.float64)
    assert abs(draws.mean().item() - 2) < 5 * math.sqrt(0.5 / 2000)


def expressions(leaf, relative) -> dict[str, ce.Energy]:
    a, b, c = leaf(0.5), leaf(-1.0), ce.as_energy(lambda x: x.sin().sum(1) + x.square().sum(1))
    base = leaf(0.2)
    logits = nn.Linear(2, 3, dtype=torch.float64)
    nn.init.normal_(logits.weight, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(logits.bias)
    red, green = (ce.ClassifierEnergy(logits, k, base, labels=3) for k in range(2))
    decoder = nn.Linear(2, 2, dtype=torch.float64)
    nn.init.normal_(decoder.weight, generator=torch.Generator().manual_seed(1))
    nn.init.zeros_(decoder.bias)
    left, right = relative(base), c.relative_to(base)
    return {
        "leaf": a,
        "and": a & b & c,
        "or": a | b | c,
        "weighted or": ce.any_of(a, c, b, weights=[1.0, 2.0, 3.0]),
        "minus": a - 0.5 * b,
        "not": c & ce.negate(a, level=2.0),
        "weight": 2 * a,
        "learnable weight": a * torch.tensor(0.7, dtype=torch.float64),
        "relative": left,
        "relatives": left & right,
        "relative or": left | right,
        "contrast": ~left & right,
        "sharpened": left.sharpened(2.0) & right,
        "events": (red | green) & ~green,
        "event and relative": red & left,
        "pull-back": (a & c).pull_back(decoder),
        "own in plain": ce.as_energy(lambda x: a(x) * c(x)),
    }


OWN, PLAIN = expressions(Own, OwnRelative), expressions(Plain, PlainRelative)


@pytest.mark.parametrize("name", OWN)
def test_own_gradients_compose_as_autograd_does(name):
    energies, gradient = OWN[name].with_gradient(points())
    expected_energies, expected = PLAIN[name].with_gradient(points())
    torch.testing.assert_close(energies, expected_energies)
    torch.testing.assert_close(gradient, expected)


def test_the_own_gradient_is_used_once_for_a_shared_base():
    base = Own()
    left, right = OwnRelative(base), ce.as_energy(lambda x: x.sum(1).cos()).relative_to(base)
    base.uses = 0
    (right & right.sharpened(2.0)).eval().with_gradient(points())
    assert base.uses == 1
    (left & right).eval().with_gradient(points())
    assert base.uses == 3  # and once in `with_gradient` of the relative energy


def test_a_wrapper_may_call_the_gradient_of_its_own_class():
    class Shifted(Plain):
        def with_gradient(self, x):
            energies, gradient = ce.Energy.with_gradient(self, x)
            return energies, gradient + 1

    x = points()
    torch.testing.assert_close((Shifted() & Shifted()).with_gradient(x)[1], 2 * (x - 1) + 2)


def test_training_uses_forward_and_reaches_the_parameters():
    own, x = Own(), points()
    (own & own)(x).sum().backward()
    assert own.uses == 0
    torch.testing.assert_close(own.mean.grad, 2 * (1 - x).sum())


def test_a_gradient_of_another_shape_is_refused():
    class Flat(Own):
        def with_gradient(self, x):
            return self.forward(x).detach(), (x - self.mean).detach().sum(1)

    with pytest.raises(ShapeError, match="gradient of shape"):
        (Flat() & Own()).with_gradient(points())
    with pytest.raises(ShapeError, match="score"):
        (ce.ScoreEnergy(lambda x: x.sum(1)) & Own()).with_gradient(points())


@pytest.mark.slow
def test_rows_of_conditions_reach_an_own_gradient():
    score = ce.ScoreEnergy(lambda x, mean: mean.view(-1, 1) - x, name="score")
    means = torch.tensor([-4.0, 0.0, 4.0])
    draws = (score.given(mean=means) & BROAD).sample((3, 1), batch_size=2, **{**DRAWS, "step_size": 0.02, "steps": 300})
    assert draws[0] < -0.5 < 0.5 < draws[2]


def test_points_of_inference_mode_have_gradients_inside_and_outside():
    bowl = ce.as_energy(lambda x, y: (x - y.view(-1, 1)).square().sum(1) / 2)
    with torch.inference_mode():
        x, y = torch.ones(3, 2), torch.zeros(3)
        inside = bowl.with_gradient(x, y=y)[1]
    assert x.is_inference()
    for gradient in (inside, bowl.with_gradient(x, y=y)[1], (bowl.given(y=y.clone()) & bowl).with_gradient(x, y=y)[1] / 2):
        assert torch.equal(gradient, torch.ones(3, 2))
    assert torch.equal(ce.ScoreEnergy(lambda x: -x).with_gradient(x)[1], torch.ones(3, 2))


def test_a_constant_energy_with_weights_has_no_gradient():
    class Constant(ce.Energy):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.level.expand(len(x))

    for energy in (Constant(), Constant() & Constant(), ce.as_energy(lambda x: x.detach().sum(1))):
        with pytest.raises(ExpressionError, match="no gradient at its points"):
            energy.with_gradient(torch.ones(2, 2))
