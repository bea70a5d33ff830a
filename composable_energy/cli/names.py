"""What a name in an expression stands for: a member of the family or folder at hand, a plug-in's energy, or a saved folder.

Everything is located before anything is loaded, so that a typo in the last name does not wait for the weights of the first.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from composable_energy.errors import ComposableEnergyError, FileFormatError, OptionError, PluginNotFound
from composable_energy.parsing import Name, build, leaves, parse_tree, unknown_name

if TYPE_CHECKING:
    from composable_energy.energy import Energy

__all__ = ["DEFAULT_FAMILY", "Names", "add_expression", "read_expression", "saved_in"]

DEFAULT_FAMILY = "faces"
_CONFIG = "config.json"


def add_expression(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which energy."""
    parser.add_argument(
        "expression", metavar="EXPR", help="such as 'male & ~smiling', of names, & | ~ >>, weights (2 * smiling, smiling / 2), parentheses"
    )
    parser.add_argument(
        "--in",
        dest="family",
        metavar="FAMILY",
        help=f"the family whose members names stand for (default: {DEFAULT_FAMILY}), or a folder whose sub-folders are saved energies; "
        "FAMILY/NAME and saved folders always work",
    )
    parser.add_argument(
        "--given",
        type=_condition,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="binds a condition of the energy, such as y=3, the label of a conditional one; may be repeated",
    )


def read_expression(arguments: argparse.Namespace) -> Energy:
    """Returns the energy that the arguments of `add_expression` say."""
    tree = parse_tree(arguments.expression)
    names = Names(arguments.family)
    located = {leaf.name: names.locate(leaf) for leaf in leaves(tree)}
    energy, given = build(tree, lambda name: _load(located[name])), dict(arguments.given)
    unknown = sorted(given.keys() - energy.conditions)
    if unknown:
        known = f"it depends on {', '.join(sorted(energy.conditions))}" if energy.conditions else "it depends on none"
        raise OptionError(f"--given: {energy} has no condition {unknown[0]}; {known}.")
    return energy.given(**given) if given else energy


def saved_in(folder: Path) -> tuple[str, ...]:
    """Returns the names of the sub-folders that hold a saved energy."""
    with contextlib.suppress(OSError):
        return tuple(sorted(config.parent.name for config in folder.glob(f"*/{_CONFIG}")))
    return ()


class Names:
    """The names that there are.

    Args:
        family: The family whose members can be written alone, or a folder whose sub-folders are; None takes `DEFAULT_FAMILY` if it is
            there.

    Raises:
        PluginNotFound: There is no such family, and no such folder.
        FileFormatError: The folder holds no saved energies.
    """

    def __init__(self, family: str | None = None) -> None:
        from composable_energy.registry import plugins

        self.entries = {form for row in plugins() if row.group == "composable_energy.energies" for form in (row.name, row.qualified)}
        self.family = family or DEFAULT_FAMILY
        self.members: tuple[str, ...] = ()
        self._unlisted: ComposableEnergyError | None = None
        self.folder = None if family is None or family in self.entries else _folder(family)
        if self.folder is not None:
            self.members = saved_in(self.folder)
            return
        try:
            if family is not None or self.family in self.entries:
                self.members = _members(self.family)
        except ComposableEnergyError as error:
            if family is not None:
                raise
            self._unlisted = error  # of the default family; an expression may do without

    def locate(self, leaf: Name) -> str | Path:
        """Returns the full name or the folder that a name stands for.

        Raises:
            ParseError: It stands for nothing; the message has the nearest names and the place.
            PluginLoadError: It may stand for a member of the default family, which does not load.
        """
        name = leaf.name
        folder = Path(name).expanduser()
        if name.startswith(("/", "./", "../", "~")):
            if not folder.is_dir():
                raise unknown_name(leaf, _sibling_folders(name, folder), "there is no such folder.")
            return folder
        if name in self.members:
            return f"{self.family}/{name}" if self.folder is None else self.folder / name
        if name in self.entries:
            return name
        entry, slash, member = name.partition("/")
        with contextlib.suppress(PluginNotFound):  # a single energy, without members
            if slash and entry in self.entries and member in _members(entry):
                return name
        if (folder / _CONFIG).is_file():
            return folder
        if self._unlisted is not None and not slash:
            raise self._unlisted
        raise unknown_name(leaf, self._known(entry if slash else None), "no plug-in offers an energy." * (not self.entries))

    def _known(self, entry: str | None) -> list[str]:
        """Names to propose; whole names of an entry's members only if the name looks like one."""
        known = [*self.members, *self.entries]
        if entry is not None:
            for near in difflib.get_close_matches(entry, self.entries, n=2):
                with contextlib.suppress(ComposableEnergyError):
                    known += [f"{near}/{member}" for member in _members(near)]
        return known


def _members(family: str) -> tuple[str, ...]:
    from composable_energy.catalog import get_family

    return get_family(family).members()


def _folder(family: str) -> Path | None:
    """The folder that is meant, if one is."""
    folder = Path(family).expanduser()
    if folder.is_dir():
        if saved_in(folder):
            return folder
        own = f" It is a saved energy itself: write {family!r} in the expression." if (folder / _CONFIG).is_file() else ""
        raise FileFormatError(f"--in: no sub-folder of {family!r} holds a saved energy.{own}")
    if family.startswith(("/", "./", "../", "~")):
        raise FileFormatError(f"--in: there is no folder {family!r}.")
    return None


def _condition(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    with contextlib.suppress(ValueError):
        if name.strip().isidentifier():
            return name.strip(), int(value) if value.strip().lstrip("+-").isdecimal() else float(value)
    raise argparse.ArgumentTypeError(f"a condition is written NAME=NUMBER, got {text!r}")


def _sibling_folders(name: str, folder: Path) -> list[str]:
    """The folders beside one that does not exist, written as it was."""
    head = name[: name.rstrip("/").rindex("/") + 1] if "/" in name.rstrip("/") else ""
    with contextlib.suppress(OSError):
        return [f"{head}{other.name}" for other in folder.parent.iterdir() if other.is_dir()]
    return []


def _load(place: str | Path) -> Energy:
    import composable_energy as ce

    return ce.get_energy(place) if isinstance(place, str) else ce.load(place)
