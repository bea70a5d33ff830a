"""Energies of many rows by `minibatched`, against the exact posterior of a slope with 100,000 rows."""

import pytest
import torch
from torch.distributions import Normal

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy_mcmc import minibatched
from tests.refusals import refusals

N, F64 = 100_000, torch.float64
A, NOISE = torch.randn(2, N, generator=torch.Generator().manual_seed(0), dtype=F64)
VARIANCE = 1 / (A.square().sum() + 1)  # with a standard normal prior
MEAN = VARIANCE * (A * (2 * A + NOISE)).sum()
PRIOR, FIT = ce.as_energy(Normal(torch.zeros(1, dtype=F64), 1.0)), [A, 2 * A + NOISE]
STEPS = {"sampler": "langevin", "step_size": 0.1 * VARIANCE.item(), "steps": 300, "seed": 0, "dtype": F64}


def line(x, a, y):
    return (y - x * a).square() / 2


def test_draws_are_those_of_the_posterior_for_any_batch_size():
    energy, n = minibatched(line, FIT, 100, event_shape=(1,)) & PRIOR, 256
    x = energy.sample(n, **STEPS)  # warnings are errors
    assert abs(x.mean() - MEAN) < 4 * (VARIANCE / n).sqrt()
    assert x.var() / VARIANCE == pytest.approx(1 / (1 - 0.1 / 4), rel=4 * (2 / n) ** 0.5)
    assert torch.equal(energy.sample(n, batch_size=100, **STEPS), x)


def test_stochastic_gradient_hmc_draws_the_posterior_and_warns_where_momenta_are_hot():
    deviation = VARIANCE.sqrt().item()
    call = {"sampler": "underdamped", "step_size": 0.5 * deviation, "friction": 1 / deviation, "steps": 100, "seed": 0, "dtype": F64}
    energy, n = minibatched(line, FIT, 100, event_shape=(1,)) & PRIOR, 256
    x = energy.sample(n, **call)  # warnings are errors
    assert abs(x.mean() - MEAN) < 4 * (VARIANCE / n).sqrt()
    assert x.var() / VARIANCE == pytest.approx(1, rel=4 * (2 / n) ** 0.5)
    assert torch.equal(energy.sample(n, batch_size=100, **call), x)
    far = minibatched(line, FIT, 100, center=torch.ones(1, dtype=F64)) & PRIOR
    with pytest.warns(ce.SamplingWarning, match="bias: The step is so long"):
        far.sample(64, init=torch.full((64, 1), 2.0, dtype=F64), **call)


def test_the_estimate_is_right_on_average_and_a_far_center_warns():
    far = minibatched(line, FIT, 100, center=torch.ones(1, dtype=F64))
    each = (torch.arange(N, dtype=F64) + 0.5) / N
    estimates = torch.cat([far.with_gradient(torch.full((len(some), 1), 2.0, dtype=F64), minibatch=some)[1] for some in each.split(5000)])
    torch.testing.assert_close(estimates.mean(), (A * (2 * A - FIT[1])).sum(), rtol=0, atol=1e-3)
    with pytest.warns(ce.SamplingWarning, match="bias: The step is so long"):  # the variance of the gradient is 50 times that of the step
        (far & PRIOR).sample(64, init=torch.full((64, 1), 2.0, dtype=F64), **STEPS)


test_what_has_no_estimate_is_refused = refusals(
    (lambda: (minibatched(line, FIT, 9, event_shape=(1,)) & PRIOR).sample(3, sampler="mala"), ExpressionError, "needs values"),
    (lambda: minibatched(line, FIT, 9, event_shape=(1,)).sample(3), OptionError, "give `step_size`"),
    (lambda: minibatched(line, FIT, 9), OptionError, "Give `event_shape`"),
    (lambda: minibatched(line, FIT, N + 1, event_shape=(1,)), OptionError, "at most the number of rows, 100000"),
    (lambda: minibatched(line, [A, A[1:]], 9, event_shape=(1,)), ShapeError, "100000, 99999 rows"),
    (lambda: minibatched(lambda x, a: a.sum(1) * x, A, 9, center=torch.ones(1, dtype=F64)), ShapeError, "one number for each row"),
)
