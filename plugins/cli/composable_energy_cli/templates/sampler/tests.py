"""Tests of the sampler: the conformance kit, its name, its density."""

import torch
from my_plugin import MyPlugin

import composable_energy as ce
from composable_energy.testing import parametrize_with_checks, sampler_checks


@parametrize_with_checks(sampler_checks(MyPlugin(scale=1.5), steps=100))
def test_the_sampler_conforms(check):
    check()


def test_it_has_a_name():
    assert ce.get("sampler", "my-plugin") is MyPlugin


def test_it_draws_from_an_expression():
    left, right = (ce.as_energy(torch.distributions.Normal(torch.tensor([m]), 1.0)) for m in (-1.0, 1.0))
    x = (left & right).sample(4000, sampler="my-plugin", steps=100, seed=0)
    assert abs(x.mean().item()) < 5 * (0.5 / 4000) ** 0.5  # standard errors of the product, which is N(0, 1/2)
