"""A network of one's own cannot be saved, and the message shows two lines with which it can."""

import re

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import composable_energy
from composable_energy.errors import ExpressionError

X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


def net(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))


def prior() -> composable_energy.Energy:
    return composable_energy.as_energy(Normal(torch.zeros(2), 1.0), name="prior")


def lines(error: Exception) -> list[str]:
    found = re.findall(r"^ {4}(.*)$", str(error), flags=re.MULTILINE)
    assert len(found) == 2
    return found


@pytest.mark.parametrize("kind", ["network", "function"])
def test_the_two_lines_of_the_message_work(tmp_path, kind):
    network = net(0) if kind != "function" else lambda x: x.square().sum(1) / 3
    energy = composable_energy.as_energy(network, event_shape=(2,))
    with pytest.raises(ExpressionError, match="code is not data") as caught:
        (energy if kind == "network" else energy & prior()).save(tmp_path / "E")
    register, get = lines(caught.value)
    names = {"composable_energy": composable_energy, "network": network}
    with eval(register, names):
        exec(get, names)
        (names["E"] & prior()).save(tmp_path / "E")
    if kind != "function":
        names["network"] = net(1)  # another program builds it with other weights
    with eval(register, names):
        torch.testing.assert_close(composable_energy.load(tmp_path / "E")(X), (energy & prior())(X))
