"""Settings as TOML, written by `tomli_w` and read by `tomllib`, and as flat mappings with dotted keys."""

import sys
from collections.abc import Mapping
from datetime import date, time
from typing import Any

from composable_energy.errors import FileFormatError, OptionError

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
