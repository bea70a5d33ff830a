"""Recipes: everything that a training needs but the data, with a name, in one file."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composable_energy.errors import FileFormatError, OptionError, PluginLoadError
from composable_energy.registry import get_recipe
from composable_energy.suggestions import listed, nearest
from composable_energy_training.kinds import NONE, checked, kind_of
from composable_energy_training.toml import flat, nested, read_toml, toml_text

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Recipe", "open_recipe"]

_HEAD = ("about", "source", "needs", "cost")
_FILE = "recipe.toml"
_EXTENDED = "energy"  # whose class reads a file that extends nothing
_OPTIONAL: Mapping[str, Any] = {"data.labels": str | None, "data.limit": int | None, "training.device": str | None}
# What may change between a run and its continuation: how long, where, and what is shown; not what is trained.
_FREE = frozenset(
    {f"training.{name}" for name in ("steps", "device", "keep", "checkpoint_every")} | {"log.every", "sheets.every", "sheets.n"}
)


@dataclass(frozen=True)
class Recipe(ABC):
    """Abstract recipe: settings, and how energies are trained with them. A subclass writes `run`, and is final.

    Settings are nested plain data: numbers, texts, true and false, lists of those, and None. Every recipe has `data.labels` (a CSV of
    attributes, or None), `data.limit` (how many pictures at most, or None), `training.seed` and `training.device`, which the command line
    sets by options of their own. TOML has no null: a setting that may be None takes the text `"none"` for it, in a file, on the command
    line and in `settled`; everywhere else `"none"` is a text like any other.

    Args:
        name: What people ask for.
        about: What comes out.
        source: The paper, with its section or table.
        needs: Data and hardware.
        cost: Time, in words.
        settings: Such as `{"model": {"name": "igebm-resnet32"}, "training": {"steps": 1000}}`.
        text: The file as its author wrote it, with comments.
        entry: The name by which plug-ins offer it, or the one that it extends; empty for a file that extends none.
    """

    name: str
    about: str
    source: str
    needs: str
    cost: str
    settings: Mapping[str, Any]
    text: str = ""
    entry: str = ""

    @classmethod
    def read(cls, file: str | Path) -> Self:
        """Returns the recipe in a TOML file: texts `about`, `source`, `needs` and `cost`, then tables of settings.

        Raises:
            FileFormatError: The file is missing or not TOML, or has other keys beside the tables.
            OptionError: A setting is unknown, or of another kind than is expected.
        """
        path = Path(file).expanduser()
        text, head, settings = _read(path)
        about, source, needs, cost = (head.get(key, "") for key in _HEAD)
        return cls(path.stem, about, source, needs, cost, settings, text).settled(flat(settings))

    @abstractmethod
    def run(self, data: str | Path, out: str | Path, *, progress: bool = False) -> Path:
        """Trains, or goes on with what was killed, and returns the folder of the finished energy or energies.

        Args:
            data: A folder of pictures.
            out: Where checkpoints and energies go. `claim` it first.
            progress: Whether to show a bar.

        Raises:
            OptionError: The folder holds another recipe's run, or a setting does not fit the data.
            FileFormatError: The data cannot be read.
        """

    def usage(self, folder: str | Path) -> str | None:
        """Returns what to do with a finished run, in words and a line of code; None for what energies are for, to draw from them.

        Args:
            folder: What `run` returned.
        """
        return None

    def accepted(self, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the kinds of value that settings take, by dotted key, such as `int | None`.

        A recipe takes new values for the settings that it has, of the types that they have, unless it says so anew.

        Args:
            changes: Settings that are about to change, by dotted key, for a recipe where one decides about others.
        """
        return {key: _OPTIONAL.get(key, kind_of(value)) for key, value in flat(self.settings).items()}

    def settled(self, changes: Mapping[str, Any]) -> Self:
        """Returns the recipe with some settings changed; those that go with a name which is changed too, and no other, are dropped.

        Args:
            changes: By dotted key, such as `{"training.steps": 100}`; `{"augmentation": {}}` adds a table with nothing in it.

        Raises:
            OptionError: A key is unknown, or a value is of another kind than is expected.
            PluginNotFound: A name that decides about others is unknown.
        """
        kinds = self.accepted(changes)
        tables = {key for key, value in changes.items() if value == {} and any(kind.startswith(f"{key}.") for kind in kinds)}
        unknown = next((key for key in changes if key not in kinds and key not in tables), None)
        if unknown is not None:
            raise OptionError(f"The recipe {self.name!r} has no setting {unknown!r}.{_hint(unknown, kinds)}")
        kept = {key: value for key, value in flat(self.settings).items() if key in kinds or value == {}}
        changed = {key: value if key in tables else checked(key, value, kinds[key]) for key, value in changes.items()}
        return replace(self, settings=nested({**kept, **changed}))

    def written(self) -> Mapping[str, Any]:
        """Returns the settings that a run writes down; a recipe whose settings have defaults adds those."""
        return self.settings

    def with_steps(self, steps: int) -> Self:
        """Returns the recipe with another number of steps; one of several stages says how it shares them out."""
        return self.settled({"training.steps": steps})

    def toml(self) -> str:
        """Returns the recipe as a TOML document that `read` or `open_recipe` reads, with every setting as it was settled.

        Raises:
            OptionError: TOML has no form for a setting.
        """
        head = {key: getattr(self, key) for key in _HEAD} | ({"extends": self.entry} if self.entry else {})
        return f"# {self.name}, as it was settled.\n" + toml_text({**head, **_without_none(self.written())})

    def claim(self, out: str | Path) -> None:
        """Writes the recipe to a folder as it was settled, so that a run documents itself.

        Raises:
            OptionError: The folder holds a run with other settings, or TOML has no form for a setting.
        """
        out = Path(out).expanduser()
        file, here = out / _FILE, flat(_without_none(self.written()))
        text = self.toml()
        if file.is_file():
            there = flat(_read(file)[2])
            keys = [key for key in dict.fromkeys([*there, *here]) if key not in _FREE]
            differ = [key for key in keys if there.get(key, NONE) != here.get(key, NONE)]  # a setting that is new since then may be none
            if differ:
                shown = "; ".join(f"{key}: there {there.get(key, NONE)!r}, here {here.get(key, NONE)!r}" for key in differ[:6])
                more = f"; and {len(differ) - 6} more" if len(differ) > 6 else ""
                raise OptionError(f"{out} holds a run with other settings ({shown}{more}). Go on with those, or name another folder.")
        out.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{_FILE}.{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(file)


def open_recipe(name: str | Path) -> Recipe:
    """Returns a recipe by name, or the one in a TOML file.

    A file with `extends = "NAME"` is that recipe with what the file says changed; NAME may be a file itself, `./other.toml` beside it.
    One without it is of the class of the recipe `energy`: one network on pictures.

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
        recipe = get_recipe(name)
        if not isinstance(recipe, Recipe):
            raise PluginLoadError(f"The recipe {name!r} is no subclass of Recipe but of {type(recipe).__name__}; upgrade the plug-in.")
        return replace(recipe, entry=name)
    path = (beside / Path(name).expanduser()).resolve()
    if path in seen:
        raise FileFormatError(f"{path} extends itself, through {' and '.join(str(other) for other in seen)}.")
    text, head, settings = _read(path)
    if "extends" not in head:
        return type(_opened(_EXTENDED, path.parent, ())).read(path)
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


def _without_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings for a file: the word for None in its place."""
    return {
        key: _without_none(value) if isinstance(value, Mapping) else NONE if value is None else value for key, value in settings.items()
    }


def _hint(key: str, known: Mapping[str, Any]) -> str:
    """Names the settings of the key's section, the nearest first; the sections, if there is no such section."""
    section, _, last = key.rpartition(".")
    names = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    if names:
        return nearest(last, names) + listed(names)
    sections = sorted({other.partition(".")[0] for other in known})
    return nearest(section or key, sections) + listed(sections)
