"""Commands of the command line that plug-ins add."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod


class Command(ABC):
    """Abstract command of `composable-energy`; an entry point of the group `composable_energy.commands` names a subclass.

    `composable-energy --help` imports the module of each command: import slow modules, such as torch, in `run`.

    Attributes:
        summary: What the command does, in one line.
        description: The text of `composable-energy NAME --help`; the summary where it is empty.

    Example:
        >>> class Greet(Command):
        ...     summary = "greet somebody"
        ...
        ...     def add_arguments(self, parser):
        ...         parser.add_argument("name")
        ...
        ...     def run(self, arguments):
        ...         print(f"Hello {arguments.name}")
        ...         return 0
    """

    summary: str
    description: str = ""

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the arguments of the command to its parser."""

    @abstractmethod
    def run(self, arguments: argparse.Namespace) -> int:
        """Runs the command and returns the exit code: 0 for success, 2 for bad input.

        A `ComposableEnergyError` or an `OSError` is printed as one line, with exit code 2.
        """
