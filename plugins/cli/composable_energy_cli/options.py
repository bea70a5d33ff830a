"""Options of samplers on the command line: `--step-size 0.1` or `--option step-size=0.1`, and the same spelling in errors."""

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from composable_energy.errors import OptionError

_IN_PYTHON = {"shape", "init", "callback", "trace", "burn_in", "resume", "latents", "dtype", "device", "first_chain"}
_IN_PYTHON |= {"compile", "checkpoint_every"}
_WORDS = {"true": True, "false": False, "none": None}
_ASSIGNED = re.compile(r"\b([a-z]\w*)=('?)([\w.+-]*)\2")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the argument for options of the sampler."""
    parser.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the sampler, such as step-size=0.1, also written --step-size 0.1; may be repeated",
    )


def read_options(pairs: Sequence[tuple[str, Any]], flags: Iterable[str]) -> dict[str, Any]:
    """Returns the values of `--option` by name; `flags` are the names of the command's own options."""
    options = dict(pairs)
    for name in options:
        if name in flags:
            raise OptionError(f"--option {_dashed(name)}: write --{_dashed(name)} instead.")
        if name in _IN_PYTHON:
            raise OptionError(f"--{_dashed(name)}: this option works in Python only.")
    if len(options) < len(pairs):
        raise OptionError("--option: each name may be given once.")
    return options


@contextmanager
def own_spelling(options: Iterable[str], flags: Iterable[str]) -> Iterator[None]:
    """A context whose errors about options spell them as the command line does: `--step-size` in place of `step_size`.

    The command's own options, `flags`, are replaced only where they have a value, as in `steps=`: they may be words.
    """
    try:
        yield
    except OptionError as error:
        names = {*options, *error.options}
        assigned = names.union(flags)
        text = _ASSIGNED.sub(lambda found: f"--{_dashed(found[1])} {found[3]}".rstrip() if found[1] in assigned else found[0], str(error))
        for name in names:
            text = re.sub(rf"(?<![\w\-'./]){re.escape(name)}(?![\w/])", f"--{_dashed(name)}", text)
        raise OptionError(text, error.options) from error


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"an option is written NAME=VALUE, got {text!r}")
    return name, _value(value.strip())


def _value(text: str) -> Any:
    """Returns text as a number, True, False or None, if it is one."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
