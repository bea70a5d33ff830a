"""Settings as TOML: nested plain data, with the word `none` for what TOML has no value for."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from composable_energy.errors import FileFormatError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

__all__ = ["flat", "nested", "read_toml", "read_value", "toml_text"]

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def read_toml(text: str, where: str) -> dict[str, Any]:
    """Returns the data of a TOML document.

    Args:
        text: The document.
        where: What to call it in an error.

    Raises:
        FileFormatError: It is not TOML.
    """
    try:
        return _without_none(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise FileFormatError(f"{where} is not TOML: {error}.") from error


def read_value(text: str) -> Any:
    """Returns what a word of the command line says: a value as TOML writes it, else the word itself; `[a, b]` is a list of words."""
    try:
        return _without_none(tomllib.loads(f"value = {text}"))["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        if text.startswith("[") and text.endswith("]"):
            return [read_value(word.strip()) for word in text[1:-1].split(",") if word.strip()]
        return None if text == "none" else text


def toml_text(data: Mapping[str, Any]) -> str:
    """Returns plain data as TOML: first the values, then a table for each mapping."""
    return "\n".join(_lines(data, ())).strip("\n") + "\n"


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested mappings as one, with dotted keys; a mapping with nothing in it is left out."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return found


def nested(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a mapping with dotted keys as nested ones."""
    whole: dict[str, Any] = {}
    for dotted, value in data.items():
        *path, last = dotted.split(".")
        inner = whole
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return whole


def _lines(data: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    values = {key: value for key, value in data.items() if not isinstance(value, Mapping)}
    if path and values:
        yield f"\n[{'.'.join(map(_key, path))}]"
    for key, value in values.items():
        yield f"{_key(key)} = {_text(value)}"
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _lines(value, (*path, key))


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else json.dumps(key, ensure_ascii=False)


def _text(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return f"[{', '.join(map(_text, value))}]"


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return None if value == "none" else value
