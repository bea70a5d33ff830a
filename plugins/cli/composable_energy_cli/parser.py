"""The parser of the command line: short errors, whole numbers with a range, and options of samplers as options of the command.

Options of samplers are `--step-size 0.1` or `--option step-size=0.1`, and errors spell them so.
"""

import argparse
import ast
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NoReturn

from composable_energy.errors import OptionError
from composable_energy.options import listed, nearest, printable


class Parser(argparse.ArgumentParser):
    """A parser with short, escaped errors. Beside `--option NAME=VALUE`, an unknown `--step-size 0.1` is `--option step-size=0.1`."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        known = self._option_string_actions
        if args is not None and "--option" in known:
            args = _join_options(args, tuple(known))
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raises the error of argparse for a command or a choice that there is not, with the nearest ones."""
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}.{nearest(str(value), known)}{listed(known)}")

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:
        super()._print_message(printable(message), file)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n`{self.prog} --help` lists the arguments.\n")


def _join_options(words: Sequence[str], known: tuple[str, ...]) -> list[str]:
    """Returns the words with `--option NAME=VALUE` in place of each unknown option and its value; abbreviations are known."""
    joined: list[str] = []
    rest = list(words)
    while rest:
        if (word := rest.pop(0)) == "--":
            return [*joined, word, *rest]
        flag, equals, value = word.partition("=")
        unknown = flag.startswith("--") and not any(name.startswith(flag) for name in known)
        if unknown and not equals and rest and not rest[0].startswith("--") and rest[0] not in known:
            equals, value = "=", rest.pop(0)
        joined += ["--option", f"{flag[2:]}={value}"] if unknown and equals else [word]
    return joined


def add_options(parser: argparse.ArgumentParser, help: str) -> None:
    """Adds `--option NAME=VALUE`, which may be repeated; its value is a list of pairs of a name and a text."""
    parser.add_argument("--option", type=_option, action="append", default=[], metavar="NAME=VALUE", help=f"{help}; may be repeated")


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"an option is written NAME=VALUE, got {text!r}")
    return name, value.strip()


def each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Returns pairs of a name and a value as a mapping; raises `OptionError` if a name is given twice."""
    if len(found := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise OptionError(f"{next(name for name in names if names.count(name) > 1)} is given twice.")
    return found


def whole_number(least: int, most: float = math.inf) -> Callable[[str], int]:
    """Returns a type of arguments: whole numbers in a range, also as `1e6`."""

    def read(text: str) -> int:
        try:
            number = int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number == int(number) and least <= number <= most):
            bound = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"takes a whole number {bound}, got {text!r}")
        return int(number)

    return read


_IN_PYTHON = {"shape", "init", "callback", "trace", "burn_in", "resume", "latents", "dtype", "device", "first_chain"}
_IN_PYTHON |= {"compile", "checkpoint_every"}
_WORDS = {"true": True, "false": False, "none": None}
_ASSIGNED = re.compile(r"\b([a-z]\w*)=('?)([\w.+-]*)\2")


def read_options(pairs: Sequence[tuple[str, str]], flags: Iterable[str]) -> dict[str, Any]:
    """Returns the values of `--option` by name; `flags` are the names of the command's own options."""
    options = {name: _value(text) for name, text in each_once(pairs).items()}
    for name in options:
        if name in flags:
            raise OptionError(f"--option {_dashed(name)}: write --{_dashed(name)} instead.")
        if name in _IN_PYTHON:
            raise OptionError(f"--{_dashed(name)}: this option works in Python only.")
    return options


@contextmanager
def own_spelling(options: Iterable[str], flags: Iterable[str]) -> Iterator[None]:
    """A context whose errors about options spell them as the command line does: `--step-size` in place of `step_size`. The command's own
    options, `flags`, are replaced only where they have a value, as in `steps=`: they may be words."""
    try:
        yield
    except OptionError as error:
        names = {*options, *error.options}
        assigned = names.union(flags)
        text = _ASSIGNED.sub(lambda found: f"--{_dashed(found[1])} {found[3]}".rstrip() if found[1] in assigned else found[0], str(error))
        for name in names:
            text = re.sub(rf"(?<![\w\-'./])(?<!Did you ){re.escape(name)}(?![\w/])", f"--{_dashed(name)}", text)
        raise OptionError(text, error.options) from error


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _value(text: str) -> Any:
    """Returns text as a number, True, False, None, or a list of these, if it is one."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for read in (int, float, ast.literal_eval):  # which reads (0, 1) and [0, 1], and executes nothing
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text
