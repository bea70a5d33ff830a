"""Tests of the encoder: the conformance kit, its name, its use in an energy."""

import torch
from my_plugin import MyPlugin

import composable_energy as ce
from composable_energy.testing import parametrize_with_checks
from composable_energy_image.testing import encoder_checks

POINTS = torch.tensor([[0.5, 0.1], [1.0, -1.0], [-0.3, 2.0], [0.2, 0.9]])


@parametrize_with_checks(encoder_checks(MyPlugin, POINTS))
def test_the_encoder_conforms(check):
    check()


def test_it_has_a_name():
    assert isinstance(ce.get("encoder", "my-plugin", outputs=5), MyPlugin)


def test_its_labels_are_events():
    base = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
    encoder = ce.get("encoder", "my-plugin", outputs=3)
    labels = [ce.ClassifierEnergy(encoder, label, base) for label in range(3)]
    probabilities = [torch.exp(-label.evidence(POINTS)) for label in labels]
    torch.testing.assert_close(sum(probabilities), torch.ones(4))
    torch.testing.assert_close(torch.exp(-(~labels[0]).evidence(POINTS)), 1 - probabilities[0])
