"""Draws of expressions agree with quadrature of their energies, or the call warns."""

import warnings

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy import SamplingWarning
from tests.factories import DTYPE, LEAVES

N, ERRORS, CELLS, END = 1000, 4.5, 801, 12.0
EVENT, RED, NEAR, TILT, RELATIVE, RING, NORMAL, MIXTURE, NETWORK = (
    LEAVES[name] for name in ("event", "red", "near", "tilt", "relative", "ring", "distribution", "mixture", "network")
)
EXPRESSIONS = {
    "events over a base with a tilt": lambda: (RED | EVENT) & ~NEAR & TILT,
    "relative energies": lambda: RELATIVE & ~TILT & NORMAL,
    "mixture in a conjunction": lambda: ce.any_of(NORMAL, MIXTURE, weights=[0.3, 0.7]) & NETWORK,
    "exclusive or": lambda: NORMAL ^ LEAVES["independent"],
    "level, weight and temperature": lambda: 0.7 * NORMAL & ce.negate(RING, level=1.0) & MIXTURE / 2,
    "sharpened": lambda: (RELATIVE & EVENT).sharpened(1.5) & RING,
}
SAMPLERS = ("chees", "mala", "tempering")


def features(energy: ce.Energy, x: Tensor) -> Tensor:
    """Returns the energy and the coordinates of points."""
    return torch.cat([energy(x)[:, None], x], 1)


@torch.no_grad()
def errors(energy: ce.Energy, draws: Tensor) -> float:
    """Returns by how many standard errors the shares of draws below nine quantiles of each feature differ from quadrature, at most."""
    axis = torch.linspace(-END, END, CELLS, dtype=DTYPE)
    grid = torch.cartesian_prod(axis, axis)
    shares, known, worst = torch.softmax(-energy(grid), 0), features(energy, grid), 0.0
    half = torch.tensor([0.0, 1.0, 1.0], dtype=DTYPE) * (axis[1] - axis[0]) / 2  # the end of a cell
    for column, drawn, shift in zip(known.T, features(energy, draws).T, half, strict=True):
        order = column.argsort()
        below = shares[order].cumsum(0)
        for tenth in range(1, 10):
            threshold = column[order[torch.searchsorted(below, tenth / 10)]] + shift
            share = shares[column <= threshold].sum()
            worst = max(worst, float(((drawn <= threshold).double().mean() - share).abs() / (share * (1 - share) / N).sqrt()))
    return worst


@pytest.mark.full
@pytest.mark.parametrize("name", EXPRESSIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_of_an_expression_agree_with_quadrature_or_warn(name: str, sampler: str) -> None:
    energy = EXPRESSIONS[name]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draws = energy.sample((N, 2), sampler=sampler, seed=2027, dtype=DTYPE)
    assert errors(energy, draws) < ERRORS or any(isinstance(warning.message, SamplingWarning) for warning in caught)


@pytest.mark.full
def test_draws_at_another_temperature_differ() -> None:
    draws = (NORMAL / 1.5).sample((N, 2), sampler="mala", seed=2027, dtype=DTYPE)
    assert errors(NORMAL, draws) > ERRORS
