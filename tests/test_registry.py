"""Plug-ins by name: found late, loaded alone, checked, and told apart."""

import copy
import subprocess
import sys
import threading

import pytest
import torch

import composable_energy as ce
from composable_energy import registry
from composable_energy.errors import OptionError, PluginConflictError, PluginLoadError, PluginNotFound
from composable_energy.kernels import Kernel
from composable_energy.registry import api
from tests.third_party import GOOD_ENERGY, GOOD_SAMPLER, install, row


def test_a_third_party_energy_has_a_name(acme):
    energy = ce.get_energy("bowl", scale=3)
    assert energy(torch.ones(2, 2)).tolist() == [3.0, 3.0]
    assert energy.origin == ce.Origin("bowl", None, {"scale": 3}, "acme-energies", "1.0")
    assert ce.get_energy("ring", radius=2.0)(torch.zeros(1, 2)).item() == 4.0
    assert ce.get_energy("acme-energies:bowl")(torch.ones(1, 2)).item() == 1.0
    assert ce.get_energy("Acme_Energies:bowl")(torch.ones(1, 2)).item() == 1.0


def test_a_third_party_sampler_has_a_name(site):
    install(site, "acme-samplers", {"samplers": {"walk": "third_party_s:Walk"}}, {"third_party_s": GOOD_SAMPLER})
    sampler = ce.get_sampler("walk")
    assert issubclass(sampler, ce.sampling.Sampler)
    energy = ce.as_energy(lambda x: x.square().sum(1) / 2)
    assert energy.sample((4, 2), sampler="walk", steps=3, scale=0.5, seed=0).shape == (4, 2)


def test_listing_imports_nothing_and_loading_only_what_is_named(acme):
    install(acme, "acme-other", {"energies": {"other": "third_party_b:Bowl"}}, {"third_party_b": GOOD_ENERGY})
    assert row("bowl").state == row("other").state == "not-loaded"
    assert "third_party_a" not in sys.modules
    ce.get_energy("bowl")
    assert row("bowl").state == "ok"
    assert row("other").state == "not-loaded"
    assert "third_party_b" not in sys.modules
    assert {r.state for r in ce.plugins(load=True) if r.distribution in ("acme-energies", "acme-other")} == {"ok"}


def test_a_scan_happens_once_and_refresh_sees_what_was_installed_since(acme):
    ce.plugins()
    install(acme, "acme-late", {"energies": {"late": "third_party_late:Bowl"}}, {"third_party_late": GOOD_ENERGY})
    with pytest.raises(PluginNotFound):
        ce.get_energy("late")
    ce.refresh()
    assert ce.get_energy("late")(torch.zeros(1, 1)).item() == 0.0


def test_an_unknown_name_tells_the_nearest(acme):
    with pytest.raises(PluginNotFound, match="Did you mean 'bowl'"):
        ce.get_energy("bawl")
    with pytest.raises(PluginNotFound, match="no members"):
        ce.get_energy("bowl/deep")
    with pytest.raises(PluginNotFound, match="is not a family"):
        ce.get_family("bowl")


def test_an_unknown_option_tells_those_that_there_are(acme):
    with pytest.raises(OptionError, match=r"scale: float = 1.0.*got \(depth\)"):
        ce.get_energy("bowl", depth=1)


def test_an_error_with_options_is_the_callers_and_one_without_the_plugins(site):
    install(
        site,
        "acme-picky",
        {"energies": {"picky": "third_party_picky:picky"}},
        {"third_party_picky": "def picky(scale=0.0):\n    raise ValueError('scale must be positive')\n"},
    )
    with pytest.raises(ValueError, match=r"^scale must be positive$"):
        ce.get_energy("picky", scale=-1.0)
    with pytest.raises(PluginLoadError, match="acme-picky") as caught:
        ce.get_energy("picky")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("switch", "seen"),
    [(None, {"bowl", "other"}), ("acme-energies", {"bowl"}), ("Acme.Energies , acme_other", {"bowl", "other"}), ("", set())],
)
def test_the_switch_says_whose_plugins_count(acme, monkeypatch, switch, seen):
    install(acme, "acme-other", {"energies": {"other": "third_party_b:Bowl"}}, {"third_party_b": GOOD_ENERGY})
    install(acme, "composable-energy-not", {"energies": {"not-first-party": "third_party_b:Bowl"}})
    if switch is not None:
        monkeypatch.setenv("COMPOSABLE_ENERGY_PLUGINS", switch)
    names = {r.name for r in ce.plugins()}
    assert names & {"bowl", "other"} == seen
    assert {"hmc", "faces"} <= names  # those of composable-energy itself always count
    assert ("not-first-party" in names) == (switch is None)
    for name in {"bowl", "other"} - seen:
        with pytest.raises(PluginNotFound, match="COMPOSABLE_ENERGY_PLUGINS leaves out"):
            ce.get_energy(name)


