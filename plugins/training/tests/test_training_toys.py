"""Toy data sets, and the energy that learns them: saved, composed, and with the density of the data."""

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.testing import check_energy
from composable_energy_training import GaussianNoise, MLPEnergy, NoiseContrastive, Optimizer, Trainer, toys


@pytest.mark.parametrize("name", toys.NAMES)
def test_a_toy_set_is_a_function_of_its_seed_and_fills_the_same_square(name):
    state = torch.get_rng_state()
    points = toys.sample(name, 4000, seed=3)
    assert points.shape == (4000, 2) and torch.equal(toys.sample(name, 4000, seed=3), points)
    assert not torch.equal(toys.sample(name, 4000, seed=4), points) and torch.equal(torch.get_rng_state(), state)
    assert 1.2 < points.abs().quantile(0.99) < 2.2 and points.mean(0).abs().max() < 0.35


def test_sets_have_the_shapes_of_their_names():
    rings, modes, board = (toys.sample(name, 3000) for name in ("rings", "eight-gaussians", "checkerboard"))
    counts = (rings.norm(dim=1) / 0.6).round().long().bincount()
    assert counts[0] == 0 and counts[1:4].min() > 900
    centres = (modes[:, 1].atan2(modes[:, 0]) / (torch.pi / 4)).round().long() % 8
    assert centres.bincount().min() > 300 and (modes.norm(dim=1) - 1.7).abs().max() < 0.8
    assert bool((board.floor().sum(1) % 2 == 0).all()) and (board.floor() + 2).unique(dim=0).shape[0] == 8


@pytest.mark.parametrize(("call", "message"), [(("two-moon", 5), "Did you mean 'two-moons'"), (("rings", 0), "n must be")])
def test_unknown_sets_and_numbers_are_reported(call, message):
    with pytest.raises(OptionError, match=message):
        toys.sample(*call)


def test_the_energy_keeps_the_laws_and_is_saved_as_others(tmp_path):
    check_energy(lambda: ce.get("energy", "mlp", dim=2, width=8), torch.randn(4, 2))
    energy, x = MLPEnergy(3, width=8, layers=1, scale=2.0), torch.randn(5, 3)
    energy.save(tmp_path / "energy")
    again = ce.load(tmp_path / "energy")
    assert torch.equal(again(x), energy(x)) and again.event_shape == (3,)
    with pytest.raises(OptionError, match="scale must be a positive number"):
        MLPEnergy(2, scale=0.0)


@pytest.mark.full
def test_noise_contrast_trains_it_to_a_normalized_density_of_the_data():
    points, test = (toys.sample("eight-gaussians", 4000, seed=seed) for seed in (0, 1))
    energy, noise = MLPEnergy(2), GaussianNoise.fit(points, widen=1.5)
    Trainer(energy, NoiseContrastive(noise), points, steps=300, batch_size=256, optimizer=Optimizer(5e-3, betas=(0.9, 0.99))).fit()
    axis = torch.linspace(-5, 5, 301)
    with torch.no_grad():
        mass = (-energy(torch.cartesian_prod(axis, axis))).exp().sum() * (axis[1] - axis[0]) ** 2
        gain = (-energy(test) - noise.log_prob(test)).mean()
    assert abs(mass - 1) < 0.15 and gain > 0.3
