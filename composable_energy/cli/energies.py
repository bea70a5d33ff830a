"""The command `energies`: the names for expressions."""

from __future__ import annotations

import argparse

from composable_energy.cli.tables import json_text
from composable_energy.registry import Command

__all__ = ["Energies"]


class Energies(Command):
    """The command `composable-energy energies`: the names for expressions."""

    summary = "list the names of energies"
    description = "Lists energies and members of families."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        """Prints the entries; imports plug-ins, without reading weights."""
        from composable_energy.installed import describe_energies
        from composable_energy.registry import plugins

        entries = describe_energies(plugins())
        if arguments.json:
            print(json_text([vars(entry) for entry in entries]))
            return 0
        if not entries:
            print("There are no energies with names; `composable-energy plugins` shows what was found.")
        for entry in entries:
            print(f"{entry.name}  ({entry.distribution or 'this session'})" + (f"  failed: {entry.error}" if entry.error else ""))
            for member in entry.members:
                print(f"  {entry.name}/{member}")
        return 0
