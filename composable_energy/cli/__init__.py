"""The command line: `composable-energy sample "male & ~smiling" -o grid.png`.

Each command is a file with `add`, which says what it takes, and `run`, which returns the exit code: 0 all is well, 1 `doctor` found a
failure, 2 bad input, 130 interrupted by Ctrl-C, 141 the reader of the output went away. Nothing here imports torch before the arguments
are read.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from composable_energy import __version__
from composable_energy.cli import doctor, energies, explain, plugins, recipes, render, sample, train
from composable_energy.errors import ComposableEnergyError

__all__ = ["main"]

_COMMANDS = (sample, explain, train, recipes, render, energies, plugins, doctor)
_BAD_INPUT, _INTERRUPTED, _NO_READER = 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        arguments: The arguments; None takes those of the process.

    Raises:
        SystemExit: The arguments are not understood, or ask for help or the version.
    """
    asked = _parser().parse_args(arguments)
    try:
        code = asked.run(asked)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return _NO_READER
    except (ComposableEnergyError, OSError) as error:
        if asked.traceback:
            raise
        print(f"composable-energy: error: {error}", file=sys.stderr)
        return _BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    debugging = argparse.ArgumentParser(add_help=False)
    debugging.add_argument(
        "--traceback",
        action="store_true",
        default=bool(os.environ.get("COMPOSABLE_ENERGY_TRACEBACK")),
        help="show where an error comes from; also with COMPOSABLE_ENERGY_TRACEBACK=1",
    )
    parser = argparse.ArgumentParser(
        prog="composable-energy",
        description="Combine energy-based models with logic, and draw from what they say together.",
        epilog='Put expressions in quotes: composable-energy sample "male & ~smiling" -n 16 --seed 0 -o grid.png',
    )
    parser.add_argument("--version", action="version", version=f"composable-energy {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands, [debugging])
    return parser


def _drop_output() -> None:
    """Sends what is still to be written nowhere, so that closing the output at exit does not fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # no real file, as under a test
        return
