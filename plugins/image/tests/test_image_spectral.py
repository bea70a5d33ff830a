"""Spectral norms: bounded after training, unchanged by evaluation, and kept by copies and pickles."""

import pickle
from typing import Any

import pytest
import torch
from torch import nn

import composable_energy as ce

NETS = {
    "igebm-resnet32": {"width": 16, "size": 16},
    "igebm-resnet32-large": {"width": 8, "size": 16, "labels": 3},
    "igebm-resnet32-wider": {"width": 8, "size": 8},
    "igebm-mnist": {"width": 16},
    "igebm-dsprites": {"width": 16, "size": 32},
    "compositional-128": {"width": 8, "size": 32},
    "compositional-64": {"width": 8, "size": 16},
    "improved-cd": {"width": 8, "size": 16},
}


def normalized(energy: nn.Module) -> list[Any]:
    return [module for module in energy.modules() if hasattr(module, "parametrizations")]


def spectral_norms(energy: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([torch.linalg.matrix_norm(layer.weight.double().flatten(1), 2) for layer in normalized(energy)])


def trained(name: str, steps: int) -> ce.Energy:
    """Steps of a loss that keeps pulling, with the optimizer of the papers at ten times their rate."""
    torch.manual_seed(0)
    energy = ce.get("energy", name, **NETS[name])
    optimizer = torch.optim.Adam(energy.parameters(), lr=3e-3, betas=(0.0, 0.999))
    y = {"y": 1} if energy.required_conditions else {}
    for _ in range(steps):
        x = torch.rand(4, *energy.event_shape)  # pyright: ignore[reportOptionalIterable]
        loss = (energy(x, **y) - energy(x.pow(3), **y)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return energy.eval()


@pytest.mark.full
@pytest.mark.parametrize("name", NETS)
def test_spectral_norms_are_at_most_one_after_50_steps(name):
    norms = spectral_norms(trained(name, 50))
    assert float(norms.max()) <= 1 + 1e-3
    assert float(norms.max()) >= 1 - 1e-3  # they are bounded because they are normalized, not because they are small


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_every_convolution_of_the_paper_is_normalized(name):
    energy = ce.get("energy", name, **NETS[name])
    layers = [module for module in energy.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    blocks = 8 + 6 + 4
    assert len(normalized(energy)) == (2 * blocks if name == "improved-cd" else len(layers) - 1)  # all but the head
    assert normalized(ce.get("energy", name, **NETS[name], spectral_norm=False)) == []


@pytest.mark.slow
def test_evaluation_moves_nothing_and_training_does():
    energy = trained("igebm-resnet32", 2)
    x = torch.rand(2, 3, 16, 16)
    before = {key: value.clone() for key, value in energy.state_dict().items()}
    assert torch.equal(energy(x), energy(x))
    assert torch.equal(energy.train().eval()(x), energy(x))  # settled vectors stay as they are
    assert all(torch.equal(value, before[key]) for key, value in energy.state_dict().items())
    energy.train()(x)
    moved = [key for key, value in energy.state_dict().items() if not torch.equal(value, before[key])]
    assert moved and all(key.endswith(("_u", "_v")) for key in moved)


def test_a_pickled_energy_can_be_trained_on():
    energy = trained("igebm-mnist", 1)
    state = torch.get_rng_state()
    again = pickle.loads(pickle.dumps(energy))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(normalized(again)) == len(normalized(energy))
    x = torch.rand(2, 1, 28, 28)
    for each in (energy, again):
        each.zero_grad()
        each.train()(x).sum().backward()
    for mine, other in zip(energy.parameters(), again.parameters(), strict=True):
        assert mine.grad is not None and other.grad is not None and torch.equal(mine.grad, other.grad)
