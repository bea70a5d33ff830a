"""Drawn faces: a seed gives the same faces in any order and number, and attributes are independent with probability 1/2."""

from __future__ import annotations

import pytest
import torch

from composable_energy_faces.draw import ATTRIBUTES, HAIR_COLORS, draw


@pytest.mark.slow
def test_a_face_depends_on_seed_and_index_alone():
    state = torch.get_rng_state()
    whole, other = draw(150, seed=5), draw(20, seed=1)
    assert torch.equal(state, torch.get_rng_state()) and not torch.allclose(whole.images[:20], other.images, atol=0.1)
    pieces = [draw(n, seed=5, start=start) for start, n in ((0, 1), (1, 7), (8, 100), (108, 42))]
    assert torch.equal(whole.attributes, torch.cat([piece.attributes for piece in pieces]))
    assert torch.equal(whole.hair, torch.cat([piece.hair for piece in pieces]))
    assert torch.allclose(whole.images, torch.cat([piece.images for piece in pieces]), atol=1e-6)


def test_size_is_only_a_matter_of_pixels():
    small, large = draw(16, seed=3, size=32).images, draw(16, seed=3, size=128).images
    assert small.shape == (16, 3, 32, 32) and small.min() >= 0 and small.max() <= 1
    averaged = torch.nn.functional.avg_pool2d(large, 4)
    assert (small - averaged).square().mean().sqrt() < 0.05
    assert torch.equal(draw(16, seed=3, size=32).attributes, draw(16, seed=3, size=128).attributes)


@pytest.mark.slow
def test_attributes_are_fair_and_independent():
    """4,096 coins: means and pairwise correlations within five standard errors, 5 / 64, of fair."""
    faces = draw(4096, seed=4, size=8)
    coins = torch.cat([faces.attributes * 2 - 1, torch.nn.functional.one_hot(faces.hair, 4) * 4.0 - 1], 1)
    assert coins.mean(0)[:5].abs().max() < 5 / 64
    assert coins.mean(0)[5:].abs().max() < 5 * 3**0.5 / 64
    correlation = torch.corrcoef(coins.T)
    correlation[5:, 5:] = 0  # hair colors exclude each other
    assert correlation.fill_diagonal_(0).abs().max() < 5 / 64


@pytest.mark.slow
def test_fixing_an_attribute_changes_that_alone():
    name = "glasses"
    free, off, on = draw(40, seed=6), draw(40, seed=6, given={name: 0}), draw(40, seed=6, given={name: 1})
    column = ATTRIBUTES.index(name)
    others = [i for i in range(5) if i != column]
    assert off.attributes[:, column].sum() == 0 and on.attributes[:, column].sum() == 40
    assert torch.equal(free.attributes[:, others], on.attributes[:, others])
    had = free.attributes[:, column] == 1
    assert torch.equal(free.images[had], on.images[had]) and torch.equal(free.images[~had], off.images[~had])
    changed = (on.images - off.images).abs().amax(1).flatten(1) > 0.1
    assert changed.sum(1).min() > 40, "the attribute must be well visible"
    for value in range(len(HAIR_COLORS)):
        assert (draw(10, seed=7, given={"hair": value}).hair == value).all()
    for wrong in ({"n": -1}, {"n": 1, "size": 4}, {"n": 1, "given": {"hair": 4}}):
        with pytest.raises(ValueError, match=r"Expected|Cannot fix"):
            draw(**wrong)
    assert draw(0).images.shape == (0, 3, 64, 64)
