"""Recipes: the complete settings of a training, except the data, under a name and in one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composable_energy.errors import FileFormatError, OptionError
from composable_energy.files import ENERGY_FILE, expanded, is_file, read_bytes, replace_file
from composable_energy.options import listed, nearest, nearest_names
from composable_energy.registry import get
from composable_energy_training.toml import NONE, check_setting, flatten, read_toml, to_toml, unflatten

if TYPE_CHECKING:
    from typing_extensions import Self

_HEAD = ("about", "source", "needs", "cost")
_FILE, _LARGEST = "recipe.toml", 2**16  # bytes: reading a key takes the square of its parts
_DEFAULT = "energy"  # the recipe whose class reads a file without `extends`
_OPTIONAL: Mapping[str, Any] = {"data.labels": str | None, "data.limit": int | None, "training.device": str | None}
# Settings that may change when a run resumes: its length, its device, its logs.
_FREE = {*(f"training.{key}" for key in ("steps", "device", "keep", "checkpoint_every")), "log.every", "sheets.every", "sheets.n"}


@dataclass(frozen=True)
class Recipe(ABC):
    """Abstract recipe: settings, and a method that trains with them. A subclass implements `run`, and is final.

    Settings are nested plain data: numbers, texts, bools, lists of those, and None. Every recipe has `data.labels` (a CSV of attributes, or
    None), `data.limit` (the largest number of pictures, or None), `training.seed` and `training.device`; the command line has options for
    them. TOML has no null: in a setting that may be None, the text `"none"` stands for None, in a file, on the command line and in
    `with_changes`. Elsewhere `"none"` is a text.

    Args:
        name: The name of the recipe.
        about: A description of the result.
        source: The paper, with its section or table.
        needs: The required data and hardware.
        cost: The duration, in words.
        settings: The settings, such as `{"model": {"name": "igebm-resnet32"}, "training": {"steps": 1000}}`.
        text: The file as its author wrote it, with comments.
        entry: The name in the registry, of this recipe or of the one that it extends; empty for a file that extends none.
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
        """Reads a recipe from a TOML file: texts `about`, `source`, `needs` and `cost`, then tables of settings.

        Raises:
            FileFormatError: The file is missing or not TOML, or has other keys above the tables.
            OptionError: A setting is unknown, or has another type.
        """
        path = expanded(file)
        text, head, settings = _read(path)
        about, source, needs, cost = (head.get(key, "") for key in _HEAD)
        return cls(path.stem, about, source, needs, cost, settings, text).with_changes(flatten(settings))

    @abstractmethod
    def run(self, data: str | Path, out: str | Path, *, progress: bool = False) -> Path:
        """Trains, or resumes an interrupted training, and returns the folder of the trained energy or energies.

        Args:
            data: A folder of pictures.
            out: The folder of the run. Call `save(out)` before training.
            progress: Whether to show a progress bar.

        Raises:
            OptionError: The folder has a run with other settings, or a setting does not fit the data.
            FileFormatError: The data cannot be read.
        """

    def usage(self, folder: str | Path) -> str | None:
        """Returns how to use the folder that `run` returned, in words and a line of code; None for energies, which are sampled."""
        return None

    def setting_types(self, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the types of all settings by dotted key, such as `int | None`. By default they are the types of the present values.

        `changes` are settings that are about to change, for a recipe where one setting determines others.
        """
        types = {key: Any if value in (None, NONE) else type(value) for key, value in flatten(self.settings).items()}
        return {key: _OPTIONAL.get(key, kind) for key, kind in types.items()}

    def with_changes(self, changes: Mapping[str, Any]) -> Self:
        """Returns the recipe with changed settings. Settings that do not exist under a changed name, such as a sampler's, are dropped.

        Args:
            changes: Values by dotted key, such as `{"training.steps": 100}`; `{"augmentation": {}}` adds an empty table.

        Raises:
            OptionError: A key is unknown, or a value has another type.
            PluginNotFound: A name that determines other settings is unknown.
        """
        types = self.setting_types(changes)
        tables = {key for key, value in changes.items() if value == {} and any(name.startswith(f"{key}.") for name in types)}
        if (unknown := next((key for key in changes if key not in types and key not in tables), None)) is not None:
            raise OptionError(f"The recipe {self.name!r} has no setting {unknown!r}.{_suggest(unknown, types)}")
        kept = {key: value for key, value in flatten(self.settings).items() if key in types or value == {}}
        changed = {key: value if key in tables else check_setting(key, value, types[key]) for key, value in changes.items()}
        return replace(self, settings=unflatten({**kept, **changed}))

    def with_steps(self, steps: int) -> Self:
        """Returns the recipe with another number of steps; a recipe of several stages divides it among them."""
        return self.with_changes({"training.steps": steps})

    def resolved_settings(self) -> Mapping[str, Any]:
        """Returns all settings that `save` writes; a subclass adds those that have default values."""
        return self.settings

    def toml(self) -> str:
        """Returns the recipe as a TOML document with all settings, which `read` and `open_recipe` can read.

        Raises:
            OptionError: A setting has no form in TOML.
        """
        head = {key: getattr(self, key) for key in _HEAD} | ({"extends": self.entry} if self.entry else {})
        return f"# {self.name}, with all settings.\n" + to_toml({**head, **_replace_none(self.resolved_settings())})

    def save(self, out: str | Path) -> None:
        """Writes the recipe with all settings to `recipe.toml` in the folder of a run, which then belongs to this run.

        Raises:
            OptionError: The folder has a run with other settings, or energies or results of no run; or a setting has no form in TOML.
        """
        out = expanded(out)
        file, new = out / _FILE, flatten(_replace_none(self.resolved_settings()))
        if file.is_file():
            old = flatten(_read(file)[2])
            keys = [key for key in dict.fromkeys([*old, *new]) if key not in _FREE]
            if differ := [key for key in keys if old.get(key, NONE) != new.get(key, NONE)]:
                shown = "; ".join(f"{key}: there {old.get(key, NONE)!r}, here {new.get(key, NONE)!r}" for key in differ[:6])
                more = f"; and {len(differ) - 6} more" if len(differ) > 6 else ""
                raise OptionError(f"{out} has a run with other settings ({shown}{more}). Use those settings, or another folder.")
        elif any(path for name in (f"*/{ENERGY_FILE}", "report.json", "samples.png") for path in out.glob(name)):
            raise OptionError(f"{out} holds saved energies or results of no run, which this run could replace. Give another folder.")
        replace_file(file, self.toml().encode())


def open_recipe(name: str | Path) -> Recipe:
    """Opens a recipe by name, or from a TOML file.

    A file with `extends = "NAME"` changes that recipe; NAME may be another file beside it, such as `./other.toml`. A file without it has
    the class of the recipe `energy`: one network on pictures.

    Args:
        name: A name, or a path that ends in `.toml`.

    Raises:
        PluginNotFound: No plug-in offers the name.
        FileFormatError: The file is missing, not TOML, or extends itself.
        OptionError: The file changes a setting that the recipe does not have.
    """
    return _open(str(name), Path(), ())


def _open(name: str, folder: Path, seen: tuple[Path, ...]) -> Recipe:
    if not name.endswith(".toml"):
        return replace(get("recipe", name), entry=name)
    if (path := (folder / expanded(name)).resolve()) in seen:
        raise FileFormatError(f"{path} extends itself, through {' and '.join(str(other) for other in seen)}.")
    text, head, settings = _read(path)
    if "extends" not in head:
        return type(_open(_DEFAULT, path.parent, ())).read(path)
    base = _open(head.pop("extends"), path.parent, (*seen, path))
    return replace(base.with_changes(flatten(settings)), name=path.stem, text=text, **head)


def _read(path: Path) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Returns the text of a file, its head and its tables."""
    if not is_file(path):
        raise FileFormatError(f"There is no file {str(path)!r}.")
    try:
        text = read_bytes(path, _LARGEST).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not TOML: it is not UTF-8 text.") from error
    data = read_toml(text, str(path))
    head = {key: value for key, value in data.items() if not isinstance(value, dict)}
    odd = next((key for key, value in head.items() if key not in (*_HEAD, "extends") or not isinstance(value, str)), None)
    if odd is not None:
        raise FileFormatError(
            f"{path}: {odd} = {head[odd]!r} is in no table. Above the tables only texts are allowed: {', '.join((*_HEAD, 'extends'))}; "
            "a setting belongs below its [table]."
        )
    return text, head, {key: value for key, value in data.items() if isinstance(value, dict)}


def _replace_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with the text `none` in place of None, for a file."""
    return {key: _replace_none(some) if isinstance(some, Mapping) else NONE if some is None else some for key, some in settings.items()}


def _suggest(key: str, known: Mapping[str, Any]) -> str:
    """Returns a hint with the settings of the same name or the key's table, or with the tables if there is no such table."""
    table, _, last = key.rpartition(".")
    if same := [other for other in known if other.rpartition(".")[2] == last]:
        return f" Did you mean {' or '.join(map(repr, same))}?"
    if names := [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == table]:
        near = [f"{table}.{name}" for name in nearest_names(last, names)]
        return f" Did you mean {' or '.join(map(repr, near))}?" * bool(near) + listed(f"{table}.{name}" for name in names)
    tables = sorted({other.partition(".")[0] for other in known})
    return nearest(table or key, tables) + listed(tables)
