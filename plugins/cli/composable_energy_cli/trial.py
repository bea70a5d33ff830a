"""Loading of third-party plug-ins in a process of their own, so that one that hangs, exits or prints harms no command."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from composable_energy.options import describe_error, printable

LIBRARY = "composable-energy"
"""The distribution of the library."""
LIMIT = 60.0
"""Seconds that the plug-ins of a distribution may take to load."""


@dataclass(frozen=True)
class Trial:
    """What came of loading a plug-in."""

    error: str | None = None  # why it does not load; None if it does
    members: int = 0  # of a family of energies
    kernel: str | None = None  # whether a kernel can run here, in words


@contextlib.contextmanager
def foreign_output() -> Iterator[None]:
    """Sends what third-party code prints to stderr, so that JSON on stdout stays whole."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def try_plugins(rows: Sequence[Any], limit: float = LIMIT) -> list[Trial]:
    """Loads plug-ins, by their records, in other processes; one that does not end is named, and the others are tried without it."""
    found: dict[int, Trial] = {}
    todo = list(range(len(rows)))
    while todo:
        distribution = rows[todo[0]].distribution
        some = [i for i in todo if rows[i].distribution == distribution]
        answers, problem = _run([(rows[i].group.rpartition(".")[2], rows[i].qualified) for i in some], limit)
        found |= {i: Trial(**answer) for i, answer in zip(some, answers, strict=False)}
        if len(answers) < len(some):
            found[some[len(answers)]] = Trial(error=problem)
        todo = [i for i in todo if i not in found]
    return [found[i] for i in range(len(rows))]


def _run(entries: list[tuple[str, str]], limit: float) -> tuple[list[dict[str, Any]], str]:
    """Returns the answers of a process that loads some plug-ins, and why it answered no more."""
    here, there = os.pipe()
    with os.fdopen(here, "rb") as answers:
        code = f"import sys; sys.path[:] = {sys.path!r}; from composable_energy_cli.trial import serve; serve({there}, {entries!r})"
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[there]
        )
        os.close(there)
        problem = f"loading it did not end within {limit:g} s"
        try:
            problem = f"loading it ended the process with exit code {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            process.kill()
        return [json.loads(line) for line in answers.read().splitlines()], problem


def serve(pipe: int, entries: Sequence[tuple[str, str]]) -> None:
    """Loads plug-ins, by the last word of their group and their qualified name, and writes a line of JSON for each to a pipe."""
    from composable_energy.errors import PluginNotFound
    from composable_energy.registry import get, get_factory, members_of

    for group, name in entries:
        kind, answer = "energy" if group == "energies" else group.removesuffix("s"), Trial()
        try:
            get_factory(kind, name)
            if kind == "energy":
                with contextlib.suppress(PluginNotFound):  # not a family
                    answer = Trial(members=len(members_of(name)))
            elif kind == "kernel":
                answer = Trial(kernel=kernel_state(get("kernel", name)))
        except BaseException as error:
            answer = Trial(error=printable(error) if type(error).__module__ == "composable_energy.errors" else describe_error(error))
        os.write(pipe, f"{json.dumps(asdict(answer))}\n".encode())


def kernel_state(kernel: Any) -> str:
    """Returns in words whether a kernel can run on this machine."""
    try:
        answer = kernel.available()
        ready, reason = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
        return "ready" if ready else f"not available here{f': {reason}' if reason else ''}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # third-party code
        return describe_error(error)
