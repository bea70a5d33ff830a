"""Settings as TOML, written by `tomli_w` and read by `tomllib`, as flat mappings with dotted keys, and their types.

Types are read from the signature of the class or function that a table configures, and checked when a setting changes.
"""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any

from composable_energy.errors import FileFormatError, OptionError
from composable_energy.options import check_number

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

_DEEPEST = 50


def read_toml(text: str, source: str) -> dict[str, Any]:
    """Returns the data of a TOML document."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for numbers of 5,000 digits
        raise FileFormatError(f"{source} is not TOML: {error}.") from error


def to_toml(data: Mapping[str, Any]) -> str:
    """Returns plain data as a TOML document that `read_toml` reads; tuples become lists."""
    import tomli_w

    try:
        text = tomli_w.dumps(data)
        text.encode()  # a lone surrogate has no UTF-8 form
        return text
    except (TypeError, ValueError) as error:
        raise OptionError(f"The settings cannot be written as TOML: {error}.") from error


def parse_value(text: str) -> Any:
    """Returns the value of a command-line word that is TOML, else the word itself; `[a, b]` is a list of words."""
    try:
        data = tomllib.loads(f"value = {text}")
    except RecursionError as error:
        raise OptionError(f"{text[:40]!r}... is nested too deeply.") from error
    except ValueError:
        if text.startswith("[") and text.endswith("]"):
            return [parse_value(word.strip()) for word in text[1:-1].split(",") if word.strip()]
        return text
    return text if data.keys() != {"value"} or isinstance(data["value"], date | time) else data["value"]


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested mappings as one mapping with dotted keys; an empty mapping stays a value."""
    if prefix.count(".") > _DEEPEST:
        raise OptionError(f"The key {prefix[:40]}... is nested more than {_DEEPEST} times.")
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if "." in key:
            raise OptionError(f"The key {prefix}{key} contains a dot; write a table within a table instead.")
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value})
    return flat


def unflatten(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a mapping with dotted keys as nested mappings; an empty mapping adds a table, or leaves it as it is."""
    nested: dict[str, Any] = {}
    for dotted, value in data.items():
        *path, last = dotted.split(".")
        inner = nested
        for key in path:
            inner = inner.setdefault(key, {})
        if isinstance(value, Mapping):
            inner.setdefault(last, {})
        else:
            inner[last] = value
    return nested


NONE = "none"
"""The text for None in a setting that may be None: TOML has no null, and an omitted setting has its default."""

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a text", type(None): "none"}


def get_parameters(function: Callable[..., Any], without: Collection[str] = ()) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a class or function that can be given by name; a missing or unknown annotation becomes `Any`."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except (NameError, TypeError, AttributeError, SyntaxError):  # a name that only type checkers import
        signature = inspect.signature(function)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter.replace(annotation=Any)
        if parameter.annotation is parameter.empty or isinstance(parameter.annotation, str)
        else parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in named and name not in without
    }


def check_setting(key: str, value: Any, annotation: Any) -> Any:
    """Returns a setting as plain data: a path as text, a whole number as float for floats, the text `none` as None if it may be None."""
    choices = typing.get_args(annotation) if (typing.get_origin(annotation) in (typing.Union, types.UnionType)) else (annotation,)
    if isinstance(value, Path):
        value = str(value)
    elif value == NONE and (type(None) in choices or Any in choices):
        return None
    if not _fits(value, annotation):
        raise OptionError(f"{key} takes {_describe(annotation) or annotation}, got {value!r}.")
    if type(value) is int and float in choices and int not in choices and Any not in choices:
        return check_number(key, value)
    return value


def _fits(value: Any, annotation: Any) -> bool:
    """Returns whether a value has a type; lists stand for tuples, texts for paths, whole numbers for floats."""
    origin, inner = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in inner)
    if origin is typing.Literal:
        return any(value == choice and isinstance(value, type(choice)) for choice in inner)
    if origin is Any:
        return True
    if isinstance(value, bool) or not isinstance(origin, type):
        return origin is bool
    if not issubclass(origin, Sequence) or origin is str:
        return isinstance(value, {float: (int, float), Path: str}.get(origin, origin)) and value == value  # no NaN
    if not isinstance(value, list | tuple):
        return False
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return not inner or all(_fits(item, inner[0]) for item in value)


def _describe(annotation: Any) -> str:
    """Returns a type in words; nothing for a type that has no form as plain data."""
    origin, inner = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(words for choice in inner if (words := _describe(choice))))
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if origin in _WORDS:
        return _WORDS[origin]
    if not (isinstance(origin, type) and issubclass(origin, Sequence)):
        return ""
    return f"a list of {len(inner)} in brackets" if origin is tuple and inner and Ellipsis not in inner else "a list in brackets"
