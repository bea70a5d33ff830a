"""Families of energies: one instance, shared by members and threads."""

import threading

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError, PluginNotFound


class Bowls(ce.EnergyFamily):
    """A family whose members share a base."""

    def __init__(self, scale: float = 1.0) -> None:
        self.base = ce.as_energy(lambda x: scale * x.square().sum(1) / 2, name="base")

    def members(self):
        return ("left", "right", "hair=red")

    def load(self, member):
        if member is None:
            return self.base
        return ce.as_energy(lambda x: x[:, 0], name=member).relative_to(self.base)


def test_members_of_a_family_share_one_instance(site):
    with ce.register("energy", "bowls", Bowls):
        left, right = ce.get("energy", "bowls/left"), ce.get("energy", "bowls/right")
        assert left.bases[0].energy.equals(right.bases[0].energy) and len((left & right & ce.get("energy", "bowls")).bases) == 1
        assert ce.installed()["bowls"].members == ("left", "right", "hair=red")
        assert str(right.origin) == "bowls/right"
        assert ce.get("energy", "bowls/hair=red").origin.member == "hair=red"
        other = ce.get("energy", "bowls", scale=2.0)
        assert not other.equals(ce.get("energy", "bowls"))
        assert other.equals(ce.get("energy", "bowls", scale=2.0))
        with pytest.raises(PluginNotFound, match="Did you mean 'bowls/left'"):
            ce.get("energy", "bowls/lift")
        with pytest.raises(OptionError, match="plain data"):
            ce.get("energy", "bowls/left", scale=torch.tensor(1.0))
    with pytest.raises(PluginNotFound):
        ce.get("energy", "bowls/left")


class Linears(ce.EnergyFamily):
    """A family that makes its network when the first member is asked for."""

    def members(self):
        return ("left",)

    def load(self, member):
        if not hasattr(self, "net"):
            self.net = torch.nn.Linear(2, 1)
        return ce.ClassifierEnergy(self.net, 1, name="left") & torch.distributions.Normal(torch.zeros(2), 1.0)


@pytest.mark.full
def test_what_is_loaded_in_inference_mode_can_be_sampled_there_and_elsewhere(site, tmp_path):
    with ce.register("energy", "linears", Linears):
        with torch.inference_mode():
            energy = ce.get("energy", "linears/left")
            draws = energy.sample(3, seed=0, steps=2)
            energy.save(tmp_path / "saved")
            saved = ce.load(tmp_path / "saved")
        assert torch.equal(draws, ce.get("energy", "linears/left").sample(3, seed=0, steps=2))
        assert torch.equal(draws, saved.sample(3, seed=0, steps=2))


def test_threads_get_equal_bases(site):
    found = []
    with ce.register("energy", "bowls", Bowls):
        threads = [threading.Thread(target=lambda: found.append(ce.get("energy", "bowls/left"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ce.all_of(*found).bases) == 1