def test_registering_lasts_for_the_session_or_for_a_block(acme):
    plain = ce.as_energy(lambda x: x.sum(1))
    with ce.register("energy", "bowl", lambda: plain):
        assert ce.get_energy("bowl").equals(plain)
        assert row("bowl", "acme-energies").state == "shadowed"
        assert type(ce.get_energy("acme-energies:bowl")).__name__ == "Bowl"
        with ce.register("energy", "bowl", lambda: 2 * plain):
            assert not ce.get_energy("bowl").equals(plain)
        assert ce.get_energy("bowl").equals(plain)
    assert not ce.get_energy("bowl").equals(plain)
    ce.register("energy", "mine", lambda: plain)
    ce.refresh()
    assert ce.get_energy("mine").equals(plain)


def test_what_is_registered_keeps_the_contract_too():
    with pytest.raises(OptionError, match="use one of energy, sampler, encoder, kernel, estimator, command, kind"):
        ce.register("energies", "x", lambda: None)
    with pytest.raises(PluginLoadError, match="a subclass of Sampler"):
        ce.register("sampler", "x", lambda: None)
    with pytest.raises(PluginLoadError, match="a-z"):
        ce.register("energy", "No Name", lambda: None)
    with pytest.raises(PluginLoadError, match="makes an object"):
        ce.register("energy", "x", ce.as_energy(torch.sum))
    with ce.register("energy", "x", lambda: torch.nn.Linear(1, 1)), pytest.raises(PluginLoadError, match="should make an Energy, it made"):
        ce.get_energy("x")


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
        left, right = ce.get_energy("bowls/left"), ce.get_energy("bowls/right")
        assert left.bases[0].energy.equals(right.bases[0].energy) and len((left & right & ce.get_energy("bowls")).bases) == 1
        assert ce.get_family("bowls").members() == ("left", "right", "hair=red")
        assert str(right.origin) == "bowls/right"
        assert ce.get_energy("bowls/hair=red").origin.member == "hair=red"
        other = ce.get_energy("bowls", scale=2.0)
        assert not other.equals(ce.get_energy("bowls"))
        assert other.equals(ce.get_energy("bowls", scale=2.0))
        with pytest.raises(PluginNotFound, match="Did you mean 'bowls/left'"):
            ce.get_energy("bowls/lift")
        with pytest.raises(OptionError, match="plain data"):
            ce.get_energy("bowls/left", scale=torch.tensor(1.0))
    with pytest.raises(PluginNotFound):
        ce.get_energy("bowls/left")


class Linears(ce.EnergyFamily):
    """A family that makes its network when the first member is asked for."""

    def members(self):
        return ("left",)

    def load(self, member):
        if not hasattr(self, "net"):
            self.net = torch.nn.Linear(2, 1)
        return ce.ClassifierEnergy(self.net, 1, name="left") & torch.distributions.Normal(torch.zeros(2), 1.0)


@pytest.mark.slow
def test_what_is_loaded_in_inference_mode_can_be_sampled_there_and_elsewhere(site, tmp_path):
    with ce.register("energy", "linears", Linears):
        with torch.inference_mode():
            energy = ce.get_energy("linears/left")
            draws = energy.sample(3, seed=0, steps=2)
            energy.save(tmp_path / "saved")
            saved = ce.load(tmp_path / "saved")
        assert torch.equal(draws, ce.get_energy("linears/left").sample(3, seed=0, steps=2))
        assert torch.equal(draws, saved.sample(3, seed=0, steps=2))


def test_loading_by_name_is_getting(acme):
    assert ce.load("bowl", scale=2)(torch.ones(1, 1)).item() == 1.0
    with pytest.raises(PluginNotFound, match=r"bowl.*no folder 'bawl' either"):
        ce.load("bawl")


