"""Lifting of distributions: options, and the classes that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as td
from torch import nn

import composable_energy as ce
from composable_energy.errors import OptionError, ShapeError


class Decoder(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([z, z], 1)


def test_a_distribution_takes_the_options_of_a_callable():
    decoder = Decoder()
    energy = ce.as_energy(td.Normal(torch.zeros(2), 1.0), decoder=decoder, name="prior", event_shape=(2,))
    assert energy.decoder is decoder
    assert str(energy) == "prior"
    assert energy.config()["decoder"] is decoder
    assert ce.as_energy(td.Normal(0.0, 1.0), decoder=decoder).decoder is decoder
    with pytest.raises(ShapeError, match=r"shape \(2,\)"):
        ce.as_energy(td.Normal(torch.zeros(2), 1.0), event_shape=(3,))


@pytest.mark.parametrize("obj", [td.Normal(torch.zeros(2), 1.0), lambda x: x.sum(1)], ids=["distribution", "callable"])
def test_an_unknown_option_is_a_typed_error(obj):
    with pytest.raises(OptionError, match="decodr"):
        ce.as_energy(obj, decodr=Decoder())
