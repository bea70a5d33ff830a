"""Checks of recipes, for first-party and third-party plug-ins; see `composable_energy.testing`."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from composable_energy.errors import OptionError
from composable_energy.testing import Check, SkipCheck, build_subject, named_checks, run_checks
from composable_energy_training.recipe import Recipe, open_recipe
from composable_energy_training.toml import flatten

__all__ = ["check_recipe", "recipe_checks"]

RecipeLike = str | Recipe | Callable[[], Recipe]
_TEXTS = ("about", "source", "needs", "cost")
_EVERYWHERE = ("data.labels", "data.limit", "training.seed", "training.device")
_PLAIN = (str, int, float, bool, type(None), list, tuple)


def check_recipe(
    recipe: RecipeLike,
    data: str | Path | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> None:
    """Runs the checks of a recipe; see `recipe_checks` for the arguments, and `run_checks` for `expected_failures`."""
    run_checks(recipe_checks(recipe, data, changes=changes), expected_failures)


def recipe_checks(recipe: RecipeLike, data: str | Path | None = None, *, changes: Mapping[str, Any] | None = None) -> list[Check]:
    """Returns the checks of a recipe.

    | name | what is checked |
    |---|---|
    | `build` | it can be built, and is a `Recipe` |
    | `texts` | `about`, `source`, `needs` and `cost` are there, for `composable-energy recipes` |
    | `settings` | settings are tables of plain data, with those that the command line sets: `data.labels`, `training.seed`, ... |
    | `changes` | each setting accepts its own value; a new seed is set, the recipe itself stays as it is; a misspelt setting is refused |
    | `file` | the TOML document has all settings, and reads back as the same recipe |
    | `folder` | `save` twice is allowed; a folder with other settings is refused, but for the number of steps |
    | `run` | `run` saves the recipe, returns an existing folder, and returns the same one when it is called again |
    | `repeat` | another folder gets the same files of weights, to the bit |

    `run` and `repeat` need data.

    Args:
        recipe: The recipe, its name, or a function without arguments that builds it.
        data: A small data set, to train with; None leaves training out.
        changes: Settings that make the training short, by dotted key.
    """
    return named_checks(_CHECKS, _Subject(recipe, None if data is None else Path(data), dict(changes or {})))


@dataclass(frozen=True)
class _Subject:
    source: RecipeLike
    data: Path | None
    changed: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def recipe(self) -> Recipe:
        return build_subject(self.source, Recipe, open_recipe)

    def run(self, out: Path) -> Path:
        """Trains in a folder; returns the folder of the result."""
        assert self.data is not None
        return Path(self.recipe.with_changes(self.changed).run(self.data, out))


def _build(subject: _Subject) -> None:
    _ = subject.recipe  # raises if it cannot be built


def _texts(subject: _Subject) -> None:
    missing = [name for name in _TEXTS if not str(getattr(subject.recipe, name)).strip()]
    assert not missing, f"{', '.join(missing)} is empty; `composable-energy recipes` shows it"


def _settings(subject: _Subject) -> None:
    settings = subject.recipe.settings
    loose = [name for name, table in settings.items() if not isinstance(table, Mapping)]
    assert not loose, f"{', '.join(loose)} is in no table; settings are tables, such as `training`"
    flat = flatten(settings)
    odd = [f"{key} ({type(value).__name__})" for key, value in flat.items() if not isinstance(value, _PLAIN) and value != {}]
    assert not odd, f"not plain data: {', '.join(odd)}"
    known = subject.recipe.setting_types({})
    missing = [key for key in _EVERYWHERE if key not in known]
    assert not missing, f"there is no setting {', '.join(missing)}; the command line has an option for it, and 'none' stands for None"


def _changes(subject: _Subject) -> None:
    recipe = subject.recipe
    before = flatten(recipe.settings)
    after = flatten(recipe.with_changes({key: value for key, value in before.items() if value != {}}).settings)
    differing = [key for key in after if before.get(key) != after[key] and before.get(key) not in (None, "none")]
    assert not differing, f"`with_changes` with its own values changes {', '.join(differing)}"
    seed = _seed(recipe) + 1
    changed = recipe.with_changes({"training.seed": seed})
    assert flatten(changed.settings)["training.seed"] == seed, "`with_changes` does not set training.seed"
    assert flatten(recipe.settings) == before, "`with_changes` changes the recipe itself; return a new one"
    try:
        recipe.with_changes({"training.no-such-setting": 1})
    except OptionError:
        return
    raise AssertionError("`with_changes` accepts a setting that does not exist")


def _file(subject: _Subject) -> None:
    recipe = subject.recipe
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.toml").write_text(recipe.toml(), encoding="utf-8")
        read = type(recipe).read(folder / "recipe.toml") if not recipe.entry else open_recipe(folder / "recipe.toml")
    assert type(read) is type(recipe), f"its file reads back as a {type(read).__name__}"
    before, after = flatten(recipe.resolved_settings()), flatten(read.resolved_settings())
    differing = [key for key in {**before, **after} if (before.get(key) or "none") != (after.get(key) or "none")]
    assert not differing, f"its file reads back with another {', '.join(differing)}"


def _folder(subject: _Subject) -> None:
    recipe = subject.recipe
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe.save(folder / "run")
        recipe.save(folder / "run")
        try:
            recipe.with_changes({"training.seed": _seed(recipe) + 1}).save(folder / "run")
        except OptionError:
            return
    raise AssertionError("`save` accepts the folder of a run with another seed")


def _run(subject: _Subject) -> None:
    _require_data(subject)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = subject.run(folder / "run")
        assert (folder / "run" / "recipe.toml").is_file(), "`run` does not call `save`, so the folder does not say what it holds"
        assert result.is_dir(), f"`run` returns {result}, which is no folder"
        again = subject.run(folder / "run")
        assert again == result, f"called again `run` returns {again}, at first {result}"


def _repeat(subject: _Subject) -> None:
    _require_data(subject)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = []
        for run in ("one", "two"):
            result = subject.run(folder / run)
            weights.append({file.relative_to(result): file.read_bytes() for file in sorted(result.rglob("*.safetensors"))})
        first, second = weights
        assert first.keys() == second.keys(), "two runs write different files"
        differing = [str(name) for name in first if first[name] != second[name]]
        assert not differing, f"two runs with one seed write different weights: {', '.join(differing)}; use training.seed for all draws"


def _seed(recipe: Recipe) -> int:
    return flatten(recipe.resolved_settings()).get("training.seed", 0)


def _require_data(subject: _Subject) -> None:
    if subject.data is None:
        raise SkipCheck("no data is given")


_CHECKS = (_build, _settings, _texts, _changes, _file, _folder, _run, _repeat)
