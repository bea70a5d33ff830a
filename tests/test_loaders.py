"""Loaders by scheme: `ce.load("scheme:location")`, and the same on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import composable_energy as ce
from composable_energy.errors import FileFormatError, OptionError, PluginConflictError, PluginLoadError, PluginNotFound
from composable_energy.registry import names
from tests.third_party import install
from tests.toys import run

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
    assert str(energy) == "owner/name@v1*2.0"
    assert energy(torch.ones(1, 2)).item() == 2.0
    assert str(ce.load("bowl:C:\\models\\sd:b & more")) == "C:\\models\\sd:b & more*1.0"
    assert {"bowl", "hf"} <= set(names("loader"))
    assert {("composable_energy.loaders", "bowl", "ok")} <= {(r.group, r.name, r.state) for r in ce.plugins(load=True)}


def test_a_drive_a_folder_or_a_path_is_no_scheme(bowls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("C:", "C:bowls", "C:/bowls"):
        with ce.register("loader", "c", lambda location: 1 / 0), pytest.raises(FileFormatError, match=r"holds no saved energy"):
            ce.load(name)
    with pytest.raises(FileFormatError, match="holds no saved energy"):
        ce.load(Path("bowl:here"))
    Path("bowl:empty").mkdir()
    with pytest.raises(PluginNotFound, match=r"There is no energy\.safetensors in the folder 'bowl:empty' either"):
        ce.load("bowl:empty")
    ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0)).save("bowl:saved")
    assert str(ce.load("bowl:saved")) == "Normal"


def test_an_unknown_scheme_names_the_installed_ones(bowls: Path):
    with pytest.raises(PluginNotFound, match=r"No plug-in offers the loader 'bowls'\. Did you mean 'bowl'\? Known: bowl, "):
        ce.load("bowls:x")


def test_two_loaders_of_one_scheme_are_a_conflict(bowls: Path):
    install(bowls, "other-bowls", {"loaders": {"bowl": "third_party_bowls:other"}})
    with pytest.raises(PluginConflictError, match="ask for 'acme-bowls:bowl' or 'other-bowls:bowl'"):
        ce.load("bowl:x")
    assert str(ce.get("loader", "other-bowls:bowl")("x")) == "other"


def test_the_name_of_an_energy_stays_its_name(acme: Path):
    """`distribution:name` names an energy, also where the distribution's name is a scheme."""
    with ce.register("loader", "acme-energies", lambda location: ce.as_energy(lambda x: x.square().sum(1), name="loaded")):
        assert str(ce.load("acme-energies:bowl")) == "Bowl"
        assert str(ce.load("acme-energies:owner/name")) == "loaded"
    with pytest.raises(PluginNotFound, match="No plug-in offers the energy 'acme-energies:bwol'"):
        ce.load("acme-energies:bwol")


def test_what_a_loader_does_wrong_is_said(bowls: Path):
    with pytest.raises(OptionError, match=r"'bowl' takes \(scale=1\.0\), got \(size\)"):
        ce.load("bowl:x", size=3)
    with pytest.raises(OptionError, match="needs a location, as in bowl:LOCATION"):
        ce.load("bowl:")
    with ce.register("loader", "bad", lambda location: 3), pytest.raises(PluginLoadError, match="should return an Energy, but returned an"):
        ce.load("bad:x")

    def offline(location: str) -> ce.Energy:
        raise ConnectionError("the host is down")

    with ce.register("loader", "down", offline), pytest.raises(ConnectionError, match="the host is down"):
        ce.load("down:x")
    with pytest.raises(PluginLoadError, match="a plug-in of this group is a function"):
        ce.register("loader", "bad", dict)


def test_a_publisher_is_found_by_its_scheme():
    kept: dict[str, ce.Energy] = {}

    def publish(energy: ce.Energy, location: str, *, tag: str = "") -> str:
        kept[location] = energy
        return f"box:{location}{tag}"

    energy = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
    with ce.register("publisher", "box", publish), ce.register("publisher", "default", publish), ce.register("loader", "box", kept.get):
        assert energy.push("box:here", tag="@1") == "box:here@1"
        assert ce.files.push(energy, "owner/name") == "box:owner/name"
        assert kept == {"here": energy, "owner/name": energy}
        assert ce.load("box:here") is energy
        with pytest.raises(OptionError, match=r"'box' takes \(tag: .*\), got \(private\)"):
            energy.push("box:here", private=True)
        with pytest.raises(OptionError, match="needs a location"):
            energy.push("box:")
        with pytest.raises(PluginNotFound, match=r"No plug-in offers the publisher 'bok'\. Did you mean 'box'\? Known: box, .*default"):
            energy.push("bok:here")
    with ce.register("publisher", "box", lambda energy, location: None), pytest.raises(PluginLoadError, match="should return a location"):
        energy.push("box:here")


def test_the_command_line_takes_locations(bowls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    options = ["--sampler", "langevin", "--option", "step_size=.1", "--steps", "2", "-n", "3", "-o", "x.npy"]
    assert run("sample", "'bowl:owner/name@v1.0' & 2 * bowl:owner/other", *options) == 0
    assert np.load("x.npy").shape == (3, 2)
    assert "owner/name@v1.0*1.0" in capsys.readouterr().out
    assert run("sample", "bowl:x & bowls:y", *options) == 2
    err = capsys.readouterr().err
    assert "Unknown name `bowls:y`: No plug-in offers the loader 'bowls'. Did you mean 'bowl'?" in err
    assert "\n  bowl:x & bowls:y\n           ^^^^^^^\n" in err
    assert run("plugins") == 0
    assert any(line.split()[:2] == ["loaders", "bowl"] for line in capsys.readouterr().out.splitlines())
