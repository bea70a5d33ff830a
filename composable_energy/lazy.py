"""Lazy exports of a package and lazy methods of a class: names are imported at their first use."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["LazyMethod", "attach_stub"]


class LazyMethod:
    """A method of a class that is a function of an upper layer, `module:name`, imported at the first use of the method."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., Any]:
        module, _, name = self._path.partition(":")
        function = getattr(importlib.import_module(module), name)
        setattr(self._owner, self._name, function)  # later uses find the function itself
        return function if instance is None else function.__get__(instance, owner)


def attach_stub(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns `__getattr__`, `__dir__` and `__all__` of a package of this `__name__` and `__file__`, whose stub has the names (SPEC 1)."""
    imports = [node for node in ast.parse(Path(file).with_suffix(".pyi").read_bytes()).body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module for node in imports if node.module for alias in node.names}
    modules = [alias.name for node in imports if not node.module for alias in node.names]  # not in `__all__`

    def get_attribute(name: str) -> Any:
        if (home := homes.get(name, package)) != package:
            found = getattr(importlib.import_module(home), name)
            setattr(sys.modules[package], name, found)
            return found
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")
        from composable_energy.options import nearest  # late: it is rarely needed

        hint = "" if name.startswith("_") else nearest(name, [*homes, *modules])
        raise AttributeError(f"module {package!r} has no attribute {name!r}.{hint}")

    def list_attributes() -> list[str]:
        return sorted({*homes, *modules, *(name for name in vars(sys.modules[package]) if name.startswith("__"))})

    return get_attribute, list_attributes, sorted(homes)
