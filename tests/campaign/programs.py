"""Broken third-party plug-ins, and random expressions on the command line."""

from __future__ import annotations

import contextlib
import io
import itertools
import random
import sys
import textwrap
from pathlib import Path

import torch

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError
from composable_energy.parsing import parse
from composable_energy_cli import main
from tests.campaign.trial import Area, Defect, Trial, check, typed
from tests.parsing_names import TOYS
from tests.third_party import GOOD_ENERGY, install

ACTIONS = [
    "raise RuntimeError('no')",
    "raise SystemExit(0)",
    "import os, sys; sys.exit(0)",
    "raise BaseException('no')",
    "raise type('Odd', (BaseException,), {})('no')",
    "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})",
    "raise ImportError('no')",
    "raise StopIteration",
    "raise RecursionError",
    "raise MemoryError",
    "print('\\x1b[2J')",
    "return_ = 3",
]
PLACES = ["module", "init", "members", "load", "forward"]
SOURCE = """
import composable_energy as ce
{module}
class Family(ce.EnergyFamily):
    def __init__(self):
        {init}
    def members(self):
        {members}
        return ("a", "b")
    def load(self, member):
        {load}
        return Bowl()
class Bowl(ce.Energy):
    def forward(self, x):
        {forward}
        return x.square().sum(1) / 2
"""
OTHERS = [
    "class Family: pass",
    "Family = 3",
    "def Family(): return 3",
    "def Family(): return None",
    "class Meta(type):\n    def __call__(cls): raise SystemExit(0)\nclass Family(metaclass=Meta): pass",
    "class Meta(type):\n    def __getattribute__(cls, name): raise RuntimeError('meta')\nclass Family(metaclass=Meta): pass",
    "",
    "syntax error here",
    "Family = lambda *a, **k: (_ for _ in ()).throw(KeyError('x'))",
]
_number = itertools.count()


def prepare_plugins(folder: Path) -> Trial:
    torch.set_num_threads(1)
    normal = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
    wanted = normal.sample((4, 2), seed=0, steps=3, warn=False)

    def trial(chance: random.Random, place: Path) -> str:
        module = f"third_party_{next(_number)}"
        if chance.random() < 0.8:
            actions = dict.fromkeys(PLACES, "pass")
            for spot in chance.sample(PLACES, chance.choice([1, 1, 2])):
                actions[spot] = chance.choice(ACTIONS)
            source = SOURCE.format(**actions)
        else:
            source = chance.choice(OTHERS)
        kind = chance.choice(["energies", "energies", "samplers", "encoders", "kernels", "commands", "recipes", "worlds", "loaders"])
        name = chance.choice(["bad", "bad", "chees", "faces", "triton", "log-z", "hf", "Bad Name", "sample"])
        install(
            place,
            "acme",
            {kind: {name: f"{module}:Family"}, "estimators": {"log-z": f"{module}:Family"}},
            {module: textwrap.dedent(source)},
        )
        install(place, "good", {"energies": {"bowl": f"good_{module}:Bowl"}}, {f"good_{module}": GOOD_ENERGY})
        sys.path.insert(0, str(place))
        ce.registry.refresh()
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
                found = [
                    typed(lambda: ce.plugins(load=True))[1],
                    typed(lambda: ce.get_energy(f"acme:{name}/a")(torch.zeros(1, 2)), _mine())[1],
                ]
                out.seek(0), out.truncate()  # what plug-ins printed themselves before
                codes = [main(words) for words in (["plugins", "--load"], ["energies"])]
                main(["energies", "--json"])
            check("\x1b" not in out.getvalue(), "terminal escape", "printed raw")
            check(codes == [0, 0], "untyped error", f"exit codes {codes}")
            check(ce.get_energy("good:bowl")(torch.zeros(1, 1)).item() == 0.0, "silent wrong answer", "a good plug-in")
            if name == "chees" or chance.random() < 0.1:
                again = normal.sample((4, 2), seed=0, steps=3, warn=False)
                check(torch.equal(again, wanted), "silent wrong answer", "the default sampler was replaced")
        except SystemExit as error:
            raise Defect(f"untyped error: SystemExit({error.code})") from error
        finally:
            sys.path.remove(str(place))
            ce.registry.refresh()
        return "isolated" if not any(found) else "typed error"

    return trial


