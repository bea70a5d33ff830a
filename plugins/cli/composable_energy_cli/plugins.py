"""The command `plugins`: the installed plug-ins."""

import argparse

from composable_energy.options import printable
from composable_energy.registry import Command
from composable_energy_cli.tables import json_text, table
from composable_energy_cli.trial import foreign_output


class Plugins(Command):
    """The command `composable-energy plugins`: the installed plug-ins and their distributions."""

    summary = "list the plug-ins"
    description = "Lists the plug-ins that were found, without importing them."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--load", action="store_true", help="import each plug-in and show whether it loads")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        """Prints a row for each plug-in, and the errors of those that fail."""
        import composable_energy as ce

        with foreign_output():
            rows = ce.plugins(load=arguments.load)
        if arguments.json:
            print(json_text([vars(row) for row in rows]))
            return 0
        owners = [f"{row.distribution or 'this session'} {row.version or ''}".strip() for row in rows]
        cells = [(row.group.rpartition(".")[2], row.name, row.value, owner, row.state) for row, owner in zip(rows, owners, strict=True)]
        print(table(("group", "name", "from", "offered by", "state"), cells))
        for row in rows:
            if row.error:
                print(printable(f"\n{row.qualified if row.name else row.distribution}: {row.error}"))
        return 0
