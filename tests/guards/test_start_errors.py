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


@pytest.mark.parametrize(
    ("energy", "init", "told"),
    [
        (NORMAL & ce.as_energy(Kink.apply, name="kink"), None, "the gradient of kink is NaN at 40 of 40"),
        (2 * left_is(torch.nan, "wall") & NORMAL, None, "the energy of wall is NaN"),
        (ce.any_of(NORMAL, left_is(torch.nan, "wall"), weights=[1, 1]), None, "the energy of wall is NaN"),
        (NORMAL & left_is(torch.inf, "wall"), None, "give points in `init`"),
        (NORMAL & left_is(torch.inf, "wall"), -torch.ones(40, 2), "give other points in `init`"),
        (NORMAL, torch.full((40, 2), torch.nan), "the start points are not finite themselves"),
        (  # in coordinates of a support: draws of a half normal are positive, and the other term is NaN below 1
            ce.as_energy(Independent(HalfNormal(torch.ones(2)), 1))
            & ce.as_energy(lambda x: torch.where(x[:, 0] < 1, torch.nan, x[:, 0] * 0), name="low"),
            None,
            "the energy of low is NaN at",
        ),
    ],
)
def test_what_is_not_finite_is_named_and_where_it_is(energy, init, told):
    assert told in message(energy, init=init)[0]


class Tilted(ce.Energy):
    """An energy that is NaN where its condition is negative."""

    conditions = frozenset({"y"})
    name = "tilted"

    def forward(self, x, y):
        return x.square().sum(1) / torch.where(y > 0, y, torch.nan)


def test_each_chain_has_its_own_condition():
    with pytest.raises(SamplingDiverged, match=r"1 of 2 chains .* the energy of tilted.* is NaN at 1 of 1"):
        Tilted().given(y=torch.tensor([1.0, -1.0])).sample((2, 2), **STEP)
