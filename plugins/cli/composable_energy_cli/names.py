"""Names in expressions: members of the current family or folder, energies of plug-ins, saved folders, and locations with a scheme.

All names are located before weights are loaded, so that a misspelt name is reported at once.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, FileFormatError, OptionError, PluginNotFound
from composable_energy.files import ENERGY_FILE, expanded, is_directory, is_file
from composable_energy.options import nearest_names
from composable_energy.registry import get_factory, names
from composable_energy_cli.foreign import LIBRARY
from composable_energy_cli.parsing import Name, parse, unknown_name

DEFAULT_FAMILY = "faces"


def add_expression(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of an expression."""
    parser.add_argument(
        "expression",
        metavar="EXPR",
        help="such as 'male & ~smiling', of names, ~ & ^ | >>, weights (2 * smiling, smiling / 2), parentheses; quote a location inside: "
        "\"'hf:owner/name@v1' & male\"",
    )
    parser.add_argument(
        "--in",
        dest="family",
        metavar="FAMILY",
        help=f"the family of the names (default: {DEFAULT_FAMILY}), or a folder with saved energies as sub-folders; FAMILY/NAME and saved "
        "folders always work",
    )
    about = "value of a condition of the energy, such as the label y=3 or the position y=0.2,0.5; may be repeated"
    parser.add_argument("--given", type=read_condition, action="append", default=[], metavar="NAME=VALUE", help=about)


def read_expression(arguments: argparse.Namespace) -> ce.Energy:
    """Returns the energy of the arguments of `add_expression`, with its conditions bound."""
    energy, given = build_energy(arguments.expression, arguments.family), dict(arguments.given)
    if unknown := sorted(given.keys() - energy.conditions):
        known = ", ".join(sorted(energy.conditions)) or "none"
        raise OptionError(f"--given: {energy} has no condition {unknown[0]}; it depends on {known}.")
    if missing := sorted(energy.required_conditions - given.keys() - {"sigma"}):  # samplers and `--sigma` set the noise level
        ways = " ".join(f"--given {name}=VALUE" for name in missing)
        raise OptionError(f"{energy} depends on {', '.join(missing)}, which has no value: add {ways}.")
    return energy.given(**given) if given else energy


def build_energy(text: str, family: str | None) -> ce.Energy:
    """Returns the energy of an expression, with names of a family."""

    def load(source: str | Path | Callable[[], ce.Energy]) -> ce.Energy:
        if isinstance(source, str):
            return ce.get("energy", source)
        return ce.load(source) if isinstance(source, Path) else source()

    return parse(text).build({name: load(source) for name, source in _locate(text, family).items()})


def check_trained(text: str, family: str | None, advice: str) -> None:
    """Raises OptionError, with advice how to sample it all the same, if an expression names a network with random weights of a plug-in."""
    asked = {source.partition("/")[0] for source in _locate(text, family).values() if isinstance(source, str)}
    for energy in ce.installed(row for row in ce.plugins() if row.name in asked or row.qualified in asked):
        if energy.trained is False:
            recipe = f"train --recipe {energy.name} --data FOLDER --out RUN" if energy.name in names("recipe") else "recipes"
            way = f"Train one (`composable-energy {recipe}`) and sample its folder, such as ./RUN; or {advice} to sample this one."
            raise OptionError(f"{energy.name} is not trained: it is a network with random weights, and its draws mean nothing. {way}")


def read_condition(text: str) -> tuple[str, float | list[list[float]]]:
    """Returns the name and the value of `y=3` or, as one row for all points, of `y=0.2,0.5`."""
    name, _, value = text.partition("=")
    with contextlib.suppress(ValueError):
        if name.strip().isidentifier():
            row = [int(part) if part.strip().lstrip("+-").isdecimal() else float(part) for part in value.split(",")]
            return name.strip(), row[0] if len(row) == 1 else [row]
    raise argparse.ArgumentTypeError(f"a condition is written NAME=NUMBER or NAME=NUMBER,NUMBER,..., got {text!r}")


def saved_in(folder: Path) -> tuple[str, ...]:
    """Returns the names of the sub-folders that hold a saved energy."""
    return tuple(sorted(file.parent.name for file in folder.glob(f"*/{ENERGY_FILE}") if is_file(file)))


