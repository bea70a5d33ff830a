"""Process behaviour of the command line: exit codes, tracebacks, progress, imports, closed pipes."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

import composable_energy as ce
from composable_energy.errors import OptionError
from tests.toys import python, run

pytestmark = pytest.mark.usefixtures("toys")


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
    assert run("sample", "toys", "--steps", "3") == 0
    assert "sampling langevin" in screen.getvalue() and "3/3 steps" in screen.getvalue()
    screen.truncate(0)
    assert run("sample", "toys", "--steps", "3", "--no-progress") == 0
    assert "langevin" not in screen.getvalue()


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


@pytest.mark.slow
def test_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    process = python("plugins", "--json", stdout=write)
    os.close(read)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")
