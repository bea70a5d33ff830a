"""Recipes by name: the papers' settings, and small ones of our own; `cd_small` and so on read the TOML files beside this module."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from composable_energy_training import Recipe, open_recipe


def __getattr__(name: str) -> Callable[[], Recipe]:
    if not (file := Path(__file__).with_name(f"{name.replace('_', '-')}.toml")).is_file():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(open_recipe, file)
