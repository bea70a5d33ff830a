"""Rewards: tilted densities against closed forms and quadrature, with and without gradients."""

import math

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ExpressionError, LiftError, OptionError, ShapeError
from composable_energy_mcmc import SMC
from tests.refusals import refusals

CHAINS = 4000


def gaussian(dimension=2):
    return ce.as_energy(torch.distributions.Normal(torch.zeros(dimension), 1.0), name="prior")


def first(x):
    return x[:, 0]


def above_one(x):
    return (x[:, 0] > 1).float()


@pytest.mark.full
@pytest.mark.parametrize(("sampler", "beta"), [(None, 2.0), ("chees", -2.0)])
def test_a_step_reward_gives_the_shares_of_the_tilted_density(beta, sampler):
    reward = ce.reward(above_one, beta, differentiable=False)
    share = 1 - torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(1.0))
    expected = share * math.exp(beta) / (share * math.exp(beta) + 1 - share)
    draws, trace = (gaussian() & reward).sample(CHAINS, seed=0, sampler=sampler, trace=True)
    # `smc` resamples, so that its draws are worth its effective number of chains.
    count = CHAINS if sampler else min(trace.scalars["ess"])
    assert isinstance(trace.sampler, SMC) == (sampler is None)
    if sampler:
        assert trace.sampler.step_size > 0.1  # it suits the Gaussian: no step would avoid the jump
    assert abs(above_one(draws).mean() - expected) < 4 * (expected * (1 - expected) / count).sqrt()
    assert abs(draws[:, 1].std() - 1) < 4 / math.sqrt(2 * count)


def test_a_shape_shows_whether_a_reward_has_a_gradient():
    assert ce.reward(first, event_shape=(2,)).has_gradient
    for without in (above_one, lambda x: x[:, 0].round(), lambda x: torch.tensor([float(row[0] > 1) for row in x])):
        assert not ce.reward(without, event_shape=(2,)).has_gradient


def test_samplers_that_follow_gradients_alone_refuse_a_reward_without_one():
    energy = gaussian() & (2 * ce.reward(above_one, differentiable=False))
    for sampler in ("langevin", "underdamped"):
        with pytest.raises(ExpressionError, match="has none, so it would not count"):
            energy.sample(8, sampler=sampler)
    with pytest.raises(ExpressionError, match="differentiable=False"):
        ce.reward(above_one).with_gradient(torch.zeros(3, 2))


def test_a_reward_composes_is_described_and_saved_with_a_network_of_a_plugin(tmp_path):
    reward, x = ce.reward(first, 2.0), torch.randn(5, 2)
    torch.testing.assert_close((gaussian() & reward)(x), gaussian()(x) - 2 * x[:, 0])
    torch.testing.assert_close((0.5 * reward)(x), -x[:, 0])
    assert str(gaussian() & reward) == "prior & reward(first)"
    assert not reward.grounded
    with ce.register("encoder", "preference", lambda: torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))):
        reward = ce.reward(ce.get("encoder", "preference"), 2.0)
        (gaussian() & reward).save(tmp_path)
        torch.testing.assert_close(ce.load(tmp_path)(x), (gaussian() & reward)(x))


test_bad_rewards_are_refused = refusals(
    (lambda: ce.reward(3), LiftError, "callable"),
    (lambda: ce.reward(first, differentiable="no"), OptionError, "differentiable"),
    (lambda: ce.reward(lambda x: x)(torch.zeros(3, 2)), ShapeError, "expected"),
    (lambda: ce.reward(first).save("nowhere"), ExpressionError, "cannot be saved"),
)
