"""The command `energies`: the names for expressions."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from composable_energy.cli.tables import json_text
from composable_energy.cli.trial import foreign_output
from composable_energy.errors import ComposableEnergyError, PluginNotFound
from composable_energy.printable import describe_error, one_line, printable
from composable_energy.registry import Command

if TYPE_CHECKING:
    from composable_energy.registry import PluginRecord

__all__ = ["Energies", "list_energies"]


@dataclass(frozen=True)
class EnergyEntry:
    """An entry with its members, or the error if it does not load."""

    name: str
    distribution: str | None
    members: tuple[str, ...] = ()
    error: str | None = None


class Energies(Command):
    """The command `composable-energy energies`: the names for expressions."""

    summary = "list the names of energies"
    description = "Lists energies and members of families."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        """Prints the entries; imports plug-ins, without reading weights."""
        from composable_energy.registry import plugins

        with foreign_output():
            entries = list_energies(plugins())
        if arguments.json:
            print(json_text([vars(entry) for entry in entries]))
            return 0
        if not entries:
            print("There are no energies with names; `composable-energy plugins` shows what was found.")
        for entry in entries:
            failed = f"  failed: {entry.error}" if entry.error else ""
            print(printable(f"{entry.name}  ({entry.distribution or 'this session'}){failed}"))
            for member in entry.members:
                print(f"  {one_line(entry.name)}/{one_line(member)}")
        return 0


def list_energies(rows: list[PluginRecord]) -> list[EnergyEntry]:
    """Returns the entries of energies with their members, without reading weights."""
    from composable_energy.catalog import get_family

    found = []
    for row in rows:
        if row.group != "composable_energy.energies" or row.state == "shadowed":
            continue
        name = row.qualified if row.state == "conflict" else row.name
        try:
            members = tuple(get_family(name).members())
            if not all(isinstance(member, str) for member in members):
                raise TypeError("its members are not names")
            found.append(EnergyEntry(name, row.distribution, members))
        except PluginNotFound:  # not a family
            found.append(EnergyEntry(name, row.distribution))
        except ComposableEnergyError as error:
            found.append(EnergyEntry(name, row.distribution, error=printable(error)))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # third-party code; the other entries are still listed
            found.append(EnergyEntry(name, row.distribution, error=f"listing its members raised {describe_error(error)}"))
    return found
