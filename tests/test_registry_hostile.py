"""Third-party plug-ins that take the library's names, exit, hang, print, or raise what no handler expects."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, PluginLoadError
from composable_energy_cli import main
from composable_energy_cli.trial import try_plugins
from tests.third_party import GOOD_ENERGY, GOOD_SAMPLER, install, row

NORMAL = torch.distributions.Normal(torch.zeros(2), 1.0)

HOSTILE = {
    "base": "class Odd(BaseException): pass\nraise Odd('no')",
    "text": "class Odd(Exception):\n    def __str__(self): raise RuntimeError\nraise Odd",
    "text-base": "class Odd(BaseException):\n    def __str__(self): raise SystemExit(0)\nraise RuntimeError",
    "meta": "class Meta(type):\n    def __getattr__(cls, name): raise RuntimeError('meta')\n    def mro(cls): return type.mro(cls)\n"
    "    def __subclasscheck__(cls, other): raise RuntimeError('meta')\nclass Bowl(metaclass=Meta): pass",
    "exit": "raise SystemExit(0)",
    "recursion": "def f(): f()\nf()",
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
    "members-numbers": ("pass", "return (1, 2)"),
}


@pytest.mark.full
@pytest.mark.parametrize("name", HOSTILE)
def test_an_import_that_raises_anything_is_a_plugin_load_error(site, name):
    install(site, "bad", {"energies": {"bad": "third_party_bad:Bowl"}}, {"third_party_bad": HOSTILE[name]})
    with pytest.raises(PluginLoadError, match="cannot be used"):
        ce.get("energy", "bad")
    assert row("bad").state == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_that_raises_anything_is_a_typed_error(site, name, capsys):
    init, members = FAMILIES[name]
    install(site, "bad", {"energies": {"bad": "third_party_bad:Bowl"}}, {"third_party_bad": FAMILY.format(init=init, members=members)})
    with pytest.raises(ComposableEnergyError):
        ce.get("energy", "bad/b")
    assert main(["energies"]) == 0
    assert "failed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_package_with_the_name_of_a_default_changes_no_sample(site):
    wanted = ce.as_energy(NORMAL).sample((8, 2), seed=0)
    install(site, "evil", {"samplers": {"chees": "third_party_walk:Walk"}}, {"third_party_walk": GOOD_SAMPLER})
    for options in ({}, {"sampler": "chees"}):
        assert torch.equal(ce.as_energy(NORMAL).sample((8, 2), seed=0, **options), wanted)
    assert ce.get("sampler", "evil:chees").__name__ == "Walk"
    assert row("chees").distribution == "composable-energy" and row("evil:chees").state == "ok"


@pytest.mark.slow
def test_a_package_with_the_name_of_an_estimator_does_not_replace_it(site):
    install(site, "evil", {"estimators": {"log-z": "third_party_z:f"}}, {"third_party_z": "def f(*args, **options): return 0.0"})
    assert ce.log_z(ce.as_energy(NORMAL), seed=0).value == pytest.approx(0.0, abs=0.3)


def test_a_package_with_the_name_of_the_default_family_does_not_replace_it(site):
    from composable_energy.parsing import parse
    from composable_energy_cli.names import Names

    install(site, "evil", {"energies": {"faces": "third_party_a:Bowl"}}, {"third_party_a": GOOD_ENERGY})
    (leaf,) = parse("male").names
    assert Names().locate(leaf) == "faces/male"


def doctor(site, *options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "composable_energy", "doctor", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.full
def test_doctor_names_a_plugin_that_exits_and_one_whose_kernel_exits(site):
    kernel = """
        import sys
        from composable_energy.sampling import Kernel
        class Fast(Kernel):
            def available(self): sys.exit(0)
            def refusal(self, x): return ""
            def step(self, *args, **options): return None
    """
    install(
        site,
        "bad",
        {"energies": {"bad": "third_party_bad:Bowl"}, "kernels": {"fast": "third_party_kernel:Fast"}},
        {"third_party_bad": FAMILY.format(init="sys.exit(0)", members="return ()"), "third_party_kernel": kernel},
    )
    done = doctor(site, "--json")
    assert done.returncode == 1, done.stderr
    assert any("bad" in problem and "SystemExit" in problem for problem in json.loads(done.stdout)["problems"])


@pytest.mark.full
def test_output_at_import_leaves_json_whole(site):
    install(site, "loud", {"energies": {"loud": "third_party_loud:Bowl"}}, {"third_party_loud": "print('hello')\n" + GOOD_ENERGY.lstrip()})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    for command in (["plugins", "--load", "--json"], ["energies", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "composable_energy", *command], capture_output=True, text=True, timeout=300, env=environment
        )
        assert any("loud" in found["name"] for found in json.loads(done.stdout))


@pytest.mark.full
def test_a_plugin_that_never_ends_is_named_and_the_others_are_tried(acme):
    install(
        acme,
        "slow",
        {"energies": {"again": "third_party_a:Bowl", "slow": "third_party_slow:Bowl", "then": "third_party_a:ring"}},
        {"third_party_slow": "while True: pass"},
    )
    rows = [found for found in ce.plugins() if found.distribution in ("slow", "acme-energies")]
    began = time.monotonic()
    trials = {found.name: trial for found, trial in zip(rows, try_plugins(rows, limit=20.0), strict=True)}
    assert time.monotonic() - began < 120
    assert {name for name, trial in trials.items() if trial.error} == {"slow"}
    assert "did not end within 20 s" in (trials["slow"].error or "")


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
