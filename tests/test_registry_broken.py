"""Broken and hostile plug-ins: each is reported with its error, and everything else keeps working."""

import builtins
import json
import re

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, PluginLoadError
from composable_energy.registry import entries
from composable_energy_cli import main
from composable_energy_cli.names import Names
from composable_energy_cli.parsing import parse
from tests.third_party import GOOD_ENERGY, GOOD_SAMPLER, install, row

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
    "UpperCase": ("third_party_upper:Bowl", GOOD_ENERGY, "characters other than a-z"),
    "base": ("third_party_base:Bowl", "class Odd(BaseException): pass\nraise Odd('no')", ""),
    "text": ("third_party_text:Bowl", "class Odd(Exception):\n    def __str__(self): raise RuntimeError\nraise Odd", ""),
    "meta": (
        "third_party_meta:Bowl",
        "class Meta(type):\n    def __getattr__(cls, name): raise RuntimeError('meta')\n"
        "    def __subclasscheck__(cls, other): raise RuntimeError('meta')\nclass Bowl(metaclass=Meta): pass",
        "",
    ),
    "recursion": ("third_party_recursion:Bowl", "def f(): f()\nf()", ""),
}
FAMILY = """
    import sys
    import composable_energy as ce

    class Bowl(ce.EnergyFamily):
        def __init__(self):
            {init}
        def members(self):
            {members}
        def load(self, member):
            return None
"""
FAMILIES = {
    "exits": ("sys.exit(0)", "return ('a',)"),
    "base": ("raise BaseException('x')", "return ('a',)"),
    "members-exit": ("pass", "sys.exit(0)"),
    "members-number": ("pass", "return 3"),
}


NORMAL = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))


def check_the_others_work() -> None:
    rows = ce.plugins(load=True)
    assert {r.state for r in rows if r.distribution == "acme-energies"} == {"ok"}
    assert {r.state for r in rows if r.name in ("hmc", "mala", "langevin")} == {"ok"}
    assert ce.get("energy", "bowl")(torch.zeros(1, 1)).item() == 0.0


@pytest.mark.full
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_has_its_row_and_the_others_work(acme, name):
    value, source, reason = BROKEN[name]
    install(acme, f"broken-{name}", {"energies": {name: value}}, {value.split(":")[0].split(".")[0]: source}, version="0.3")
    assert row(name).state == "not-loaded"
    with pytest.raises(PluginLoadError, match=re.escape(reason or name)) as caught:
        ce.get("energy", name)
    for part in (repr(name), value, f"broken-{name.lower()} 0.3", "uninstall", "COMPOSABLE_ENERGY_PLUGINS", "cannot be used"):
        assert part in str(caught.value)
    assert row(name).state == "failed" and reason in (row(name).error or "")
    check_the_others_work()


def test_a_failed_import_is_reported_again_and_not_tried_again(site):
    counting = "import builtins\nbuiltins.third_party_tries = getattr(builtins, 'third_party_tries', 0) + 1\nraise RuntimeError('no')"
    install(site, "broken", {"energies": {"bad": "third_party_counts:Bowl"}}, {"third_party_counts": counting})
    for _ in range(3):
        with pytest.raises(PluginLoadError, match="RuntimeError: no") as caught:
            ce.get("energy", "bad")
        assert isinstance(caught.value.__cause__, RuntimeError)
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
    (bad,) = (r for r in ce.plugins(load=True) if r.distribution == "unrelated")
    assert (bad.state, bad.version, bad.group) == ("failed", "1.0", "") and reason in (bad.error or "")
    check_the_others_work()


@pytest.mark.full
def test_a_value_that_cannot_be_parsed_is_a_row(acme):
    values = ("not a value at all!", "third_party_a:Bowl:Bowl", "%(percent)s")
    install(acme, "odd", {"energies": {f"odd{i}": value for i, value in enumerate(values)}})
    assert [r.state for r in ce.plugins(load=True) if r.name.startswith("odd")] == ["failed"] * 3
    check_the_others_work()


