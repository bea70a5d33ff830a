"""Names where people look: samplers by class, and the signature of `E.sample`."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch

import composable_energy as ce
from composable_energy.registry import get, names
from composable_energy.sampling import Sampler, sample
from tests.test_import import loaded_by
from tests.third_party import GOOD_SAMPLER, install


class Walk(ce.samplers.MALA):
    """A sampler of this session."""


def gaussian() -> ce.Energy:
    return ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))


class TestSamplers:
    def test_every_sampler_is_there_by_the_name_of_its_class(self):
        classes = [get("sampler", name) for name in names("sampler")]
        assert dir(ce.samplers) == sorted(cls.__name__ for cls in classes)
        assert [getattr(ce.samplers, cls.__name__) for cls in classes] == classes
        assert all(issubclass(cls, Sampler) for cls in classes)

    def test_an_instance_is_a_sampler_of_sample(self):
        by_name = gaussian().sample(20, sampler="mala", step_size=0.5, steps=5, seed=0)
        assert torch.equal(gaussian().sample(20, sampler=ce.samplers.MALA(step_size=0.5), steps=5, seed=0), by_name)

    def test_a_strange_name_lists_all(self):
        with pytest.raises(AttributeError, match=r"Known: Annealed, ChEES, "):
            ce.samplers.Zzz  # noqa: B018

    def test_one_of_this_session_is_there_while_it_is_registered(self):
        with ce.register("sampler", "walk", Walk):
            assert ce.samplers.Walk is Walk and "Walk" in dir(ce.samplers)
        assert not hasattr(ce.samplers, "Walk")

    def test_two_packages_with_one_name_are_refused_with_the_ways_out(self, site):
        for package in ("acme", "apex"):
            install(site, package, {"samplers": {"walk": f"third_party_{package}:Walk"}}, {f"third_party_{package}": GOOD_SAMPLER})
        with pytest.raises(AttributeError, match=r"composable_energy\.get\('sampler', 'acme:walk'\) or .*'apex:walk'"):
            ce.samplers.Walk  # noqa: B018
        assert ce.get("sampler", "acme:walk").__name__ == "Walk"

    def test_listing_imports_no_plugin_and_no_torch(self):
        loaded = loaded_by("import composable_energy as ce; dir(ce.samplers); dir(ce.viz)")
        assert "torch" not in loaded and not [name for name in loaded if name.startswith("composable_energy_")]


def test_a_function_of_a_plugin_has_its_signature_and_is_copied():
    assert inspect.signature(ce.log_z) == inspect.signature(get("estimator", "log-z"))
    assert "HMC" in dir(copy.deepcopy(ce.samplers)) and copy.deepcopy(ce.log_z)


class TestSample:
    def test_the_method_has_the_signature_and_the_text_of_the_function(self):
        function, method = inspect.signature(sample), inspect.signature(gaussian().sample)
        assert list(method.parameters.values()) == list(function.parameters.values())[1:]
        assert {"shape", "sampler", "steps", "seed", "trace", "observers", "options"} <= method.parameters.keys()
        assert gaussian().sample.__doc__ == sample.__doc__

    @pytest.mark.full
    def test_it_is_a_method_before_and_after_its_first_use(self):
        code = (
            "import inspect, torch, composable_energy as ce; E = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0)); "
            "assert 'composable_energy.sampling' not in sys.modules; first = inspect.signature(E.sample); "
            "assert inspect.signature(E.sample) == first and 'self' not in first.parameters"
        )
        assert "composable_energy.sampling" in loaded_by(code)

    @pytest.mark.slow
    def test_subclasses_copies_and_pickles_have_it(self):
        energy, points = gaussian(), gaussian().sample(3, steps=2, seed=0)
        for other in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
            assert torch.equal(other.sample(3, steps=2, seed=0), points)
        assert torch.equal(ce.Energy.sample(energy, 3, steps=2, seed=0), points)
