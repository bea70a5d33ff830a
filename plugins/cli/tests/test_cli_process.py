"""Process behaviour of the command line: exit codes, tracebacks, progress, imports, closed pipes."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

import composable_energy as ce
from composable_energy.errors import ExpressionError, PluginLoadError
from tests.toys import python, run

pytestmark = pytest.mark.usefixtures("toys")


def test_interruption_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("composable_energy_cli.sample.check_trained", lambda *asked: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("sample", "a") == 130
    assert capsys.readouterr() == ("", "")


def test_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ExpressionError):
        run("sample", "a &", "--traceback")
    monkeypatch.setenv("COMPOSABLE_ENERGY_TRACEBACK", "1")
    with pytest.raises(ExpressionError):
        run("sample", "a &")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")])
def test_memory_that_runs_out_is_one_message(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("composable_energy_cli.sample.check_trained", lambda *asked: (_ for _ in ()).throw(error))
    assert run("sample", "a") == 2
    assert capsys.readouterr().err == (
        "composable-energy: error: Memory ran out: ask for fewer (-n), or evaluate fewer at a time (--batch-size).\n"
    )


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    failing = RuntimeError("a defect")
    monkeypatch.setattr("composable_energy_cli.sample.check_trained", lambda *asked: (_ for _ in ()).throw(failing))
    with pytest.raises(RuntimeError, match="a defect"):
        run("sample", "a")


def test_progress_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert run("sample", "toys", "--steps", "3") == 0
    assert "sampling langevin" in screen.getvalue() and "3/3 steps" in screen.getvalue()
    screen.truncate(0)
    assert run("sample", "toys", "--steps", "3", "--no-progress") == 0
    assert "langevin" not in screen.getvalue()


@pytest.mark.slow
def test_progress_shows_tuning_and_then_steps(capsys: pytest.CaptureFixture[str]):
    assert run("sample", "toys/plane", "--steps", "3", "--sampler", "hmc", "--seed", "0", "--progress") == 0
    shown = capsys.readouterr().err
    tuning, steps = shown.index("tuning hmc: "), shown.index("sampling hmc ")
    assert tuning < shown.rindex(" evaluations in ") < steps < shown.rindex(" 3/3 steps, ") < shown.rindex("eta ")


def test_plugin_that_does_not_load_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def failing(kind: str, name: str) -> ce.Energy:
        raise PluginLoadError(f"{name} does not load")

    monkeypatch.setattr(ce, "get", failing)
    assert run("sample", "toys/bright") == 2
    assert "toys/bright does not load" in capsys.readouterr().err


@pytest.mark.slow
def test_module_runs_and_version_and_help_need_no_torch():
    process = python("--version", stdout=subprocess.PIPE)
    assert process.communicate(timeout=30) == (f"composable-energy {ce.__version__}\n", "")
    code = (
        "import sys\nfrom composable_energy_cli import main\n"
        "for arguments in (['--help'], ['sample', '--help'], ['sample']):\n"
        "    try: main(arguments)\n    except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False).returncode == 0


@pytest.mark.full
def test_process_ends_with_the_code_and_a_clean_message():
    process = python("sample", "male smiling", stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.splitlines()[1:] == ["  male smiling", "       ^^^^^^^"]


@pytest.mark.slow
def test_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    process = python("plugins", "--json", stdout=write)
    os.close(read)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


def test_reader_that_goes_away_is_no_error_in_process(monkeypatch: pytest.MonkeyPatch):
    def gone(*values: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    assert run("energies") == 141
