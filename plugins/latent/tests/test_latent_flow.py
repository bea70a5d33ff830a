"""The flow from a normal prior to an attribute, against quadrature, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Uniform

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.testing import check_sampler
from composable_energy_latent import LACE, attribute, latent
from plugins.latent.tests.closed_case import direction, errors, logistic, moments


@pytest.mark.full
@pytest.mark.parametrize(("d", "slope", "offset"), [(1, 2.0, 0.0), (2, 5.0, -2.5), (32, 2.0, 0.0), (8, 5.0, -2.5)])
@pytest.mark.parametrize("sampler", ["chees", LACE(draws=64)])
def test_draws_have_the_moments_of_the_posterior(d, slope, offset, sampler):
    E, a = logistic(d, slope, offset)
    z = E.latents.sample(4000, sampler=sampler, seed=0)
    truth = moments(slope, offset)
    assert max(errors(z @ a, truth)) < 4
    if d > 1:
        other = torch.linalg.svd(a[None])[2][1:]
        rest = z @ other.T
        assert (rest.mean(0).abs() < 4.5 / len(z) ** 0.5).all()
        assert ((rest.var(0) - 1).abs() < 4.5 * (2 / len(z)) ** 0.5).all()


@pytest.mark.slow
def test_the_prior_may_have_any_mean_and_scale():
    E, a = logistic(3, 2.0, 1.0, mean=-1.0, scale=0.5)
    z = E.latents.sample(500, sampler=LACE(draws=64), seed=0)
    along = moments(2.0, 1.0, float(-direction(3).sum()), 0.5)
    assert max(errors(z @ a, along)) < 4


def test_labels_of_each_chain_are_kept_apart():
    base = latent(torch.nn.Linear(1, 3), 1)
    side = ce.ClassifierEnergy(lambda z: 8 * z[:, 0], None, base, labels=2, name="side")
    y = torch.tensor([0, 1]).repeat(50)
    for draws in (0, 32):
        z = side.given(y=y).latents.sample(100, sampler=LACE(draws=draws), seed=0)
        assert ((z[:, 0] > 0) == y.bool()).float().mean() > 0.9
        assert torch.equal(z, side.given(y=y).latents.sample(100, sampler=LACE(draws=draws), seed=0))


def test_a_rare_expression_warns():
    E, _ = logistic(2, 30.0, -150.0)
    with pytest.warns(ce.SamplingWarning, match="raise `draws`"):
        E.latents.sample(8, sampler=LACE(draws=4), seed=0)


@pytest.mark.full
def test_a_uniform_prior_is_drawn_by_the_default_and_refused_by_the_flow():
    base = latent(torch.nn.Linear(2, 3), Uniform(-torch.ones(2), torch.ones(2)))
    right = attribute(base, lambda z: 10 * z[:, 0], "right")
    z = right.latents.sample(500, seed=0)
    assert (z.abs() <= 1).all() and (z[:, 0] > 0).float().mean() > 0.85
    with pytest.raises(ExpressionError, match="none with independent coordinates of shape"):
        right.sample(8, sampler=LACE(), seed=0)


@pytest.mark.slow
def test_the_flow_passes_the_checks_of_samplers():
    check_sampler(LACE(draws=4, mean=torch.zeros(()), scale=torch.ones(())))


def test_wrong_options_are_refused():
    for options in ({"draws": 3}, {"levels": 0}, {"tolerance": 0.0}):
        with pytest.raises(OptionError):
            LACE(**options)