def _mine() -> tuple[type[BaseException], ...]:
    """What the forward method of a plug-in may raise, which is passed on."""
    return (RuntimeError, BaseException)


TOKENS = [
    *(*TOYS, *TOYS, "male", "'hf:a/b'", "./x", "~/x", "and", "or", "not"),
    *["&", "|", "~", "^", ">>", "-", "*", "/", "(", ")", ":", ",", "[", "]", "{", "}", "@", "=", "==", "**", ".."],
    *("2", "0.5", "-1", "1e9", "1e400"),
    *("'", '"', "\\", "\x00", "\x1b", "\u202e", "\u00e9", "  ", "\n", "\t"),
]


def prepare_parser(folder: Path) -> Trial:
    points = torch.zeros(2, 2, dtype=torch.float64)

    def resolve(name: str) -> ce.Energy:
        return TOYS[name]

    def expression(chance: random.Random, depth: int) -> str:
        if depth == 0 or chance.random() < 0.2:
            return chance.choice(list(TOYS))
        inside = [expression(chance, depth - 1) for _ in range(2)]
        return chance.choice(
            [
                f"({inside[0]} {chance.choice(['&', '|', '>>', '^'])} {inside[1]})",
                f"~{inside[0]}",
                f"{chance.choice(['2', '0.5'])} * {inside[0]}",
            ]
        )

    def one(chance: random.Random) -> str:
        if chance.random() < 0.15:
            text = expression(chance, chance.randrange(1, 4))
        else:
            text = chance.choice(["", " "]).join(chance.choice(TOKENS) for _ in range(chance.choice([1, 2, 3, 5, 8, 20])))
        if chance.random() < 0.01:
            text = chance.choice(["(", "~", "2 * ", "base & "]) * chance.choice([100, 5000, 100_000]) + text
        found, error = typed(lambda: parse(text, resolve, TOYS))
        if error:
            return error
        if chance.random() < 0.05:
            typed(lambda: found(points))
        return "an energy"

    def trial(chance: random.Random, place: Path) -> str:
        outcomes = {one(chance) for _ in range(100)}
        return "100 expressions" if outcomes <= {"an energy"} else "100 expressions, some refused"

    return trial


def prepare_command_line(folder: Path) -> Trial:
    words = [
        *("sample", "explain", "energies", "plugins", "recipes", "train", "render", "new-plugin"),
        *["-n", "-o", "--seed", "--steps", "--json", "--sampler", "--option", "--given", "--in", "--range"],
        *["1", "-1", "1e9", "99999999999999999999", "nan", "x.png", "x.npy", "/dev/null/x.png", "a=b", "step_size=nan"],
        *("\x1b[2J", "", "male", "~", "&", "faces/none", "./nowhere", "chees", "nobody", "\udcff", "\u00e9" * 300),
        *(
            "--recipe",
            "--data",
            "--out",
            "--set",
            "--size",
            "--kind",
            "odd.toml",
            "cd-small",
            "tetris",
            ".",
            "\x9b2J",
            "o\x1b[2Jut",
            "\u202e",
        ),
    ]

    shown = [
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

    def trial(chance: random.Random, place: Path) -> str:
        if chance.random() < 0.2:
            arguments = list(chance.choice(shown))
        else:
            arguments = [chance.choice(words[:8]), *(chance.choice(words) for _ in range(chance.randrange(6)))]
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

    return trial


PLUGINS = Area("plug-ins", prepare_plugins)
PARSER = Area("parser", prepare_parser)
COMMANDS = Area("command line", prepare_command_line)
