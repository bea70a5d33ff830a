"""Plug-ins by name: found at first use, loaded one by one, checked, and conflicts reported; families, kinds, and loaders by scheme."""

import copy
import importlib
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled, FileFormatError, OptionError, PluginConflictError, PluginLoadError, PluginNotFound
from composable_energy.registry import members_of, names
from composable_energy.sampling import Kernel, Sampler
from composable_energy_cli import main
from tests.refusals import refusals, refused
from tests.third_party import GOOD_ENERGY, GOOD_SAMPLER, install, row

DRAW = {"sampler": "langevin", "step_size": 0.1, "steps": 2, "seed": 0}
OTHER = ({"energies": {"other": "third_party_b:Bowl"}}, {"third_party_b": GOOD_ENERGY})


def test_a_third_party_energy_and_sampler_have_names(acme):
    energy = ce.get("energy", "bowl", scale=3)
    assert energy(torch.ones(2, 2)).tolist() == [3.0, 3.0]
    assert energy.origin == ce.energies.Origin("bowl", None, {"scale": 3}, "acme-energies", "1.0")
    assert ce.get("energy", "ring", radius=2.0)(torch.zeros(1, 2)).item() == 4.0
    for name in ("acme-energies:bowl", "Acme_Energies:bowl"):
        assert ce.get("energy", name)(torch.ones(1, 2)).item() == 1.0
    assert ce.load("bowl", scale=2)(torch.ones(1, 1)).item() == 1.0
    install(acme, "acme-samplers", {"samplers": {"walk": "third_party_s:Walk"}}, {"third_party_s": GOOD_SAMPLER})
    assert issubclass(ce.get("sampler", "walk"), Sampler)
    assert energy.sample((4, 2), sampler="walk", steps=3, scale=0.5, seed=0).shape == (4, 2)


def test_loading_imports_only_what_is_named_also_what_was_installed_meanwhile(acme):
    install(acme, "acme-other", *OTHER)
    assert row("bowl").state == row("other").state == "not-loaded" and "third_party_a" not in sys.modules
    install(acme, "acme-late", {"energies": {"late": "third_party_a:Bowl"}})
    assert ce.get("energy", "late")(torch.zeros(1, 1)).item() == 0.0
    assert (row("late").state, row("other").state) == ("ok", "not-loaded") and "third_party_b" not in sys.modules
    ce.get("energy", "bowl")
    assert {r.state for r in ce.plugins(load=True) if r.distribution in ("acme-energies", "acme-other")} == {"ok"}


test_what_is_asked_for_or_registered_wrongly_is_refused = pytest.mark.usefixtures("acme")(
    refusals(
        (lambda: ce.get("energy", "bawl"), PluginNotFound, "Did you mean 'bowl'"),
        (lambda: ce.get("energy", "bowl/deep"), PluginNotFound, "no members"),
        (lambda: members_of("bowl"), PluginNotFound, "is not a family"),
        (lambda: ce.load("bawl/at/all"), PluginNotFound, r"no folder 'bawl/at/all' either"),
        (lambda: ce.get("energy", "bowl", depth=1), OptionError, r"scale: float = 1.0.*got \(depth\)"),
        (lambda: ce.get("sampler", 3), OptionError, "is a text"),  # pyright: ignore[reportArgumentType]
        *((lambda kind=kind: ce.get(kind, "rings"), OptionError, f"Unknown kind of plug-in {kind!r}") for kind in ("dataset", 3)),
        (lambda: ce.get("sampler", "langevin", step_size=1.0), OptionError, "takes no options here; got step_size"),
        (lambda: ce.get("estimator", "log-zed"), PluginNotFound, "No plug-in offers the estimator 'log-zed'"),
        (
            lambda: ce.register("energies", "x", lambda: None),
            OptionError,
            "use one of energy, sampler, encoder, kernel, estimator, loader, publisher, plot, command, kind",
        ),
        (lambda: ce.register("sampler", "x", lambda: None), PluginLoadError, "a subclass of Sampler"),
        *((lambda name=name: ce.register("energy", name, lambda: None), PluginLoadError, "a-z") for name in ("No Name", 3)),
        (lambda: ce.register("energy", "x", ce.as_energy(torch.sum)), PluginLoadError, "makes an object"),
        (lambda: ce.register("kernel", "bad", dict), PluginLoadError, "a subclass of Kernel, got the class dict"),
        (lambda: ce.register("encoder", "bad", dict), PluginLoadError, "a subclass of Module, got the class dict"),
        (lambda: ce.register("kind", "x", lambda: 3), PluginLoadError, "is a class, got an object of type function"),
        (lambda: ce.register("estimator", "x", Dataset), PluginLoadError, "is a function, got the class Dataset"),
    )
)