@pytest.mark.full
def test_the_fallback_finds_what_entrypoints_finds(acme, monkeypatch):
    install(acme, "extras", {"energies": {"extra": "third_party_a:Bowl [fast, slow]"}})
    groups = [entries.group_of(kind) for kind in entries.KINDS]
    by_package = [entries.scan(group) for group in groups]
    monkeypatch.setitem(__import__("sys").modules, "entrypoints", None)
    assert by_package == [entries.scan(group) for group in groups]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_that_raises_anything_is_a_typed_error(site, name, capsys):
    init, members = FAMILIES[name]
    install(site, "bad", {"energies": {"bad": "third_party_bad:Bowl"}}, {"third_party_bad": FAMILY.format(init=init, members=members)})
    with pytest.raises(ComposableEnergyError):
        ce.get("energy", "bad/b")
    assert main(["energies"]) == 0 and "failed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_package_with_the_names_of_defaults_changes_no_result(site):
    quick = {"seed": 0, "step_size": 0.5, "trajectory": 1.0, "steps": 2}
    wanted = NORMAL.sample((4, 2), **quick)
    groups = {"samplers": {"chees": "third_party_s:Walk"}, "estimators": {"log-z": "third_party_z:f"}}
    groups |= {"energies": {"faces": "third_party_a:Bowl"}}
    modules = {"third_party_s": GOOD_SAMPLER, "third_party_z": "def f(*args, **options): return 0.0", "third_party_a": GOOD_ENERGY}
    install(site, "evil", groups, modules)
    assert torch.equal(NORMAL.sample((4, 2), **quick), wanted)
    assert (ce.get("sampler", "chees"), ce.get("sampler", "evil:chees").__name__) == (ce.samplers.ChEES, "Walk")
    assert row("chees").distribution == "composable-energy" and row("evil:chees").state == "ok"
    assert ce.log_z(NORMAL, seed=0, particles=64, levels=4).value == pytest.approx(0.0, abs=0.3)
    (leaf,) = parse("male").names
    assert Names().locate(leaf) == "faces/male"


@pytest.mark.full
def test_commands_name_a_plugin_that_exits_or_prints(site, capfd):
    kernel = """
        import sys
        from composable_energy.sampling import Kernel
        class Fast(Kernel):
            def available(self): sys.exit(0)
            def refusal(self, x): return ""
            def step(self, *args, **options): return None
    """
    bad, loud = FAMILY.format(init="sys.exit(0)", members="return ()"), "print('hello')\n" + GOOD_ENERGY.lstrip()
    install(
        site,
        "bad",
        {"energies": {"bad": "third_party_bad:Bowl", "loud": "third_party_loud:Bowl"}, "kernels": {"fast": "third_party_kernel:Fast"}},
        {"third_party_bad": bad, "third_party_kernel": kernel, "third_party_loud": loud},
    )
    for command, code, named in (("doctor", 1, "SystemExit"), ("plugins --load", 0, "loud"), ("energies", 0, "loud")):
        assert main([*command.split(), "--json"]) == code and named in json.dumps(json.loads(capfd.readouterr().out))


@pytest.mark.full
def test_doctor_names_a_plugin_that_ends_the_process(site, capfd):
    install(site, "deadly", {"energies": {"deadly": "third_party_deadly:Bowl"}}, {"third_party_deadly": "import os\nos._exit(7)"})
    assert main(["doctor", "--json"]) == 1 and "ended the process with exit code 7" in capfd.readouterr().out


def test_names_and_errors_of_plugins_are_printed_with_escapes(site, capsys):
    escape = "\x1b[2J"
    install(
        site,
        "bad",
        {"energies": {"bad": "third_party_bad:Bowl", f"odd{escape}": "third_party_bad:Bowl"}},
        {"third_party_bad": "raise RuntimeError('\\x1b]0;title\\x07 \\u202e')"},
    )
    for command in (["energies"], ["plugins", "--load"], ["plugins", "--load", "--json"], ["energies", "--json"]):
        main(command)
        shown = capsys.readouterr()
        assert "\x1b" not in shown.out + shown.err and "\u202e" not in shown.out + shown.err
        assert "third_party_bad" in shown.out or "title" in shown.out
