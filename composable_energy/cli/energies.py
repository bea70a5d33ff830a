"""`composable-energy energies`: what can stand in an expression."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from composable_energy.cli.tables import json_text
from composable_energy.errors import ComposableEnergyError, PluginNotFound
from composable_energy.registry import Command

if TYPE_CHECKING:
    from composable_energy.registry import PluginRecord

__all__ = ["Energies", "list_energies"]


@dataclass(frozen=True)
class EnergyEntry:
    """An entry with its members; an error where it does not load."""

    name: str
    distribution: str | None
    members: tuple[str, ...] = ()
    error: str | None = None


class Energies(Command):
    """`composable-energy energies`: what can stand in an expression."""

    summary = "list the energies that have names"
    description = "Lists energies and members of families."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        """Prints the entries; the modules of plug-ins are imported, weights are not read."""
        from composable_energy.registry import plugins

        entries = list_energies(plugins())
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


def list_energies(rows: list[PluginRecord]) -> list[EnergyEntry]:
    """Returns the entries of energies among plug-ins, with their members; weights are not read."""
    from composable_energy.catalog import get_family

    found = []
    for row in rows:
        if row.group != "composable_energy.energies" or row.state == "shadowed":
            continue
        name = row.qualified if row.state == "conflict" else row.name
        try:
            found.append(EnergyEntry(name, row.distribution, get_family(name).members()))
        except PluginNotFound:  # it is a single energy
            found.append(EnergyEntry(name, row.distribution))
        except ComposableEnergyError as error:
            found.append(EnergyEntry(name, row.distribution, error=str(error)))
        except Exception as error:  # a stranger's code; the others are listed all the same
            found.append(EnergyEntry(name, row.distribution, error=f"listing its members raised {type(error).__name__}: {error}"))
    return found
