"""The command line: `composable-energy sample "male & ~smiling" -o grid.png`.

Each command is a `Command`, in this folder or an entry point of the group `composable_energy.commands`. Exit codes: 0 success, 1 `doctor`
found a problem, 2 bad input, 130 interrupted by Ctrl-C, 141 broken pipe. Torch is not imported before the arguments are parsed.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, PluginLoadError, StorageError
from composable_energy.options import describe_error, printable, ran_out
from composable_energy.options import text_table as table
from composable_energy.registry import Command
from composable_energy.registry import names as installed
from composable_energy_cli.foreign import foreign_output
from composable_energy_cli.listings import Doctor, Energies, Plugins
from composable_energy_cli.names import saved_in
from composable_energy_cli.new_plugin import NewPlugin
from composable_energy_cli.parser import Parser, whole_number
from composable_energy_cli.sample import Sample
from composable_energy_cli.terms import Explain, json_text

__all__ = ["Command", "json_text", "main", "saved_in", "table", "whole_number"]

_COMMANDS: Mapping[str, type[Command]] = {
    "sample": Sample,
    "explain": Explain,
    "energies": Energies,
    "plugins": Plugins,
    "new-plugin": NewPlugin,
    "doctor": Doctor,
}
_BAD_INPUT, _INTERRUPTED, _NO_READER = 2, 130, 141
_RUN = "run of the command"  # no name that an argument of a plug-in has


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command with arguments, those of the process if None, and returns its exit code.

    Raises:
        SystemExit: The arguments are invalid, or request help or the version.
    """
    for name in ("stdin", "stdout", "stderr"):  # closed by the caller; the files opened next would take their places
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w"))  # noqa: SIM115
    words = sys.argv[1:] if arguments is None else list(arguments)
    parsed = None
    try:
        try:
            Path.cwd()
        except FileNotFoundError as error:  # torch ends the process there
            raise StorageError("the working directory was deleted: change to another.") from error
        parsed = _parser(next((word for word in words if not word.startswith("-")), None)).parse_args(words)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = vars(parsed)[_RUN](parsed)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as error:
        for note in getattr(error, "__notes__", ()):
            print(f"composable-energy: interrupted: {printable(note)}", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # so that closing the output at exit does not fail again; in tests it is no real file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NO_READER
    except (ComposableEnergyError, OSError, MemoryError, RuntimeError) as error:
        full = ran_out(error)
        if not (full or isinstance(error, ComposableEnergyError | OSError)) or (parsed is not None and parsed.traceback):
            raise
        text = "Memory ran out: ask for fewer (-n), or evaluate fewer at a time (--batch-size)." if full else printable(error)
        print(f"composable-energy: error: {text}", file=sys.stderr)
        return _BAD_INPUT


def _show_warning(message: Warning | str, *_: object) -> None:
    """Shows a warning as the errors are shown, without the line of Python that it comes from."""
    print(f"composable-energy: warning: {printable(message)}", file=sys.stderr)


@contextmanager
def _third_party(name: str) -> Iterator[None]:
    """A context for code of a plug-in's command: what it prints goes to stderr, what it raises is a `PluginLoadError`."""
    try:
        with foreign_output():
            yield
    except (KeyboardInterrupt, GeneratorExit, ComposableEnergyError):
        raise
    except BaseException as error:
        raise PluginLoadError(f"The command {name!r} cannot be used: building it raised {describe_error(error)}.") from error


def _add_command(commands: Any, name: str, common: Parser, *, whole: bool) -> None:
    """Adds a command to the parser, with its arguments if they are needed."""
    with nullcontext() if name in _COMMANDS else _third_party(name):
        command = _COMMANDS[name]() if name in _COMMANDS else ce.get("command", name)()
        summary, description = printable(command.summary), command.description or command.summary
        sub = commands.add_parser(name, parents=[common], help=summary.replace("%", "%%"), description=description)
        if whole:
            command.add_arguments(sub)
        sub.set_defaults(**{_RUN: command.run})


def _parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """Returns the parser of one command; of all commands if the name is unknown."""
    debugging = Parser(add_help=False)
    asked = bool(os.environ.get("COMPOSABLE_ENERGY_TRACEBACK"))
    about = "show the traceback of an error; also with COMPOSABLE_ENERGY_TRACEBACK=1"
    debugging.add_argument("--traceback", action="store_true", default=asked, help=about)
    parser = Parser(
        prog="composable-energy",
        description="Combine energy-based models with logic, and sample from the combination.",
        epilog='Put expressions in quotes: composable-energy sample "male & ~smiling" -n 16 --seed 0 -o grid.png',
    )
    parser.add_argument("--version", action="version", version=f"composable-energy {ce.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    known = [*_COMMANDS, *map(_unshadowed, installed("command"))]
    for name in [wanted] if wanted in known else known:
        try:
            _add_command(commands, name, debugging, whole=name == wanted)
        except ComposableEnergyError as error:
            if name == wanted:
                raise
            commands.add_parser(name, help=printable(f"not usable: {error}").replace("%", "%%"))
    return parser


def _unshadowed(name: str) -> str:
    """Returns the name of a plug-in's command; with its distribution where a command of this package has the name."""
    if name not in _COMMANDS:
        return name
    return next(row.qualified for row in ce.plugins() if row.group == "composable_energy.commands" and row.name == name)
