"""Commands `energies`, `plugins` and `doctor`; commands of plug-ins, of which those that break the rules do not break the others."""

import io
import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.registry import installed
from composable_energy_cli import main
from tests.processes import run_code
from tests.third_party import Broken, Noisy, Toys, Unmade, install, python, run

pytestmark = pytest.mark.usefixtures("toys")


def test_energies_lists_members_without_weights(capsys: pytest.CaptureFixture[str]):
    with ce.register("energy", "bowl", Noisy), ce.register("energy", "broken", Broken), ce.register("energy", "unwritten", Unmade):
        assert run("energies") == 0
        header, *lines = capsys.readouterr().out.splitlines()
        assert run("energies", "--json") == 0
        report = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert report.keys() == {row.name for row in installed()} and run("energies", "toys") == 0
        assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["toys", "ready"] and run("energies", "tois") == 2
        assert "No plug-in offers the energy 'tois'. Did you mean 'toys'?" in capsys.readouterr().err
    assert Toys.loaded == [] and header.split() == ["energy", "state", "what", "it", "is"]
    state = {line.split()[0]: line.split()[1] for line in lines if not line.startswith(" ")}  # members are indented
    found = [state[name] for name in ("toys", "faces", "igebm-mnist", "observed", "broken")]
    assert found == ["ready", "trained", "untrained", "needs", "failed"]
    toys = next(i for i, line in enumerate(lines) if line.startswith("toys "))
    assert lines[toys].endswith("(this session)") and "toys/left=dark" in lines[toys + 1]
    assert state["igebm-mnist"] == report["igebm-mnist"]["state"] and report["faces"]["trained"] is True
    first = list(state)
    assert first.index("faces") < first.index("toys") < first.index("observed") < first.index("jem") < first.index("broken")
    assert report["toys"]["members"] == list(Toys().members()) and report["bowl"]["members"] == []
    assert "making it raised OSError: unwritten weights" in report["unwritten"]["error"]
    assert "making it raised ZeroDivisionError: no members today" in report["broken"]["error"]


def test_plugins_lists_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert run("plugins") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["group", "name", "from", "offered", "by", "state"]
    assert any(line.split()[:2] == ["samplers", "langevin"] for line in lines) and run("plugins", "--load", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(ce, "plugins", lambda **options: [record("bad", "failed", "it raised")])
    assert run("plugins") == 0 and capsys.readouterr().out.endswith("\nacme:bad: it raised\n")
    assert rows[0].keys() == {"group", "name", "value", "distribution", "version", "state", "error", "extra"}
    assert next(row["state"] for row in rows if row["name"] == "langevin") == "ok"


def record(name: str, state: str = "ok", error: str | None = None, group: str = "samplers", value: str = "composable_energy_mcmc:X"):
    """A row of a distribution; of this session if it is to be loaded."""
    owner = ("acme", "1.0") if state != "ok" else (None, None)
    return ce.registry.PluginRecord(f"composable_energy.{group}" if group else "", name, value, *owner, state, error)  # pyright: ignore[reportArgumentType]


def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *rows: ce.registry.PluginRecord) -> tuple[int, str, dict]:
    monkeypatch.setattr(ce, "plugins", lambda **options: list(rows))
    code = run("doctor")
    text = capsys.readouterr().out
    assert run("doctor", "--json") == code
    return code, text, json.loads(capsys.readouterr().out)


def test_doctor_is_well_where_all_is_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"composable_energy": ["composable-energy"]})
    code, text, report = doctor(monkeypatch, capsys, record("mala"), record("toys", group="energies"))
    assert code == 0 and report["problems"] == [] and text.rstrip().endswith("All is well.")
    assert report["versions"]["torch"] == metadata.version("torch") and report["versions"]["composable-energy"] == ce.__version__
    assert report["devices"][0].startswith("cpu (") and report["families"] == {"toys": 5}
    assert "samplers mala" in text and "family toys: 5 members" in text


