"""Lazy exports of a package and lazy methods of a class: names are imported at their first use."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

__all__ = ["LazyMethod", "lazy_exports"]

P = ParamSpec("P")
R = TypeVar("R")


class LazyMethod(Generic[P, R]):
    """A method of a class that is a function of an upper layer, with its signature and documentation.

    Args:
        load: Imports and returns the function; its first parameter is the instance. The first use of the method calls it.
    """

    def __init__(self, load: Callable[[], Callable[Concatenate[Any, P], R]]) -> None:
        self._load = load

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    @overload
    def __get__(self, instance: None, owner: type) -> Callable[Concatenate[Any, P], R]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Callable[P, R]: ...

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        function: Any = self._load()
        setattr(self._owner, self._name, function)  # later uses find the function itself
        return function if instance is None else function.__get__(instance, owner)


def lazy_exports(
    package: str, modules: Mapping[str, Sequence[str]], submodules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns the functions `__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        package: The package's `__name__`.
        modules: The exported names by the module that defines each, such as `{"trainer": ["Trainer", "Report"]}`.
        submodules: Modules of the package that are listed with the names.

    Example:
        >>> __getattr__, __dir__ = lazy_exports("package", {"module": ["Name"]})
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def get_attribute(name: str) -> Any:
        if name in homes:
            found = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
            setattr(sys.modules[package], name, found)
            return found
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")
        from composable_energy.suggestions import nearest  # late: it is rarely needed

        public = [] if name.startswith("_") else [*homes, *submodules]
        raise AttributeError(f"module {package!r} has no attribute {name!r}.{nearest(name, public)}")

    def list_attributes() -> list[str]:
        own = (name for name in vars(sys.modules[package]) if name.startswith("__"))
        return sorted({*own, *homes, *submodules})

    return get_attribute, list_attributes
