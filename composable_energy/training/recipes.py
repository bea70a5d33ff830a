"""Recipes: everything that a training needs but the data, with a name, in one file."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composable_energy.errors import FileFormatError, OptionError
from composable_energy.registry import get_recipe
from composable_energy.registry.registry import listed, nearest
from composable_energy.training.toml import flat, nested, read_toml, toml_text

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Recipe", "open_recipe"]

_HEAD = ("about", "source", "needs", "cost")
_FILE = "recipe.toml"
# What may change between a run and its continuation: how long and where, not what.
_FREE = frozenset({"training.steps", "training.device", "training.keep"})


@dataclass(frozen=True)
class Recipe(ABC):
    """Abstract recipe: settings, and how energies are trained with them. A subclass writes `run`, and is final.

    Settings are nested plain data: numbers, texts, true and false, lists of those, and None. Every recipe has `data.labels` (a CSV of
    attributes, or None), `data.limit` (how many pictures at most, or None), `training.seed` and `training.device`, which the command line
    sets by options of their own.

    Args:
        name: What people ask for.
        about: What comes out.
        source: The paper, with its section or table.
        needs: Data and hardware.
        cost: Time, in words.
        settings: Such as `{"model": {"name": "igebm-resnet32"}, "training": {"steps": 1000}}`.
        text: The file as its author wrote it, with comments.
    """

    name: str
    about: str
    source: str
    needs: str
    cost: str
    settings: Mapping[str, Any]
    text: str = ""

    @classmethod
    def read(cls, file: str | Path) -> Self:
        """Returns the recipe in a TOML file: texts `about`, `source`, `needs` and `cost`, then tables of settings.

        Raises:
            FileFormatError: The file is missing or not TOML, or has other keys beside the tables.
        """
        path = Path(file)
        text, head, settings = _read(path)
        about, source, needs, cost = (head.get(key, "") for key in _HEAD)
        return cls(path.stem, about, source, needs, cost, settings, text)

    @abstractmethod
    def run(self, data: Path, out: Path, *, progress: bool = False) -> Path:
        """Trains, or goes on with what was killed, and returns the folder of the finished energy or energies.

        Args:
            data: A folder of pictures.
            out: Where checkpoints and energies go. `claim` it first.
            progress: Whether to show a bar.

        Raises:
            OptionError: The folder holds another recipe's run, or a setting does not fit the data.
            FileFormatError: The data cannot be read.
        """

    def accepted(self) -> Mapping[str, Any]:
        """Returns the dotted keys that can be set, with their default values; those that the recipe says if not written anew."""
        return flat(self.settings)

    def settled(self, changes: Mapping[str, Any]) -> Self:
        """Returns the recipe with some settings changed.

        Args:
            changes: By dotted key, such as `{"training.steps": 100}`.

        Raises:
            OptionError: A key is unknown, or a value has another type than the one that is there.
        """
        known, current = self.accepted(), flat(self.settings)
        for key, value in changes.items():
            if key not in known:
                raise OptionError(f"The recipe {self.name!r} has no setting {key!r}.{_hint(key, known)}")
            current[key] = _checked(key, value, [known[key], current.get(key, known[key])])
        return replace(self, settings=nested(current))

    def with_steps(self, steps: int) -> Self:
        """Returns the recipe with another number of steps; one of several stages says how it shares them out."""
        return self.settled({"training.steps": steps})

    def claim(self, out: Path) -> None:
        """Writes the recipe to a folder as it was settled, so that a run documents itself.

        Raises:
            OptionError: The folder holds a run with other settings.
        """
        file = out / _FILE
        if file.is_file():
            _, _, there = _read(file)
            differ = [line for line in _differences(flat(there), flat(self.settings)) if line.split(":")[0] not in _FREE]
            if differ:
                shown = "; ".join(differ[:6]) + ("; ..." if len(differ) > 6 else "")
                raise OptionError(
                    f"{out} holds a run with other settings ({shown}). Go on with those, name another folder, or delete that one."
                )
        out.mkdir(parents=True, exist_ok=True)
        head = {key: getattr(self, key) for key in _HEAD}
        beside = file.with_name(f".{_FILE}.{os.getpid()}")
        beside.write_text(f"# The recipe {self.name}, as it was settled.\n" + toml_text({**head, **self.settings}), encoding="utf-8")
        beside.replace(file)


def open_recipe(name: str | Path) -> Recipe:
    """Returns a recipe by name, or the one in a TOML file.

    A file with `extends = "NAME"` is that recipe with what the file says changed; NAME may be a file itself, `./other.toml` beside it.
    One without is an `EnergyRecipe`.

    Args:
        name: A path counts as one where it ends in `.toml`.

    Raises:
        PluginNotFound: No plug-in offers the name.
        FileFormatError: The file is missing, not TOML, or extends itself.
        OptionError: It sets what the recipe does not have.
    """
    return _opened(str(name), Path(), ())


def _opened(name: str, beside: Path, seen: tuple[Path, ...]) -> Recipe:
    if not name.endswith(".toml"):
        return get_recipe(name)
    path = (beside / Path(name).expanduser()).resolve()
    if path in seen:
        raise FileFormatError(f"{path} extends itself, through {' and '.join(str(other) for other in seen)}.")
    text, head, settings = _read(path)
    if "extends" not in head:
        from composable_energy.training.energy_recipe import EnergyRecipe

        return EnergyRecipe.read(path)
    base = _opened(head.pop("extends"), path.parent, (*seen, path))
    return replace(base.settled(flat(settings)), name=path.stem, text=text, **head)


def _read(path: Path) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Returns the text of a file, its head and its tables."""
    if not path.is_file():
        raise FileFormatError(f"There is no file {str(path)!r}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not TOML: it is not UTF-8 text.") from error
    data = read_toml(text, str(path))
    head = {key: value for key, value in data.items() if not isinstance(value, dict)}
    odd = next((key for key, value in head.items() if key not in (*_HEAD, "extends") or not isinstance(value, str)), None)
    if odd is not None:
        raise FileFormatError(
            f"{path}: {odd} = {head[odd]!r} stands in no table. Above the tables are texts only: {', '.join((*_HEAD, 'extends'))}; "
            "a setting belongs below its [table]."
        )
    return text, head, {key: value for key, value in data.items() if isinstance(value, dict)}


def _hint(key: str, known: Mapping[str, Any]) -> str:
    """Names the settings of the key's section, the nearest first; the sections, if there is no such section."""
    section, _, last = key.rpartition(".")
    names = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    if names:
        return nearest(last, names) + listed(names)
    sections = sorted({other.partition(".")[0] for other in known})
    return nearest(section or key, sections) + listed(sections)


def _checked(key: str, value: Any, likes: list[Any]) -> Any:
    """Returns a value of a type that is expected: that of one of `likes`, where None stands for a value of any type."""
    for like in likes:
        if like is None:
            return value
        if isinstance(like, bool) or isinstance(value, bool):
            if isinstance(like, bool) and isinstance(value, bool):
                return value
        elif isinstance(like, float) and isinstance(value, int | float):
            return float(value)
        elif isinstance(like, list | tuple) and isinstance(value, list | tuple):
            return list(value)
        elif isinstance(value, type(like)):
            return value
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list", tuple: "a list"}
    raise OptionError(f"{key} takes {kinds.get(type(likes[-1]), type(likes[-1]).__name__)}, such as {likes[-1]!r}; got {value!r}.")


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    keys = dict.fromkeys([*there, *here])
    return [f"{key}: there {there.get(key)!r}, here {here.get(key)!r}" for key in keys if there.get(key) != here.get(key)]