def test_doctor_reports_failures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    twice = {"composable_energy_mcmc": ["composable-energy", "composable-energy-mcmc", "composable-energy"], "numpy": ["a", "b"]}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: twice)
    rows = [record("bad", "failed", "it raised"), record("two", "failed", "it is odd"), record("", "failed", "malformed", "", "")]
    with ce.register("energy", "broken", Broken):
        code, text, report = doctor(monkeypatch, capsys, *rows, record("broken", group="energies"))
    assert code == 1 and report["problems"][0].endswith("making it raised ZeroDivisionError: no members today.")
    assert report["problems"][1:4] == ["acme:bad: it raised", "acme:two: it is odd", "acme: malformed"]
    owned = "the package composable_energy_mcmc is owned by composable-energy and composable-energy-mcmc: removing one deletes files"
    assert report["problems"][4].startswith(owned) and len(report["problems"]) == 5
    assert all(f"Problem: {problem}" in text for problem in report["problems"])


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 2, "Memory ran out: ask for fewer (-n), or evaluate fewer at a time (--batch-size)."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), 2, "Memory ran out: ask for fewer (-n)"),
        (RuntimeError("a defect"), None, ""),
        (OptionError("no"), None, ""),
    ],
)
def test_errors_are_one_line_and_defects_keep_their_traceback(error, code, shown, monkeypatch, capsys):
    def failing(*asked: object) -> None:
        raise error

    monkeypatch.setattr("composable_energy_cli.sample.check_trained", failing)
    if code is None:
        with pytest.raises(type(error)):
            run("sample", "a", "--traceback")
    else:
        assert run("sample", "a") == code
        assert capsys.readouterr().err.startswith(f"composable-energy: error: {shown}" if shown else "")


def test_progress_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert run("sample", "toys", "--steps", "3") == 0 and "sampling langevin" in screen.getvalue() and "3/3 steps" in screen.getvalue()
    screen.truncate(0)
    assert run("sample", "toys", "--steps", "3", "--no-progress") == 0 and "langevin" not in screen.getvalue()


@pytest.mark.slow
def test_module_runs_and_version_and_help_need_no_torch():
    assert python("--version", stdout=subprocess.PIPE).communicate(timeout=30) == (f"composable-energy {ce.__version__}\n", "")
    code = (
        "import sys\nfrom composable_energy_cli import main\n"
        "for arguments in (['--help'], ['sample', '--help'], ['sample']):\n"
        "    try: main(arguments)\n    except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    )
    assert run_code(code).returncode == 0


@pytest.mark.slow
def test_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    process = python("plugins", "--json", stdout=write)
    os.close(read)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


COMMAND = """
    from composable_energy_cli import Command

    class Bad(Command):
        {summary}

        def add_arguments(self, parser):
            {arguments}

        def run(self, arguments):
            print("ran", vars(arguments).get("run"))
            return 0
"""
BROKEN = {
    "conflict": ("summary = 'conflicts'", "parser.add_argument('--traceback')"),
    "twice": ("summary = 'adds one twice'", "parser.add_argument('--x'); parser.add_argument('--x')"),
    "exits": ("summary = 'exits'", "raise SystemExit(0)"),
    "raises": ("summary = 'raises'", "1 / 0"),
    "prints": ("summary = 'prints'", "print('noise'); raise ValueError('bad')"),
}


@pytest.fixture
def command(site):
    def make(name, summary, arguments="parser.add_argument('run')", entry=None):
        module = f"third_party_{name}"
        source = COMMAND.format(summary=summary, arguments=arguments)
        install(site, f"acme-{name}", {"commands": {entry or name: f"{module}:Bad"}}, {module: source})
        return entry or name

    return make


def shown(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", BROKEN)
def test_a_command_whose_arguments_fail_breaks_no_other(command, capsys, kind):
    command(kind, *BROKEN[kind])
    listed = shown(["--help"], capsys)
    assert kind in listed and "draw from an expression" in listed and "noise" not in listed
    assert "--steps" in shown(["sample", "--help"], capsys) and main([kind]) == 2
    out, err = capsys.readouterr()
    assert f"error: The command '{kind}' cannot be used: building it raised " in err and not out


def test_a_command_with_percent_signs_and_any_names_of_arguments_works(command, capsys):
    command("tight", "summary = '50 % (of all) tighter'")
    assert "50 % (of all) tighter" in shown(["--help"], capsys) and main(["tight", "fast"]) == 0 and capsys.readouterr().out == "ran fast\n"


def test_a_command_with_the_name_of_an_own_one_has_that_of_its_distribution(command, capsys):
    command("thief", "summary = 'steals'", entry="sample")
    listed = shown(["--help"], capsys)
    assert "acme-thief:sample" in listed and "draw from an expression" in listed
    assert main(["acme-thief:sample", "fast"]) == 0 and capsys.readouterr().out == "ran fast\n"


def test_an_interrupt_while_a_plugin_is_imported_stops_the_command_and_names_the_plugin(site, capsys):
    install(site, "acme-slow", {"commands": {"slow": "third_party_slow:Slow"}}, {"third_party_slow": "raise KeyboardInterrupt"})
    assert main(["--help"]) == 130
    out, err = capsys.readouterr()
    assert "acme-slow" in err and "was being imported" in err and not out and "--steps" in shown(["sample", "--help"], capsys)
