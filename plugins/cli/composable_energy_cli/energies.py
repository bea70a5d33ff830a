"""The command `energies`: the names for expressions."""

import argparse
import shutil
import sys
import textwrap
from typing import Any

from composable_energy.options import printable
from composable_energy.registry import Command
from composable_energy_cli.tables import json_text, table
from composable_energy_cli.trial import LIBRARY, foreign_output

_HEADER = ("energy", "state", "what it is")


class Energies(Command):
    """The command `composable-energy energies`: the names for expressions."""

    summary = "list the energies, trained or not"
    description = (
        "Lists the energies with one line each, those that can be sampled first, and the members of families. `untrained` energies are "
        "networks with random weights, to train or to load weights into; energies that need arguments are built in Python."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", metavar="NAME", help="the energy to list (default: all)")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        """Prints the entries; imports plug-ins, without reading weights."""
        import composable_energy as ce

        with foreign_output():
            found = ce.installed()
        entries = list(found) if arguments.name is None else [found[arguments.name]]
        if arguments.json:
            print(json_text([{**vars(entry), "state": entry.state} for entry in entries]))
            return 0
        if not entries:
            print("There are no energies with names; `composable-energy plugins` shows what was found.")
            return 0
        entries.sort(key=_order)
        lines = table(_HEADER, [(entry.name, entry.state or "ready", _line(entry)) for entry in entries]).splitlines()
        margin = " " * lines[0].index(_HEADER[2])
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 140
        for entry, line in zip([None, *entries], lines, strict=True):
            print(line if len(line) <= width else f"{line[: width - 3].rstrip()}...")
            if entry is not None and entry.members:
                members = ", ".join(printable(f"{entry.name}/{member}") for member in entry.members)
                print(textwrap.fill(members, max(width, 80), initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False))
        return 0


def _order(entry: Any) -> tuple[bool, bool, bool, bool]:
    """Sorts energies that can be sampled at once before others: trained ones, ready ones, those with arguments, and untrained ones."""
    return entry.error is not None, entry.trained is False, bool(entry.needs), entry.trained is None


def _line(entry: Any) -> str:
    """Returns what an energy is, or why it does not load, and the package of a third party."""
    owner = "" if entry.distribution == LIBRARY else f"  ({entry.distribution or 'this session'})"
    return (entry.error or entry.summary) + owner
