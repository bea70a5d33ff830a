"""Events at probabilities near 0 and 1 in float32: finite values and gradients, and gradients of at most 1 in a logit."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import nn

from composable_energy.events import (
    Categorical,
    ClassifierEnergy,
    Continuous,
    DensityEnergy,
    Formula,
    Interval,
    Source,
    complement,
    conjoin,
    disjoin,
    log_probability,
)

LOGITS = (-1e4, -100.0, -1.0, 0.0, 20.0, 1e4)
ENDS = (-math.inf, -0.7, 0.1, 0.1001, 0.6, math.inf)
IDENTITY = nn.Identity()  # the points are the outputs, so gradients in points are gradients in outputs
HEADS = [
    Categorical(Source(IDENTITY), columns=slice(*ends), labels=labels)
    for *ends, labels in ((0, 1, 2), (1, 2, 2), (2, 3, 2), (3, 5, 2), (5, 8, 3), (8, 16, 8))
]
LINE = Continuous(Source(IDENTITY), columns=slice(16, 18))


def random_formula(rng: random.Random, depth: int) -> Formula:
    """A formula that can be fulfilled; parts of it may be contradictions."""
    while (formula := any_formula(rng, depth)).constant is False:
        pass
    return formula


def any_formula(rng: random.Random, depth: int) -> Formula:
    if depth == 0 or rng.random() < 0.12:
        head = rng.choice([*HEADS, LINE])
        if isinstance(head, Continuous):
            return Formula.atom(head, Interval(*sorted(rng.sample(ENDS, 2))))
        return Formula.atom(head, rng.sample(range(head.labels), rng.randint(1, head.labels - 1)))
    if rng.random() < 0.2:
        return complement(any_formula(rng, depth - 1))
    return rng.choice([conjoin, disjoin])([any_formula(rng, depth - 1) for _ in range(2)])


def extremes(rng: random.Random, rows: int = 16) -> torch.Tensor:
    return torch.tensor([rng.choices(LOGITS, k=18) for _ in range(rows)], requires_grad=True)


@pytest.mark.full
@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 10**9))
def test_formulas_stay_finite(seed):
    rng = random.Random(seed)
    formula, x = random_formula(rng, 4), extremes(rng)
    energy = formula.energy(x)
    gradient = torch.autograd.grad(energy.sum(), x)[0]
    assert energy.dtype == torch.float32
    assert energy.isfinite().all() and gradient.isfinite().all()
    assert energy.min() >= -1e-5
    assert gradient[:, :16].abs().max() <= 1 + 1e-5


def test_leaves_stay_finite():
    x = extremes(random.Random(0), 200)
    energy = ClassifierEnergy(IDENTITY, None, columns=slice(8, 16))(x, y=torch.arange(200) % 8)
    gradient = torch.autograd.grad(energy.sum(), x)[0]
    assert energy.isfinite().all() and gradient.isfinite().all() and gradient.abs().max() <= 1 + 1e-6
    density = DensityEnergy(IDENTITY, dims=9, c=torch.zeros(1, 9))(x)
    assert density.isfinite().all() and torch.autograd.grad(density.sum(), x)[0].isfinite().all()


@pytest.mark.slow
def test_second_derivatives_stay_finite():
    rng = random.Random(5)
    for _ in range(100):
        formula, x = random_formula(rng, 3), extremes(rng)
        first = torch.autograd.grad(formula.energy(x).sum(), x, create_graph=True)[0]
        if first.requires_grad:
            assert torch.autograd.grad(first[:, :16].sum(), x, allow_unused=True, materialize_grads=True)[0].isfinite().all()


@pytest.mark.parametrize(
    "ends", [(-0.2, 0.3), (2.0, 2.5), (-9.0, -8.9), (30.0, 31.0), (-1e-3, 1e-3), (40.0, 41.0), (5.0, 5.0001), (-50.0, 60.0)]
)
def test_an_interval_equals_its_integral(ends):
    low, high = ends
    mean, width = torch.zeros(1, dtype=torch.double), torch.ones(1, dtype=torch.double)
    nearest = min(max(0.0, low), high)  # the density there is taken out, as it underflows far away
    tail = integrate.quad(lambda v: math.exp(nearest**2 / 2 - v**2 / 2), low, high, points=[nearest], epsabs=0, epsrel=1e-13)[0]
    expected = math.log(tail) - nearest**2 / 2 - math.log(2 * math.pi) / 2
    assert log_probability(mean, width, low, high).item() == pytest.approx(expected, rel=1e-11, abs=1e-13)
    single = log_probability(mean.float(), width.float(), low, high).item()
    assert single == pytest.approx(expected, rel=2e-4 if high - low < 1e-3 else 2e-6, abs=1e-6)


def test_half_lines_equal_the_distribution_function():
    mean = torch.linspace(-40, 40, 81, dtype=torch.double)
    width = torch.full_like(mean, 1.5)
    expected = torch.from_numpy(stats.norm.logcdf(0.3, mean.numpy(), 1.5))
    torch.testing.assert_close(log_probability(mean, width, None, 0.3), expected, rtol=1e-12, atol=1e-15)
    expected = torch.from_numpy(stats.norm.logsf(0.3, mean.numpy(), 1.5))
    torch.testing.assert_close(log_probability(mean, width, 0.3, None), expected, rtol=1e-12, atol=1e-15)
    assert torch.equal(log_probability(mean, width, None, None), torch.zeros_like(mean))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("span", [0.4, 1e-3, 1e-9])
def test_an_interval_pulls_towards_itself_however_far(dtype, span):
    """Far away the log probability has the slope of the density's own at the near end; narrow ones and touching ends stay finite."""
    mean = torch.tensor([-1e4, -100.0, -3.0, 0.1, 0.3, 3.0, 100.0, 1e4], dtype=dtype, requires_grad=True)
    for log_width in (-5.0, 0.0, 1.0):
        width = torch.full_like(mean, math.exp(log_width))
        value = log_probability(mean, width, 0.1, 0.1 + span)
        slope = torch.autograd.grad(value.sum(), mean)[0]
        assert value.isfinite().all() and slope.isfinite().all() and value.max() <= 0
        assert slope[:3].min() > 0 and slope[5:].max() < 0
        far = torch.tensor([0, 1, 6, 7])
        expected = (torch.tensor([0.1, 0.1, 0.1 + span, 0.1 + span]).to(dtype) - mean.detach()[far]) / width[far].square()
        torch.testing.assert_close(slope[far], expected, rtol=2e-2, atol=0)