@pytest.mark.parametrize(("kind", "returned"), [("energy", "an Energy"), ("kernel", "a Kernel"), ("encoder", "a Module")])
def test_what_a_factory_returns_is_checked(kind, returned):
    with ce.register(kind, "bad", lambda: 3), pytest.raises(PluginLoadError, match=f"should return {returned}, but returned"):
        ce.get(kind, "bad")


def test_an_entry_whose_extra_is_missing_says_how_to_install_it(acme, capsys):
    install(acme, "acme-more", {"energies": {"big": "third_party_big:Bowl [all, big]", "small": "third_party_a:Bowl [all]"}})
    for name in ("big", "acme-more:big", "big/member"):
        refused(ExtraNotInstalled, r"'(acme-more:)?big' comes with an extra .*: pip install 'acme-more\[all,big\]'\.", ce.load, name)
    assert main(["sample", "big/member & small", "-n", "1"]) != 0
    assert "pip install 'acme-more[all,big]'" in capsys.readouterr().err and "big" not in {r.name for r in ce.plugins()}
    assert ce.load("small")(torch.ones(1, 2)).item() == 1.0  # its module is there
    (acme / "third_party_big.py").write_text(textwrap.dedent(GOOD_ENERGY))
    importlib.invalidate_caches()
    assert ce.load("big")(torch.ones(1, 2)).item() == 1.0


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
    with pytest.raises(OptionError, match=r"picky. .*acme-picky.* does not accept scale=-1.0: ValueError: scale must be positive"):
        ce.get("energy", "picky", scale=-1.0)
    with pytest.raises(FileNotFoundError) as missing:
        ce.get("energy", "lost", weights="no-such-file")
    notes = [*getattr(missing.value, "__notes__", []), str(missing.value.__cause__)]
    assert any("acme-picky" in note and "was built with weights='no-such-file'" in note for note in notes)
    with pytest.raises(PluginLoadError, match="acme-picky") as caught:
        ce.get("energy", "picky")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("switch", "seen"),
    [(None, {"bowl", "other"}), ("acme-energies", {"bowl"}), ("Acme.Energies , acme_other", {"bowl", "other"}), ("", set())],
)
def test_the_switch_says_whose_plugins_count(acme, monkeypatch, switch, seen):
    install(acme, "acme-other", *OTHER)
    install(acme, "composable-energy-not", {"energies": {"not-first-party": "third_party_b:Bowl"}})
    if switch is not None:
        monkeypatch.setenv("COMPOSABLE_ENERGY_PLUGINS", switch)
    names = {r.name for r in ce.plugins()}
    assert names & {"bowl", "other"} == seen
    assert {"hmc", "faces"} <= names  # those of composable-energy itself always count
    assert ("not-first-party" in names) == (switch is None)
    for name in {"bowl", "other"} - seen:
        refused(PluginNotFound, "COMPOSABLE_ENERGY_PLUGINS leaves out", ce.get, "energy", name)


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