def test_encoders_and_kernels_have_names(site):
    class Slow(Kernel):
        def available(self):
            return False, "it is slow"

        def refusal(self, x):
            return ""

        def langevin_step(self, *arguments):
            return arguments

    with ce.register("encoder", "linear", torch.nn.Linear), ce.register("kernel", "slow", Slow):
        encoder = ce.get_encoder("linear", in_features=2, out_features=3)
        assert encoder(torch.ones(1, 2)).shape == (1, 3)
        assert encoder.origin == ce.Origin("linear", None, {"in_features": 2, "out_features": 3})
        assert copy.deepcopy(encoder).origin == encoder.origin
        assert ce.get_kernel("slow").available() == (False, "it is slow")
    for kind, name in (("kernel", "Kernel"), ("encoder", "Module")):
        with pytest.raises(PluginLoadError, match=f"a subclass of {name}, got the class dict"):
            ce.register(kind, "bad", dict)
    with ce.register("kernel", "bad", lambda: 3), pytest.raises(PluginLoadError, match="should make a Kernel"):
        ce.get_kernel("bad")
    with ce.register("encoder", "bad", lambda: 3), pytest.raises(PluginLoadError, match=r"should make an nn\.Module"):
        ce.get_encoder("bad")


def test_threads_get_one_family(site):
    found = []
    with ce.register("energy", "bowls", Bowls):
        threads = [threading.Thread(target=lambda: found.append(ce.get_family("bowls"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({id(family) for family in found}) == 1


def test_importing_the_library_loads_no_plugin(acme):
    code = (
        "import sys, composable_energy as ce\n"
        "assert 'entrypoints' not in sys.modules\n"
        "ce.plugins()\n"
        "print([m for m in sys.modules if m.startswith(('third_party', 'composable_energy_', 'torch'))])\n"
    )
    path = f"{acme}:{':'.join(p for p in sys.path if p)}"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_entrypoints_is_named_in_one_file_only():
    import pathlib

    core = pathlib.Path(ce.__file__).parent
    assert [p.name for p in core.rglob("*.py") if "import entrypoints" in p.read_text(encoding="utf-8")] == ["discovery.py"]


def test_conflicts_name_the_forms_that_resolve(acme):
    install(acme, "beta-energies", {"energies": {"bowl": "third_party_b:Bowl"}}, {"third_party_b": GOOD_ENERGY})
    with pytest.raises(PluginConflictError, match="'acme-energies:bowl' or 'beta-energies:bowl'"):
        ce.get_energy("bowl")
    assert ce.get_energy("beta-energies:bowl").origin.distribution == "beta-energies"
    assert row("bowl", "acme-energies").state == row("bowl", "beta-energies").state == "conflict"
    assert "acme-energies:bowl" in api.REGISTRY.names("energy")


def test_one_value_from_two_distributions_is_no_conflict(acme):
    install(acme, "acme-again", {"energies": {"bowl": "third_party_a:Bowl"}})
    assert ce.get_energy("bowl").origin.entry == "bowl"
    assert {row("bowl", d).state for d in ("acme-energies", "acme-again")} == {"ok", "shadowed"}


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
        with pytest.raises(PluginLoadError, match="should make a Dataset, it made an object of type int"):
            ce.get("dataset", "odd")
        with pytest.raises(OptionError, match="sizes"):
            ce.get("dataset", "rings", sizes=4)
    with pytest.raises(PluginLoadError, match="the class that entries of the new kind make"):
        ce.register("kind", "dataset", lambda: Dataset())


def test_an_estimator_is_a_function_that_is_returned_as_it_is():
    def estimate(energy):
        return 1.0

    with ce.register("estimator", "mine", estimate):
        assert ce.get("estimator", "mine") is estimate
        with pytest.raises(OptionError, match="'mine' is a function, which takes no options here; got seed"):
            ce.get("estimator", "mine", seed=0)
    with pytest.raises(PluginLoadError, match="a plug-in of this group is a function, got the class Bowls"):
        ce.register("estimator", "mine", Bowls)
    assert {"calibrate", "log-z"} <= set(registry.names("estimator"))
    with pytest.raises(PluginNotFound, match="No plug-in offers the estimator 'log-zed'"):
        ce.get("estimator", "log-zed")


def test_any_kind_is_asked_for_in_one_way():
    assert ce.get("sampler", "langevin") is ce.get_sampler("langevin")
    assert isinstance(ce.get("energy", "energy-unet"), ce.Energy)
    assert ce.get("world", "tetris").name == "tetris"
    with pytest.raises(OptionError, match="takes no options here; got step_size"):
        ce.get("sampler", "langevin", step_size=1.0)
