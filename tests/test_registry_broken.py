"""A broken plug-in is reported with its error; everything else keeps working."""

import re

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import PluginLoadError
from composable_energy.registry import entries
from tests.third_party import GOOD_ENERGY, install, row

BROKEN = {
    "raises": ("third_party_raises:Bowl", "raise RuntimeError('no such driver')", "importing it raised RuntimeError: no such driver"),
    "exits": ("third_party_exits:Bowl", "import sys; sys.exit(3)", "importing it raised SystemExit: 3"),
    "missing": ("third_party_missing:Bawl", GOOD_ENERGY, "has no attribute 'Bawl'"),
    "absent": ("third_party_absent.not_there:Bowl", "", "importing it raised ModuleNotFoundError"),
    "wrong-type": ("third_party_wrong:Bowl", "class Bowl: pass", "a subclass of Energy or EnergyFamily, got the class Bowl"),
    "not-callable": ("third_party_number:bowl", "bowl = 3", "makes an object, got an object of type int"),
    "instance": ("third_party_instance:bowl", GOOD_ENERGY + "\n    bowl = Bowl()", "makes an object, got an object of type Bowl"),
    "abstract": (
        "third_party_abstract:Half",
        "import composable_energy as ce\nclass Half(ce.EnergyFamily):\n    def members(self): return ()",
        "does not implement load",
    ),
    "newer": (
        "third_party_newer:Bowl",
        GOOD_ENERGY + "\n    Bowl.api_version = 2",
        "needs plug-in contract 2, this composable-energy supports 1",
    ),
    "nonsense": ("third_party_nonsense:Bowl", GOOD_ENERGY + "\n    Bowl.api_version = '1'", "needs plug-in contract '1'"),
    "UpperCase": ("third_party_upper:Bowl", GOOD_ENERGY, "characters other than a-z"),
}


@pytest.mark.full
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_has_its_row_and_the_others_work(acme, name):
    value, source, reason = BROKEN[name]
    install(acme, f"broken-{name}", {"energies": {name: value}}, {value.split(":")[0].split(".")[0]: source}, version="0.3")
    assert row(name).state == "not-loaded"
    with pytest.raises(PluginLoadError, match=re.escape(reason)) as caught:
        ce.get("energy", name)
    for part in (repr(name), value, f"broken-{name.lower()} 0.3", "uninstall", "COMPOSABLE_ENERGY_PLUGINS"):
        assert part in str(caught.value)
    assert row(name).state == "failed"
    assert reason in (row(name).error or "")
    rows = ce.plugins(load=True)
    assert {r.state for r in rows if r.distribution == "acme-energies"} == {"ok"}
    assert {r.state for r in rows if r.name in ("hmc", "mala", "langevin")} == {"ok"}
    assert ce.get("energy", "bowl")(torch.zeros(1, 1)).item() == 0.0


def test_a_failed_import_is_reported_again_and_not_tried_again(site):
    counting = "import builtins\nbuiltins.third_party_tries = getattr(builtins, 'third_party_tries', 0) + 1\nraise RuntimeError('no')"
    install(site, "broken", {"energies": {"bad": "third_party_counts:Bowl"}}, {"third_party_counts": counting})
    for _ in range(3):
        with pytest.raises(PluginLoadError, match="RuntimeError: no") as caught:
            ce.get("energy", "bad")
        assert isinstance(caught.value.__cause__, RuntimeError)
    import builtins

    assert builtins.third_party_tries == 1  # pyright: ignore[reportAttributeAccessIssue]
    del builtins.third_party_tries  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.full
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("[console_scripts]\na = b:c\na = d:e\n", "DuplicateOptionError"),
        ("no section at all\n", "MissingSectionHeaderError"),
        (b"[console_scripts]\na = \xff\xfe\n", "UnicodeDecodeError"),
    ],
)
def test_malformed_metadata_of_an_unrelated_package_hides_nothing(acme, raw, reason):
    install(acme, "unrelated", {}, raw=raw)
    assert ce.get("energy", "bowl")(torch.zeros(1, 1)).item() == 0.0
    rows = ce.plugins(load=True)
    (bad,) = (r for r in rows if r.distribution == "unrelated")
    assert (bad.state, bad.version, bad.group) == ("failed", "1.0", "")
    assert reason in (bad.error or "")
    assert {r.state for r in rows if r.distribution == "acme-energies"} == {"ok"}
    assert issubclass(ce.get("sampler", "hmc"), ce.sampling.Sampler)


@pytest.mark.full
@pytest.mark.parametrize("value", ["not a value at all!", "third_party_a:Bowl:Bowl", "%(percent)s"])
def test_a_value_that_cannot_be_parsed_is_a_row(acme, value):
    install(acme, "odd", {"energies": {"odd": value}})
    rows = ce.plugins(load=True)
    assert [(r.state, r.distribution) for r in rows if r.name == "odd"] == [("failed", "odd")]
    assert ce.get("energy", "bowl")(torch.zeros(1, 1)).item() == 0.0


@pytest.mark.full
def test_the_fallback_finds_what_entrypoints_finds(acme, monkeypatch):
    install(acme, "extras", {"energies": {"extra": "third_party_a:Bowl [fast, slow]"}})
    groups = [entries.group_of(kind) for kind in entries.KINDS]
    by_package = [entries.scan(group) for group in groups]
    monkeypatch.setitem(__import__("sys").modules, "entrypoints", None)
    assert by_package == [entries.scan(group) for group in groups]
