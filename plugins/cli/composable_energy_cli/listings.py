"""The commands `energies` and `plugins`: the names for expressions, and the installed plug-ins."""

import argparse
import shutil
import sys
import textwrap

from composable_energy.options import printable, text_table
from composable_energy.registry import Command
from composable_energy_cli.terms import json_text
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
        # trained ones first, then those that are ready, those that need arguments, untrained ones, and those that do not load
        entries.sort(key=lambda one: (one.error is not None, one.trained is False, bool(one.needs), one.trained is None))
        owners = ["" if one.distribution == LIBRARY else f"  ({one.distribution or 'this session'})" for one in entries]
        cells = [(one.name, one.state or "ready", (one.error or one.summary) + owner) for one, owner in zip(entries, owners, strict=True)]
        lines = text_table(_HEADER, cells).splitlines()
        margin = " " * lines[0].index(_HEADER[2])
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 140
        for entry, line in zip([None, *entries], lines, strict=True):
            print(line if len(line) <= width else f"{line[: width - 3].rstrip()}...")
            if entry is not None and entry.members:
                members = ", ".join(printable(f"{entry.name}/{member}") for member in entry.members)
                print(textwrap.fill(members, max(width, 80), initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False))
        return 0


class Plugins(Command):
    """The command `composable-energy plugins`: the installed plug-ins and their distributions."""

    summary = "list the plug-ins"
    description = "Lists the plug-ins that were found, without importing them."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--load", action="store_true", help="import each plug-in and show whether it loads")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        import composable_energy as ce

        with foreign_output():
            rows = ce.plugins(load=arguments.load)
        if arguments.json:
            print(json_text([vars(row) for row in rows]))
            return 0
        owners = [f"{row.distribution or 'this session'} {row.version or ''}".strip() for row in rows]
        cells = [(row.group.rpartition(".")[2], row.name, row.value, owner, row.state) for row, owner in zip(rows, owners, strict=True)]
        print(text_table(("group", "name", "from", "offered by", "state"), cells))
        for row in rows:
            if row.error:
                print(printable(f"\n{row.qualified if row.name else row.distribution}: {row.error}"))
        return 0
