import argparse
import textwrap
from typing import Any

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError
from composable_energy.options import printable
from composable_energy.registry import names
from composable_energy_cli import Command, json_text

_WIDTH = 100


class Recipes(Command):
    """`composable-energy recipes`: lists recipes with their needs and costs, or shows one."""

    summary = "list the training recipes, or show one"
    description = "Lists the recipes of `composable-energy train` with their needs and costs. With a name, shows the file of that recipe."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", metavar="NAME", help="the recipe to show, or a file that ends in .toml")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        if arguments.name is not None:
            return _show(arguments)
        rows = _rows()
        if arguments.json:
            print(json_text(rows))
            return 0
        if not rows:
            print("No recipes are installed; `composable-energy plugins` lists the plug-ins.")
        for row in rows:
            print(printable(row["name"] + (f"  failed: {row['error']}" if "error" in row else "")))
            for key in ("about", "source", "needs", "cost"):
                if row.get(key):
                    label = "" if key == "about" else f"{key}: "
                    print(textwrap.fill(printable(f"{label}{row[key]}"), _WIDTH, initial_indent="  ", subsequent_indent="    "))
        return 0


def _show(arguments: argparse.Namespace) -> int:
    from composable_energy_training import open_recipe

    recipe = open_recipe(arguments.name)
    if arguments.json:
        print(json_text({**_summarize(recipe), "settings": recipe.resolved_settings()}))
    else:
        print(printable((recipe.text or recipe.toml()).rstrip("\n")))
    return 0


def _rows() -> list[dict[str, Any]]:
    rows = []
    for name in names("recipe"):
        try:
            rows.append({**_summarize(ce.get("recipe", name)), "name": name})
        except ComposableEnergyError as error:
            rows.append({"name": name, "error": str(error)})
    return rows


def _summarize(recipe: Any) -> dict[str, Any]:
    return {key: getattr(recipe, key) for key in ("name", "about", "source", "needs", "cost")}
