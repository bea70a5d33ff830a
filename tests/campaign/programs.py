"""Random arguments on the command line."""

import contextlib
import io
import random
from pathlib import Path

from composable_energy.errors import ComposableEnergyError
from composable_energy_cli import main
from tests.campaign.trial import Area, Defect, check

_WORDS = [
    *("sample", "explain", "energies", "plugins", "recipes", "train", "render", "new-plugin"),
    *["-n", "-o", "--seed", "--steps", "--json", "--sampler", "--option", "--given", "--in", "--range"],
    *["1", "-1", "1e9", "99999999999999999999", "nan", "x.png", "x.npy", "/dev/null/x.png", "a=b", "step_size=nan"],
    *("\x1b[2J", "", "male", "~", "&", "faces/none", "./nowhere", "chees", "nobody", "\udcff", "\u00e9" * 300),
    *("--recipe", "--data", "--out", "--set", "--size", "--kind", "odd.toml", "cd-small", "tetris", "."),
    *("\x9b2J", "o\x1b[2Jut", "\u202e"),
]
_SHOWN = [
    ["recipes"],
    ["recipes", "odd.toml"],
    ["recipes", "odd.toml", "--json"],
    ["render", "tetris", "-n", "1", "--size", "8", "-o", "o\x1b[2Jut"],
    ["train", "--recipe", "odd.toml", "--data", "\x1b[2J", "--out", "o\x1b[2Jut"],
    ["train", "--recipe", "odd.toml", "--data", ".", "--out", "o\x1b[2Jut", "--set", "a\x1b[2J=1"],
    ["new-plugin", "odd", "--directory", "o\x1b[2Jut"],
    ["render", "tetris", "-n", "1", "-o", "f\x1b[2Jile"],
    ["train", "--recipe", "odd.toml", "--data", ".", "--out", "f\x1b[2Jile"],
]


def call_commands(chance: random.Random, place: Path) -> str:
    if chance.random() < 0.2:
        arguments = list(chance.choice(_SHOWN))
    else:
        arguments = [chance.choice(_WORDS[:8]), *(chance.choice(_WORDS) for _ in range(chance.randrange(6)))]
    (place / "f\x1b[2Jile").touch()
    (place / "odd.toml").write_text('extends = "cd-small"\nabout = "odd \x9b2J \u202e"  # \x9b2J\n')
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(place):
            code = main(arguments)
    except SystemExit as error:
        code = error.code
    except ComposableEnergyError as error:
        raise Defect(f"untyped error: {arguments}: {type(error).__name__} was not shown") from error
    except Exception as error:
        raise Defect(f"untyped error: {arguments}: {type(error).__name__}: {str(error)[:200]}") from error
    printed = out.getvalue() + err.getvalue()
    check(not any(odd in printed for odd in ("\x1b", "\x9b", "\u202e")), "terminal escape", arguments)
    return f"exit code {code}"


COMMANDS = Area("command line", lambda folder: call_commands)
