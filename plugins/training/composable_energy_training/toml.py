"""Settings as TOML: nested plain data, written by `tomli_w` and read by `tomllib`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import date, time
from typing import Any

from composable_energy.errors import FileFormatError, OptionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

__all__ = ["flat", "nested", "read_toml", "read_value", "toml_text"]


def read_toml(text: str, where: str) -> dict[str, Any]:
    """Returns the data of a TOML document.

    Args:
        text: The document.
        where: What to call it in an error.

    Raises:
        FileFormatError: It is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FileFormatError(f"{where} is not TOML: {error}.") from error


def toml_text(data: Mapping[str, Any]) -> str:
    """Returns plain data as a TOML document, which `read_toml` reads back; tuples become lists.

    Raises:
        OptionError: TOML has no form for a value, such as None.
    """
    import tomli_w

    try:
        text = tomli_w.dumps(data)
        text.encode()  # a lone surrogate has no UTF-8 form
        return text
    except (TypeError, ValueError) as error:
        raise OptionError(f"The settings cannot be written as TOML: {error}.") from error


def read_value(text: str) -> Any:
    """Returns the value that a word of the command line writes as TOML, else the word itself; `[a, b]` is a list of words."""
    try:
        data = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        if text.startswith("[") and text.endswith("]"):
            return [read_value(word.strip()) for word in text[1:-1].split(",") if word.strip()]
        return text
    return text if data.keys() != {"value"} or isinstance(data["value"], date | time) else data["value"]


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested mappings as one, with dotted keys; a mapping with nothing in it stays as a value.

    Raises:
        OptionError: A key has a dot of its own.
    """
    found: dict[str, Any] = {}
    for key, value in data.items():
        if "." in key:
            raise OptionError(f"The key {prefix}{key} has a dot of its own; write a table within a table instead.")
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value})
    return found


def nested(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a mapping with dotted keys as nested ones; an empty mapping leaves a table as it is, or makes it."""
    whole: dict[str, Any] = {}
    for dotted, value in data.items():
        *path, last = dotted.split(".")
        inner = whole
        for key in path:
            inner = inner.setdefault(key, {})
        if isinstance(value, Mapping):
            inner.setdefault(last, {})
        else:
            inner[last] = value
    return whole
