"""A recipe of training: the settings are in `recipe.toml`, which changes those of an installed recipe."""

from pathlib import Path

from composable_energy_training import Recipe, open_recipe

__all__ = ["recipe"]


def recipe() -> Recipe:
    """Returns the recipe. For a training of another kind, return an instance of a subclass of `Recipe` with its own `run`."""
    return open_recipe(Path(__file__).with_name("recipe.toml"))
