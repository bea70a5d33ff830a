"""Errors at the start of chains name the term that is not finite, its quantity and the number of points, and what to do."""

import pytest
import torch
from torch.distributions import HalfNormal, Independent, Normal

import composable_energy as ce
from composable_energy.errors import SamplingDiverged

NORMAL = ce.as_energy(Independent(Normal(torch.zeros(2), 1.0), 1), name="normal")
STEP = {"sampler": "langevin", "step_size": 0.1, "steps": 5, "seed": 0}


class Kink(torch.autograd.Function):
    """0 with a gradient that is NaN."""

    @staticmethod
    def forward(ctx, x):
        return x.sum(1) * 0

    @staticmethod
    def backward(ctx, *grads):
        return torch.full((len(grads[0]), 2), torch.nan)


def left_is(value, name):
    return ce.as_energy(lambda x: torch.where(x[:, 0] < 0, value, x[:, 0] * 0), name=name)


def message(energy, **call):
    with pytest.raises(SamplingDiverged) as caught:
        energy.sample((40, 2), **{**STEP, **call})
    return str(caught.value), caught.value


@pytest.mark.parametrize(("value", "kind"), [(torch.nan, "NaN"), (torch.inf, "infinite"), (-torch.inf, "infinite")])
def test_the_term_and_its_energy_are_named(value, kind):
    text, error = message(NORMAL & left_is(value, "wall"))
    count = int(error.diverged.sum())
    assert 5 < count < 35 and torch.equal(error.samples[:, 0] < 0, error.diverged)
    assert f"{count} of 40 chains" in text and f"the energy of wall is {kind} at {count} of {count}" in text


def test_a_gradient_is_named_as_one():
    text, _ = message(NORMAL & ce.as_energy(Kink.apply, name="kink"))
    assert "the gradient of kink is NaN at 40 of 40" in text


@pytest.mark.parametrize("of", [lambda wall: 2 * wall & NORMAL, lambda wall: ce.any_of(NORMAL, wall, weights=[1, 1]), lambda wall: wall])
def test_a_term_is_found_inside_of_others(of):
    text, _ = message(of(left_is(torch.nan, "wall")))
    assert "the energy of wall is NaN" in text


def test_init_is_asked_for_where_none_was_given():
    text, _ = message(NORMAL & left_is(torch.inf, "wall"))
    assert "give points in `init`" in text
    text, _ = message(NORMAL & left_is(torch.inf, "wall"), init=-torch.ones(40, 2))
    assert "give other points in `init`" in text


def test_start_points_that_are_not_finite_are_named():
    text, _ = message(NORMAL, init=torch.full((40, 2), torch.nan))
    assert "the start points are not finite themselves" in text


def test_the_term_is_named_in_coordinates_of_a_support():
    """The draws of a half normal are positive, and the other term is NaN below 1."""
    half = ce.as_energy(Independent(HalfNormal(torch.ones(2)), 1))
    text, _ = message(half & ce.as_energy(lambda x: torch.where(x[:, 0] < 1, torch.nan, x[:, 0] * 0), name="low"))
    assert "the energy of low is NaN at" in text


class Tilted(ce.Energy):
    """An energy that is NaN where its condition is negative."""

    conditions = frozenset({"y"})
    name = "tilted"

    def forward(self, x, y):
        return x.square().sum(1) / torch.where(y > 0, y, torch.nan)


def test_each_chain_has_its_own_condition():
    with pytest.raises(SamplingDiverged, match=r"1 of 2 chains .* the energy of tilted.* is NaN at 1 of 1"):
        Tilted().given(y=torch.tensor([1.0, -1.0])).sample((2, 2), **STEP)
