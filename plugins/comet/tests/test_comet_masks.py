"""Masks of pictures with known components, from energies built by hand."""

from __future__ import annotations

import pytest
import torch

import composable_energy as ce
from composable_energy.sampling import Noise
from composable_energy_comet import component_scores, merge_components

SIZE = 16


def made(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ce.get("encoder", "comet", **{"size": SIZE, "components": 3, "filters": 8, **options}).eval().requires_grad_(False)


def halves():
    """A quadratic energy of two components: red on the left, blue on the right."""
    comet = made(head="quadratic", components=2, latent=1, coordinates="absolute")
    energy = comet.energy
    energy.image.zero_()
    left = (torch.arange(SIZE) < SIZE // 2).float().expand(SIZE, SIZE)

    def decode_targets(z):
        signs = z[..., 0][:, :, None, None, None]
        color = torch.where(signs > 0, torch.tensor([1.0, 0, 0])[:, None, None], torch.tensor([0, 0, 1.0])[:, None, None])
        weight = torch.where(signs > 0, left, 1 - left) * 8 - 4
        return color.expand(*z.shape[:2], 3, SIZE, SIZE), weight.expand(*z.shape[:2], 1, SIZE, SIZE)

    energy.decode_targets = decode_targets
    return energy, left


@pytest.mark.parametrize("read", ["weight", "single"])
def test_readings_find_who_draws_what(read):
    energy, left = halves()
    z = torch.tensor([[[1.0], [-1.0]]])
    x = energy.minimum(z).clamp(0, 1)
    labels = merge_components(component_scores(energy, x, z, Noise(0, range(1)), read), None)
    assert float((labels[0] == (1 - left).long()).float().mean()) > 0.85  # pixels beside the border are blurred by the box


def test_components_with_like_scores_count_as_the_first():
    maps = torch.zeros(1, 4, 4, 4)
    maps[0, 0, :2], maps[0, 1, 2:], maps[0, 2, :2, :2], maps[0, 3, 2:] = 1.0, 1.0, 1.5, 0.9
    assert merge_components(maps, None).unique().tolist() == [0, 1, 2]
    labels = merge_components(maps, 0.6)
    assert labels.unique().tolist() == [0, 1]
    assert labels[0, 0, 0] == 0 and labels[0, 3, 3] == 1


def test_looks_turn_away_from_what_earlier_ones_saw():
    """Of new weights, whose attention is nearly even, each look without inhibition sees the same place; with it the middles differ."""
    x = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    spread = {}
    for inhibition in (False, True):
        encoder = made(inhibition=inhibition).encoder
        with torch.no_grad():
            encoder.key.weight.mul_(20)  # so that attention has a place
        middles = encoder(x)[:, :, -3:-1]
        spread[inhibition] = float(middles.std(1).mean())
    assert spread[True] > 2 * spread[False]