def test_conflicts_name_the_forms_that_resolve(acme):
    install(acme, "beta-energies", {"energies": {"bowl": "third_party_b:Bowl"}}, {"third_party_b": GOOD_ENERGY})
    install(acme, "acme-again", {"energies": {"ring": "third_party_a:ring"}})
    refused(PluginConflictError, "'acme-energies:bowl' or 'beta-energies:bowl'", ce.get, "energy", "bowl")
    assert ce.get("energy", "beta-energies:bowl").origin.distribution == "beta-energies"
    assert row("acme-energies:bowl").state == "not-loaded" and row("beta-energies:bowl").state == "ok"
    assert "acme-energies:bowl" in names("energy") and "bowl" not in names("energy")
    assert ce.get("energy", "ring").origin.entry == "ring"  # one value is no conflict
    assert row("ring").distribution == "acme-again" and row("acme-energies:ring").value == row("ring").value


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
        assert str(right.origin) == "bowls/right" and ce.get("energy", "bowls/hair=red").origin.member == "hair=red"
        other = ce.get("energy", "bowls", scale=2.0)
        assert not other.equals(ce.get("energy", "bowls")) and other.equals(ce.get("energy", "bowls", scale=2.0))
        refused(PluginNotFound, "Did you mean 'bowls/left'", ce.get, "energy", "bowls/lift")
        refused(OptionError, "plain data", ce.get, "energy", "bowls/left", scale=torch.tensor(1.0))
    refused(PluginNotFound, None, ce.get, "energy", "bowls/left")


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
            energy = ce.get("energy", "linears/left")
            draws = energy.sample(3, **DRAW)
            energy.save(tmp_path / "saved")
            saved = ce.load(tmp_path / "saved")
        assert torch.equal(draws, ce.get("energy", "linears/left").sample(3, **DRAW)) and torch.equal(draws, saved.sample(3, **DRAW))


