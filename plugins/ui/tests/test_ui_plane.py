"""The closed-form energies of the plane: the conformance kit, and what a region means."""

import pytest
import torch

import composable_energy as ce


def test_regions_share_one_base_and_follow_the_laws_of_events():
    right, near = ce.load("plane/right"), ce.load("plane/near")
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    assert len((right & near).bases) == 1
    torch.testing.assert_close((~(right & near))(points), (~right | ~near)(points))


@pytest.mark.full
def test_draws_of_half_a_ring_lie_on_it():
    draws = (ce.load("plane/ring") & ~ce.load("plane/right")).sample(200, seed=0, steps=60)
    assert (draws.norm(dim=1) - 1.8).abs().mean() < 0.3
    assert (draws[:, 0] < 0).float().mean() > 0.85
