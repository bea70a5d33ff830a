"""Plug-ins by name: found at first use, loaded one by one, checked, and conflicts reported."""

import importlib
import subprocess
import sys
import textwrap

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled, OptionError, PluginConflictError, PluginLoadError, PluginNotFound
from composable_energy.registry import members_of, names
from composable_energy_cli import main
from tests.third_party import GOOD_ENERGY, GOOD_SAMPLER, install, row


def test_a_third_party_energy_has_a_name(acme):
    energy = ce.get("energy", "bowl", scale=3)
    assert energy(torch.ones(2, 2)).tolist() == [3.0, 3.0]
    assert energy.origin == ce.energies.Origin("bowl", None, {"scale": 3}, "acme-energies", "1.0")
    assert ce.get("energy", "ring", radius=2.0)(torch.zeros(1, 2)).item() == 4.0
    assert ce.get("energy", "acme-energies:bowl")(torch.ones(1, 2)).item() == 1.0
    assert ce.get("energy", "Acme_Energies:bowl")(torch.ones(1, 2)).item() == 1.0


def test_a_third_party_sampler_has_a_name(site):
    install(site, "acme-samplers", {"samplers": {"walk": "third_party_s:Walk"}}, {"third_party_s": GOOD_SAMPLER})
    sampler = ce.get("sampler", "walk")
    assert issubclass(sampler, ce.sampling.Sampler)
    energy = ce.as_energy(lambda x: x.square().sum(1) / 2)
    assert energy.sample((4, 2), sampler="walk", steps=3, scale=0.5, seed=0).shape == (4, 2)


def test_listing_imports_nothing_and_loading_only_what_is_named(acme):
    install(acme, "acme-other", {"energies": {"other": "third_party_b:Bowl"}}, {"third_party_b": GOOD_ENERGY})
    assert row("bowl").state == row("other").state == "not-loaded"
    assert "third_party_a" not in sys.modules
    ce.get("energy", "bowl")
    assert row("bowl").state == "ok"
    assert row("other").state == "not-loaded"
    assert "third_party_b" not in sys.modules
    assert {r.state for r in ce.plugins(load=True) if r.distribution in ("acme-energies", "acme-other")} == {"ok"}


def test_what_is_installed_in_a_running_session_is_found(acme):
    ce.plugins()
    install(acme, "acme-late", {"energies": {"late": "third_party_late:Bowl"}}, {"third_party_late": GOOD_ENERGY})
    assert ce.get("energy", "late")(torch.zeros(1, 1)).item() == 0.0


def test_an_unknown_name_tells_the_nearest(acme):
    with pytest.raises(PluginNotFound, match="Did you mean 'bowl'"):
        ce.get("energy", "bawl")
    with pytest.raises(PluginNotFound, match="no members"):
        ce.get("energy", "bowl/deep")
    with pytest.raises(PluginNotFound, match="is not a family"):
        members_of("bowl")


def test_an_entry_whose_extra_is_missing_says_how_to_install_it(acme, capsys):
    install(acme, "acme-more", {"energies": {"big": "third_party_big:Bowl [all, big]", "small": "third_party_a:Bowl [all]"}})
    for name in ("big", "acme-more:big", "big/member"):
        with pytest.raises(ExtraNotInstalled, match=r"'(acme-more:)?big' comes with an extra .*: pip install 'acme-more\[all,big\]'\."):
            ce.load(name)
    assert main(["sample", "big/member & small", "-n", "1"]) != 0
    assert "pip install 'acme-more[all,big]'" in capsys.readouterr().err
    assert "big" not in {r.name for r in ce.plugins()}
    assert ce.load("small")(torch.ones(1, 2)).item() == 1.0  # its module is there
    (acme / "third_party_big.py").write_text(textwrap.dedent(GOOD_ENERGY))
    importlib.invalidate_caches()
    assert ce.load("big")(torch.ones(1, 2)).item() == 1.0


def test_an_unknown_option_tells_those_that_there_are(acme):
    with pytest.raises(OptionError, match=r"scale: float = 1.0.*got \(depth\)"):
        ce.get("energy", "bowl", depth=1)


