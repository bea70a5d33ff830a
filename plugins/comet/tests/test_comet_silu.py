"""SiLU has the values and the first three derivatives of torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from composable_energy_comet.silu import silu


def points():
    return torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)


def derivatives(function):
    """The values and three derivatives, each weighted so that no order can stand in for another."""
    x = points()
    found = [function(x)]
    for weight in (1.0, 0.7, 1.3):
        found.append(torch.autograd.grad((found[-1] * weight * torch.cos(x.detach())).sum(), x, create_graph=True)[0])
    return found


@pytest.mark.slow
def test_values_and_derivatives_are_those_of_torch():
    for ours, theirs in zip(derivatives(silu), derivatives(F.silu), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_second_derivatives_agree_with_finite_differences():
    assert torch.autograd.gradgradcheck(silu, (points(),))


@pytest.mark.slow
def test_it_is_mapped_over_rows_by_torch_func():
    x = points().detach()
    slopes = torch.func.vmap(torch.func.grad(silu))(x)
    torch.testing.assert_close(slopes, torch.func.vmap(torch.func.grad(F.silu))(x), rtol=1e-12, atol=1e-12)
