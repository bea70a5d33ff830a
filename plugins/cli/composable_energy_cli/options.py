"""Options of samplers on the command line: `--step-size 0.1` or `--option step-size=0.1`, and the same spelling in errors."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from composable_energy.errors import OptionError
from composable_energy_cli.parser import each_once

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
