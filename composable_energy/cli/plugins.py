"""`composable-energy plugins`: who offers which energies, samplers, encoders, kernels, recipes and worlds."""

from __future__ import annotations

import argparse
from typing import Any

from composable_energy.cli.tables import json_text, table

__all__ = ["add", "run"]


def add(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command's arguments."""
    parser = commands.add_parser(
        "plugins",
        parents=parents,
        help="list the plug-ins",
        description="Lists the plug-ins that were found, without importing them.",
    )
    parser.add_argument("--load", action="store_true", help="import each, and say whether it works")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(asked: argparse.Namespace) -> int:
    """Prints one row for each plug-in, and below it why those that fail do."""
    from composable_energy.registry import plugins

    rows = plugins(load=asked.load)
    if asked.json:
        print(json_text([vars(row) for row in rows]))
        return 0
    cells = [
        (row.group.rpartition(".")[2], row.name, row.value, f"{row.distribution or 'this session'} {row.version or ''}".strip(), row.state)
        for row in rows
    ]
    print(table(("group", "name", "from", "offered by", "state"), cells))
    for row in rows:
        if row.error:
            print(f"\n{row.qualified if row.name else row.distribution}: {row.error}")
    return 0
