"""Kinds of settings: what may be written for an argument, read from its annotation."""

from __future__ import annotations

import builtins
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composable_energy.errors import OptionError

__all__ = ["NONE", "Argument", "arguments_of", "checked", "kind_of"]

NONE = "none"
"""The word that stands for None in a setting that may be None: TOML has no null, and a setting that is left out has its default."""

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a text", type(None): "none"}
_PLAIN = (bool, int, float, str, list, tuple, type(None))


@dataclass(frozen=True)
class Argument:
    """An argument of a class or function.

    Args:
        kind: Its annotation; `Any` where that cannot be read.
        default: What it is if nobody says; `inspect.Parameter.empty` where somebody must.
    """

    kind: Any
    default: Any = inspect.Parameter.empty

    @property
    def written(self) -> bool:
        """Whether its default is plain data, so that it can be written to a file."""
        return isinstance(self.default, _PLAIN)


def arguments_of(made: Callable[..., Any], without: Collection[str] = ()) -> dict[str, Argument]:
    """Returns the arguments of a class or function that can be given by name."""
    code: Any = made.__init__ if isinstance(made, type) else made
    names = {**vars(builtins), **vars(sys.modules.get(getattr(code, "__module__", ""), builtins))}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: Argument(_resolved(found.annotation, names), found.default)
        for name, found in inspect.signature(made).parameters.items()
        if found.kind in named and name not in without
    }


def kind_of(value: Any) -> Any:
    """Returns the kind that a value is an example of; anything may stand in the place of None, or of the word `none` that stands for it."""
    return Any if value in (None, NONE) else type(value)


def checked(key: str, value: Any, kind: Any) -> Any:
    """Returns a value as settings keep it.

    A whole number becomes a float where numbers are meant, a path a text, and the word `none` None where the kind takes None.

    Args:
        key: What it is for, for the error.
        value: Plain data, or a path.
        kind: An annotation.

    Raises:
        OptionError: It is of another kind.
    """
    if isinstance(value, Path):
        value = str(value)
    elif value == NONE and _fits(None, kind):
        value = None
    if not _fits(value, kind):
        raise OptionError(f"{key} takes {_described(kind)}, got {value!r}.")
    if isinstance(value, int) and not isinstance(value, bool) and not _fits(value, kind, exact=True):
        return float(value)
    return value


def _resolved(annotation: Any, names: Mapping[str, Any]) -> Any:
    """Annotations are texts, written by the author of the code that stands beside them; those that only a checker understands are Any."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(names))
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any


def _fits(value: Any, kind: Any, exact: bool = False) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one, exact) for one in inner)
    if origin is typing.Literal:
        return any(value == one and isinstance(value, type(one)) for one in inner)
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    if kind is float:
        return isinstance(value, float if exact else (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, str)
    if kind is not str and isinstance(base := origin or kind, type) and issubclass(base, Sequence):
        return isinstance(value, list | tuple) and _each_fits(value, base, inner)
    return isinstance(base := origin or kind, type) and isinstance(value, base)


def _each_fits(value: Sequence[Any], base: type, inner: tuple[Any, ...]) -> bool:
    if not inner:
        return True
    if base is tuple and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return all(_fits(item, inner[0]) for item in value)


def _described(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(one) for one in inner if _can_be_written(one)))
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)} in brackets"
    return _WORDS.get(kind, "a list in brackets" if kind is not str and isinstance(origin or kind, type) else str(kind))


def _can_be_written(kind: Any) -> bool:
    base = typing.get_origin(kind) or kind
    return base is typing.Literal or base in _WORDS or (isinstance(base, type) and issubclass(base, Sequence))