class Names:
    """The known names; members of a family, or of a folder of saved energies, need no prefix. None takes `DEFAULT_FAMILY` if it exists."""

    def __init__(self, family: str | None = None) -> None:
        self.entries = {form for row in ce.plugins() if row.group == "composable_energy.energies" for form in (row.name, row.qualified)}
        self.family = family or DEFAULT_FAMILY
        self.members: tuple[str, ...] = ()
        self._default_error: ComposableEnergyError | None = None
        self.folder = None if family is None or family in self.entries else _folder(family)
        if self.folder is not None:
            self.members = saved_in(self.folder)
            return
        try:
            if family is not None or self.family in self.entries:
                self.members = ce.registry.members_of(self.family)
        except ComposableEnergyError as error:
            if family is not None and isinstance(error, PluginNotFound):
                raise PluginNotFound(f"--in: there is no folder {family!r}. {error}") from error
            if family is not None:
                raise
            self._default_error = error  # raised only if an expression needs the default family

    def locate(self, leaf: Name) -> str | Path | Callable[..., ce.Energy]:
        """Returns the full name, the folder or the location of a name."""
        if (name := leaf.name) in self.members:
            return f"{self.family}/{name}" if self.folder is None else self.folder / name
        folder = expanded(name)
        if name.startswith(("/", "./", "../", "~")):
            if not is_directory(folder):
                raise unknown_name(leaf, _sibling_folders(name, folder), "there is no such folder.")
            if not is_file(folder / ENERGY_FILE) and (inside := saved_in(folder)):
                raise unknown_name(leaf, (), f"it holds several energies; write {name.rstrip('/')}/{inside[0]}, or --in {name}.")
            return folder
        if name in self.entries:
            return name
        entry, slash, member = name.partition("/")
        with contextlib.suppress(PluginNotFound):  # a single energy, without members
            if slash and entry in self.entries and member in ce.registry.members_of(entry):
                return name
        if is_file(folder / ENERGY_FILE):
            return folder
        if entry not in self.entries:
            with contextlib.suppress(PluginNotFound):
                get_factory("energy", entry)  # it may come with an extra, which the error names
        reason, (scheme, colon, _) = self._known(), name.partition(":")
        if colon and not any(known.startswith(f"{scheme}:") for known in self.entries):
            try:
                get_factory("loader", scheme)
                return lambda: ce.load(name)
            except PluginNotFound as error:
                reason = str(error)
        if self._default_error is not None and not slash:
            raise self._default_error
        raise unknown_name(leaf, self._candidates(name), reason)

    def _known(self) -> str:
        """Returns in words which names there are."""
        if not (self.entries or self.members):
            return "no plug-in offers an energy."
        own = f"{self.folder or self.family} has {', '.join(self.members[:20])}{', ...' * (len(self.members) > 20)}; " * bool(self.members)
        return f"{own}`composable-energy energies` lists {'the others' if own else 'the names'}."

    def _candidates(self, name: str) -> list[str]:
        """Returns names to suggest, with the members of entries near to the one of the unknown name, or of all own families."""
        known = [*self.members, *self.entries]
        entry, slash, _ = name.partition("/")
        if not slash and not nearest_names(name, known):
            own = ce.installed(row for row in ce.plugins() if row.distribution == LIBRARY)
            known += [f"{energy.name}/{member}" for energy in own for member in energy.members]
        if slash:
            for near in nearest_names(entry, self.entries, 2):
                with contextlib.suppress(ComposableEnergyError):
                    known += [f"{near}/{member}" for member in ce.registry.members_of(near)]
        return known


def _folder(family: str) -> Path | None:
    """Returns the folder of saved energies; None if it is not a folder."""
    if is_directory(folder := expanded(family)):
        if saved_in(folder):
            return folder
        own = f" It is a saved energy itself: write {family!r} in the expression." if is_file(folder / ENERGY_FILE) else ""
        raise FileFormatError(f"--in: no sub-folder of {family!r} holds a saved energy.{own}")
    if family.startswith(("/", "./", "../", "~")):
        raise FileFormatError(f"--in: there is no folder {family!r}.")
    return None


def _locate(text: str, family: str | None) -> dict[str, str | Path | Callable[..., ce.Energy]]:
    """Returns what each name of an expression stands for."""
    known = Names(family)
    return {leaf.name: known.locate(leaf) for leaf in parse(text).names}


def _sibling_folders(name: str, folder: Path) -> list[str]:
    """Returns existing folders whose path has the same parent and prefix as a missing one."""
    head = name[: name.rstrip("/").rindex("/") + 1] if "/" in name.rstrip("/") else ""
    with contextlib.suppress(OSError):
        return [f"{head}{other.name}" for other in folder.parent.iterdir() if other.is_dir()]
    return []