def test_an_error_with_options_names_the_plugin_and_the_options(site):
    install(
        site,
        "acme-picky",
        {"energies": {"picky": "third_party_picky:picky", "lost": "third_party_picky:lost"}},
        {
            "third_party_picky": "def picky(scale=0.0):\n    raise ValueError('scale must be positive')\n\n"
            "def lost(weights=''):\n    open(weights)\n"
        },
    )
    with pytest.raises(
        OptionError, match=r"picky. .*acme-picky.* does not accept scale=-1.0: ValueError: scale must be positive"
    ) as caught:
        ce.get("energy", "picky", scale=-1.0)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(OptionError, match=r"does not accept scale: ValueError"):
        ce.get("energy", "picky", scale=torch.zeros(100))
    with pytest.raises(FileNotFoundError) as missing:
        ce.get("energy", "lost", weights="no-such-file")
    notes = [*getattr(missing.value, "__notes__", []), str(missing.value.__cause__)]
    assert any("acme-picky" in note and "was built with weights='no-such-file'" in note for note in notes)
    with pytest.raises(PluginLoadError, match="acme-picky") as caught:
        ce.get("energy", "picky")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.slow
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
            ce.get("energy", name)


def test_registering_lasts_for_the_session_or_for_a_block(acme):
    plain = ce.as_energy(lambda x: x.sum(1))
    with ce.register("energy", "bowl", lambda: plain):
        assert ce.get("energy", "bowl").equals(plain)
        assert row("acme-energies:bowl").distribution == "acme-energies" and row("bowl").distribution is None
        assert type(ce.get("energy", "acme-energies:bowl")).__name__ == "Bowl"
        with ce.register("energy", "bowl", lambda: 2 * plain):
            assert not ce.get("energy", "bowl").equals(plain)
        assert ce.get("energy", "bowl").equals(plain)
    assert not ce.get("energy", "bowl").equals(plain)
    ce.register("energy", "mine", lambda: plain)
    assert ce.get("energy", "mine").equals(plain)


def test_what_is_registered_keeps_the_contract_too():
    with pytest.raises(OptionError, match="use one of energy, sampler, encoder, kernel, estimator, loader, publisher, plot, command, kind"):
        ce.register("energies", "x", lambda: None)
    with pytest.raises(PluginLoadError, match="a subclass of Sampler"):
        ce.register("sampler", "x", lambda: None)
    with pytest.raises(PluginLoadError, match="a-z"):
        ce.register("energy", "No Name", lambda: None)
    with pytest.raises(PluginLoadError, match="makes an object"):
        ce.register("energy", "x", ce.as_energy(torch.sum))
    with (
        ce.register("energy", "x", lambda: torch.nn.Linear(1, 1)),
        pytest.raises(PluginLoadError, match="should return an Energy, but returned"),
    ):
        ce.get("energy", "x")


def test_loading_by_name_is_getting(acme):
    assert ce.load("bowl", scale=2)(torch.ones(1, 1)).item() == 1.0
    with pytest.raises(PluginNotFound, match=r"bowl.*no folder 'bawl' either"):
        ce.load("bawl")


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


def test_conflicts_name_the_forms_that_resolve(acme):
    install(acme, "beta-energies", {"energies": {"bowl": "third_party_b:Bowl"}}, {"third_party_b": GOOD_ENERGY})
    with pytest.raises(PluginConflictError, match="'acme-energies:bowl' or 'beta-energies:bowl'"):
        ce.get("energy", "bowl")
    assert ce.get("energy", "beta-energies:bowl").origin.distribution == "beta-energies"
    assert row("acme-energies:bowl").state == "not-loaded" and row("beta-energies:bowl").state == "ok"
    assert "acme-energies:bowl" in names("energy") and "bowl" not in names("energy")


def test_one_value_from_two_distributions_is_no_conflict(acme):
    install(acme, "acme-again", {"energies": {"bowl": "third_party_a:Bowl"}})
    assert ce.get("energy", "bowl").origin.entry == "bowl"
    assert row("bowl").distribution == "acme-again" and row("acme-energies:bowl").value == row("bowl").value