def test_threads_get_equal_bases(site):
    found = []
    with ce.register("energy", "bowls", Bowls):
        threads = [threading.Thread(target=lambda: found.append(ce.get("energy", "bowls/left"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ce.all_of(*found).bases) == 1


class Slow(Kernel):
    def available(self):
        return False, "it is slow"

    def refusal(self, x):
        return ""

    def langevin_step(self, *arguments):
        return arguments


def test_any_kind_is_asked_for_in_one_way():
    estimate = lambda energy: 1.0
    with ce.register("encoder", "linear", torch.nn.Linear), ce.register("kernel", "slow", Slow), ce.register("estimator", "mine", estimate):
        encoder = ce.get("encoder", "linear", in_features=2, out_features=3)
        assert encoder(torch.ones(1, 2)).shape == (1, 3)
        assert encoder.origin == ce.energies.Origin("linear", None, {"in_features": 2, "out_features": 3})
        assert copy.deepcopy(encoder).origin == encoder.origin
        assert ce.get("kernel", "slow").available() == (False, "it is slow") and ce.get("estimator", "mine") is estimate
        refused(OptionError, "'mine' is a function, which takes no options here; got seed", ce.get, "estimator", "mine", seed=0)
    assert {"calibrate", "log-z"} <= set(names("estimator"))
    assert isinstance(ce.get("energy", "energy-unet"), ce.Energy) and ce.get("world", "tetris").name == "tetris"


class Dataset:
    """What entries of the kind `dataset` make."""

    def __init__(self, size: int = 1) -> None:
        self.size = size


def test_a_package_declares_a_kind_of_its_own():
    with ce.register("kind", "dataset", Dataset), ce.register("dataset", "rings", Dataset), ce.register("dataset", "odd", lambda: 3):
        assert ce.get("dataset", "rings", size=4).size == 4
        assert ce.get("kind", "dataset") is Dataset and names("dataset") == ["odd", "rings"]
        assert ("composable_energy.datasets", "rings") in {(row.group, row.name) for row in ce.plugins()}
        refused(PluginLoadError, "should return a Dataset, but returned an object of type int", ce.get, "dataset", "odd")
        refused(OptionError, "sizes", ce.get, "dataset", "rings", sizes=4)
        refused(OptionError, "load must be True or False, got 'dataset'", ce.plugins, "dataset")


LOADERS = """
    import composable_energy as ce

    def load(location, scale=1.0):
        return ce.as_energy(lambda x: scale * x.square().sum(1) / 2, name=f"{location}*{scale}", event_shape=(2,))

    def other(location):
        return ce.as_energy(lambda x: x.square().sum(1), name="other", event_shape=(2,))
"""


@pytest.fixture
def bowls(site: Path) -> Path:
    install(site, "acme-bowls", {"loaders": {"bowl": "third_party_bowls:load"}}, {"third_party_bowls": LOADERS})
    return site


def test_a_scheme_finds_the_loader(bowls: Path):
    energy = ce.load("bowl:owner/name@v1", scale=2.0)
    assert str(energy) == "owner/name@v1*2.0" and energy(torch.ones(1, 2)).item() == 2.0
    assert str(ce.load("bowl:C:\\models\\sd:b & more")) == "C:\\models\\sd:b & more*1.0" and {"bowl", "hf"} <= set(names("loader"))
    assert {("composable_energy.loaders", "bowl", "ok")} <= {(r.group, r.name, r.state) for r in ce.plugins(load=True)}


def test_a_drive_a_folder_or_a_path_is_no_scheme(bowls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("C:", "C:bowls", "C:/bowls"):
        with ce.register("loader", "c", lambda location: 1 / 0), pytest.raises(FileFormatError, match=r"holds no saved energy"):
            ce.load(name)
    refused(FileFormatError, "holds no saved energy", ce.load, Path("bowl:here"))
    Path("bowl:empty").mkdir()
    refused(PluginNotFound, r"There is no energy\.safetensors in the folder 'bowl:empty' either", ce.load, "bowl:empty")
    ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0)).save("bowl:saved")
    assert str(ce.load("bowl:saved")) == "Normal"


def test_two_loaders_of_one_scheme_are_a_conflict(bowls: Path):
    install(bowls, "other-bowls", {"loaders": {"bowl": "third_party_bowls:other"}})
    refused(PluginConflictError, "ask for 'acme-bowls:bowl' or 'other-bowls:bowl'", ce.load, "bowl:x")
    assert str(ce.get("loader", "other-bowls:bowl")("x")) == "other"


def test_the_name_of_an_energy_stays_its_name(acme: Path):
    """`distribution:name` names an energy, also where the distribution's name is a scheme."""
    with ce.register("loader", "acme-energies", lambda location: ce.as_energy(lambda x: x.square().sum(1), name="loaded")):
        assert str(ce.load("acme-energies:bowl")) == "Bowl" and str(ce.load("acme-energies:owner/name")) == "loaded"
    refused(PluginNotFound, "No plug-in offers the energy 'acme-energies:bwol'", ce.load, "acme-energies:bwol")


def test_what_a_loader_does_wrong_is_said_and_an_unknown_scheme_names_the_installed_ones(bowls: Path):
    refused(PluginNotFound, r"No plug-in offers the loader 'bowls'\. Did you mean 'bowl'\? Known: bowl, ", ce.load, "bowls:x")
    refused(OptionError, r"'bowl' takes \(scale=1\.0\), got \(size\)", ce.load, "bowl:x", size=3)
    refused(OptionError, "needs a location, as in bowl:LOCATION", ce.load, "bowl:")
    with ce.register("loader", "bad", lambda location: 3), pytest.raises(PluginLoadError, match="should return an Energy, but returned an"):
        ce.load("bad:x")

    def offline(location: str) -> ce.Energy:
        raise ConnectionError("the host is down")

    with ce.register("loader", "down", offline), pytest.raises(ConnectionError, match="the host is down"):
        ce.load("down:x")
    refused(PluginLoadError, "a plug-in of this group is a function", ce.register, "loader", "bad", dict)


def test_a_publisher_is_found_by_its_scheme():
    kept: dict[str, ce.Energy] = {}

    def publish(energy: ce.Energy, location: str, *, tag: str = "") -> str:
        kept[location] = energy
        return f"box:{location}{tag}"

    energy = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
    with ce.register("publisher", "box", publish), ce.register("publisher", "default", publish), ce.register("loader", "box", kept.get):
        assert energy.push("box:here", tag="@1") == "box:here@1" and ce.files.push(energy, "owner/name") == "box:owner/name"
        assert kept == {"here": energy, "owner/name": energy} and ce.load("box:here") is energy
        refused(OptionError, r"'box' takes \(tag: .*\), got \(private\)", energy.push, "box:here", private=True)
        refused(OptionError, "needs a location", energy.push, "box:")
        refused(PluginNotFound, r"No plug-in offers the publisher 'bok'\. Did you mean 'box'\? Known: box, .*default", energy.push, "bok:a")
    with ce.register("publisher", "box", lambda energy, location: None), pytest.raises(PluginLoadError, match="should return a location"):
        energy.push("box:here")
