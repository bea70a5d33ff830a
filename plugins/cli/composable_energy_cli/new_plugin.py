"""The command `new-plugin`: a project with an example, its tests and its entry point."""

import argparse
import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from composable_energy.errors import OptionError, StorageError
from composable_energy.files import exists, expanded
from composable_energy.options import printable
from composable_energy.registry import Command, names

_TEMPLATES = Path(__file__).with_name("templates")
_KINDS = tuple(sorted(folder.name for folder in _TEMPLATES.iterdir() if (folder / "my_plugin.py").is_file()))
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_FUNCTIONS = {"recipe": "recipe"}  # the object of the entry point, where it is not a class


class NewPlugin(Command):
    """The command `composable-energy new-plugin NAME --kind KIND`: writes a project with an example, its tests and its entry point."""

    summary = "write a plug-in project to start from"
    description = "Writes a project with a small working example, tests that run the conformance kit, and the entry point."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name", metavar="NAME", help="the name of the project and of the entry point, such as soft-ring")
        parser.add_argument("--kind", choices=_KINDS, default="energy", help="what the plug-in offers (default: energy)")
        parser.add_argument("--directory", type=Path, metavar="FOLDER", help="the new folder (default: one with the name, here)")

    def run(self, arguments: argparse.Namespace) -> int:
        folder = expanded(arguments.directory or Path(arguments.name))
        files = write_project(arguments.name, arguments.kind, folder)
        print(printable(f"{folder}: a project with the {arguments.kind} {arguments.name!r}"))
        print("\n".join(f"  {file.relative_to(folder).as_posix()}" for file in files))
        print(f'\nNext:\n  cd {printable(folder)}\n  pip install -e ".[dev]"\n  pytest\n  composable-energy plugins --load')
        return 0


def write_project(name: str, kind: str, folder: Path) -> list[Path]:
    """Writes the project of a plug-in to a new folder, and returns its files."""
    _check_name(name, kind)
    if exists(folder):
        raise OptionError(f"{folder} exists; give another NAME, or --directory with a folder that does not exist.")
    package, own = name.replace("-", "_"), _TEMPLATES / kind
    words = {  # in this order: a text that is filled in has other words
        "USAGE": (own / "usage.md").read_text(encoding="utf-8"),
        "OBJECT": _FUNCTIONS.get(kind, "MyPlugin"),
        "my-plugin": name,
        "my_plugin": package,
        "MyPlugin": "".join(part.capitalize() for part in name.split("-")),
        "GROUP": f"composable_energy.{'energies' if kind == 'energy' else f'{kind}s'}",
        "A_KIND": f"{'An' if kind[0] in 'aeiou' else 'A'} {kind}",
        "KIND": kind,
    }
    sources = {
        "pyproject.toml": _TEMPLATES / "pyproject.toml.txt",
        "README.md": _TEMPLATES / "README.md.txt",
        ".gitignore": _TEMPLATES / "gitignore.txt",
        f"{package}/__init__.py": own / "my_plugin.py",
        f"{package}/py.typed": None,
        f"tests/test_{package}.py": own / "tests.py",
        **{f"{package}/{extra.name}": extra for extra in sorted(own.glob("*.toml"))},
    }
    try:
        for file, source in sources.items():
            text = "" if source is None else source.read_text(encoding="utf-8")
            for word, value in words.items():
                text = text.replace(word, value)
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return [folder / file for file in sources]


def _check_name(name: str, kind: str) -> None:
    package = name.replace("-", "_")
    if not _NAME.fullmatch(name):
        near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")
        hint = f" Perhaps {near}?" if _NAME.fullmatch(near) else ""
        raise OptionError(f"NAME must begin with a letter and have only a-z, 0-9 and single hyphens, as in soft-ring; got {name!r}.{hint}")
    if keyword.iskeyword(package) or package in sys.stdlib_module_names:
        raise OptionError(f"NAME {name!r} is a word or a module of Python; choose another.")
    if name in names(kind):
        raise OptionError(f"An installed plug-in offers the {kind} {name!r}; choose another NAME.")
    if find_spec(package) is not None:
        raise OptionError(f"A package {package!r} can be imported here, so a plug-in {name!r} would hide it; choose another NAME.")
