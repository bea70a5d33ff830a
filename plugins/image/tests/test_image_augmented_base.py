"""Bases that know how pictures were changed, and the changes themselves."""

from __future__ import annotations

import torch
from torch import nn

from composable_energy.sampling.noise import Noise
from composable_energy_image.augmented_base import AugmentedCodeNetwork
from composable_energy_image.code_energy import CodeNetwork
from composable_energy_image.data.distortion import Distortion

IMAGES = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
NOISE = Noise(3, range(6))


def test_the_written_network_is_the_energy_of_unchanged_pictures():
    torch.manual_seed(0)
    augmented = AugmentedCodeNetwork(4, 7, width=16, blocks=2)
    for parameter in augmented.parameters():
        nn.init.normal_(parameter, std=0.3)  # the last layers begin with zeros
    plain = CodeNetwork(4, width=16, blocks=2)
    augmented.write_unchanged(plain)
    z, sigma = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), torch.full((5,), 0.3)
    torch.testing.assert_close(plain(z, sigma=sigma), augmented(z, sigma=sigma, y=torch.zeros(5, 7)))
    assert not torch.allclose(plain(z, sigma=sigma), augmented(z, sigma=sigma, y=torch.ones(5, 7)))


def test_no_change_leaves_pictures_as_they_are():
    distortion = Distortion(rotation=20, zoom=0.2, shift=0.1, bend=0.05)
    changes = distortion.draw(IMAGES, NOISE)
    assert changes.shape == (6, Distortion.NUMBERS)
    torch.testing.assert_close(distortion.apply(IMAGES, torch.zeros_like(changes)), IMAGES)
    assert torch.equal(distortion.apply(IMAGES, changes), distortion(IMAGES, NOISE))


def test_numbers_of_a_change_that_is_off_are_zero():
    changes = Distortion(rotation=20).draw(IMAGES, NOISE)
    assert bool(changes[:, 0].all()) and not changes[:, 1:].any()
    assert bool(Distortion(bend=0.05).draw(IMAGES, NOISE)[:, 5:].all())
