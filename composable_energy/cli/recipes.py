"""`composable-energy recipes`: what can be trained, and what it needs and costs."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from composable_energy.cli.tables import json_text
from composable_energy.errors import ComposableEnergyError

__all__ = ["add", "run"]

_WIDTH = 100


def add(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command's arguments."""
    parser = commands.add_parser(
        "recipes",
        parents=parents,
        help="list the recipes of training, or show one",
        description="Lists the recipes that `composable-energy train` knows, with what they need and cost; with a name shows its file.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the recipe to show, or a file that ends in .toml")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(asked: argparse.Namespace) -> int:
    """Prints all recipes, or the file of one."""
    if asked.name is not None:
        return _show(asked)
    rows = _rows()
    if asked.json:
        print(json_text(rows))
        return 0
    if not rows:
        print("There are no recipes; `composable-energy plugins` shows what was found.")
    for row in rows:
        print(f"{row['name']}" + (f"  failed: {row['error']}" if "error" in row else ""))
        for key in ("about", "source", "needs", "cost"):
            if row.get(key):
                label = "" if key == "about" else f"{key}: "
                print(textwrap.fill(f"{label}{row[key]}", _WIDTH, initial_indent="  ", subsequent_indent="    "))
    return 0


def _show(asked: argparse.Namespace) -> int:
    from composable_energy.training import open_recipe

    recipe = open_recipe(asked.name)
    if asked.json:
        print(json_text({**_told(recipe), "settings": recipe.written()}))
    else:
        print((recipe.text or recipe.toml()).rstrip("\n"))
    return 0


def _rows() -> list[dict[str, Any]]:
    from composable_energy.registry import get_recipe, plugins

    rows = []
    for record in plugins():
        if record.group != "composable_energy.recipes" or record.state == "shadowed":
            continue
        name = record.qualified if record.state == "conflict" else record.name
        try:
            rows.append({**_told(get_recipe(name)), "name": name})
        except ComposableEnergyError as error:
            rows.append({"name": name, "error": str(error)})
    return rows


def _told(recipe: Any) -> dict[str, Any]:
    return {key: getattr(recipe, key) for key in ("name", "about", "source", "needs", "cost")}
