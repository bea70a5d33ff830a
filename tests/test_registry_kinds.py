"""Kinds of plug-ins, including those that other packages declare."""

import copy

import pytest
import torch

import composable_energy as ce
from composable_energy import registry
from composable_energy.errors import OptionError, PluginLoadError, PluginNotFound
from composable_energy.sampling import Kernel


def test_encoders_and_kernels_have_names(site):
    class Slow(Kernel):
        def available(self):
            return False, "it is slow"

        def refusal(self, x):
            return ""

        def langevin_step(self, *arguments):
            return arguments

    with ce.register("encoder", "linear", torch.nn.Linear), ce.register("kernel", "slow", Slow):
        encoder = ce.get("encoder", "linear", in_features=2, out_features=3)
        assert encoder(torch.ones(1, 2)).shape == (1, 3)
        assert encoder.origin == ce.energies.Origin("linear", None, {"in_features": 2, "out_features": 3})
        assert copy.deepcopy(encoder).origin == encoder.origin
        assert ce.get("kernel", "slow").available() == (False, "it is slow")
    for kind, name in (("kernel", "Kernel"), ("encoder", "Module")):
        with pytest.raises(PluginLoadError, match=f"a subclass of {name}, got the class dict"):
            ce.register(kind, "bad", dict)
    with ce.register("kernel", "bad", lambda: 3), pytest.raises(PluginLoadError, match="should return a Kernel"):
        ce.get("kernel", "bad")
    with ce.register("encoder", "bad", lambda: 3), pytest.raises(PluginLoadError, match=r"should return a Module"):
        ce.get("encoder", "bad")


class Dataset:
    """What entries of the kind `dataset` make."""

    def __init__(self, size: int = 1) -> None:
        self.size = size


def test_a_package_declares_a_kind_of_its_own():
    with pytest.raises(OptionError, match="Unknown kind of plug-in 'dataset'"):
        ce.get("dataset", "rings")
    with ce.register("kind", "dataset", Dataset), ce.register("dataset", "rings", Dataset), ce.register("dataset", "odd", lambda: 3):
        assert ce.get("dataset", "rings", size=4).size == 4
        assert ce.get("kind", "dataset") is Dataset
        assert registry.names("dataset") == ["odd", "rings"]
        assert ("composable_energy.datasets", "rings") in {(row.group, row.name) for row in ce.plugins()}
        with pytest.raises(PluginLoadError, match="should return a Dataset, but returned an object of type int"):
            ce.get("dataset", "odd")
        with pytest.raises(OptionError, match="sizes"):
            ce.get("dataset", "rings", sizes=4)
    with pytest.raises(PluginLoadError, match="a plug-in of this group is a class, got an object of type function"):
        ce.register("kind", "dataset", lambda: Dataset())


def test_an_estimator_is_a_function_that_is_returned_as_it_is():
    def estimate(energy):
        return 1.0

    with ce.register("estimator", "mine", estimate):
        assert ce.get("estimator", "mine") is estimate
        with pytest.raises(OptionError, match="'mine' is a function, which takes no options here; got seed"):
            ce.get("estimator", "mine", seed=0)
    with pytest.raises(PluginLoadError, match="a plug-in of this group is a function, got the class Dataset"):
        ce.register("estimator", "mine", Dataset)
    assert {"calibrate", "log-z"} <= set(registry.names("estimator"))
    with pytest.raises(PluginNotFound, match="No plug-in offers the estimator 'log-zed'"):
        ce.get("estimator", "log-zed")


def test_any_kind_is_asked_for_in_one_way():
    assert ce.get("sampler", "langevin") is ce.get("sampler", "langevin")
    assert isinstance(ce.get("energy", "energy-unet"), ce.Energy)
    assert ce.get("world", "tetris").name == "tetris"
    with pytest.raises(OptionError, match="takes no options here; got step_size"):
        ce.get("sampler", "langevin", step_size=1.0)
