"""Tables of attributes: CSV files whose first column names pictures."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from composable_energy.errors import FileFormatError, OptionError
from composable_energy.files import read_bytes
from composable_energy_image.data.labels import Labels, labels_from_words
from composable_energy_image.data.source import ENDINGS, join_names


def read_labels(path: Path, names: Sequence[str], folder: Path, strict: bool) -> dict[str, Labels]:
    """Returns the attributes of the pictures of a folder from a table; those of a picture without a row are unknown."""
    columns, rows = _read_csv(path)
    check_match(path, rows, names, folder, strict)
    found, unknown = {}, [""] * len(columns)
    for column, attribute in enumerate(columns):
        try:
            found[attribute] = labels_from_words([rows.get(name, unknown)[column] for name in names])
        except OptionError as error:
            raise FileFormatError(f"{path}, column {attribute!r}: {error}") from None
    return found


def _read_csv(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Returns the names of the attributes and the cells of each picture; the separator is the most frequent one of the first line."""
    lines = read_text(path).splitlines()
    head = lines[0] if lines else ""
    reader = csv.reader(lines, delimiter=max(",;\t", key=head.count), strict=True)
    rows, line_of = {}, {}
    try:
        first, *columns = [name.strip() for name in next(reader, [])] or [""]
        if not columns or "" in columns or len(set(columns)) < len(columns) or first.lower().endswith(ENDINGS):
            raise FileFormatError(
                f"{path}: the first line must name the columns, the file first and then each attribute once, as in "
                f"'file,smiling,male', got {head[:80]!r}."
            )
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            name = row[0].strip().replace("\\", "/").removeprefix("./")
            if len(row) != len(columns) + 1:
                raise FileFormatError(f"{path}, line {reader.line_num}: expected {len(columns) + 1} cells, found {len(row)}.")
            if name in rows:
                raise FileFormatError(f"{path}, line {reader.line_num}: {name} is already in line {line_of[name]}; keep one of them.")
            rows[name], line_of[name] = row[1:], reader.line_num
    except csv.Error as error:
        raise FileFormatError(f"{path}, line {reader.line_num}: {error}.") from None
    if not rows:
        raise FileFormatError(f"{path} lists no picture: each line after the first needs a file name and its attributes.")
    return columns, rows


def check_match(path: Path, listed: Mapping[str, object], present: Sequence[str], folder: Path, strict: bool) -> None:
    """Raises if a table and the files of a folder do not match, for example after an incomplete download.

    Without `strict`, one matching name is enough.
    """
    files = set(present)
    missing = [name for name in listed if name not in files]
    if missing and (strict or len(missing) == len(listed)):
        raise FileFormatError(
            f"{len(missing):,} of the {len(listed):,} pictures that {path} lists are not in {folder}: {join_names(missing)}. "
            "File names are relative to that folder; add the pictures or delete the lines, or give strict=False to ignore such lines."
        )
    extra = [name for name in present if name not in listed]
    if extra and strict:
        raise FileFormatError(
            f"{len(extra):,} of the {len(present):,} pictures in {folder} are not listed in {path}: {join_names(extra)}. "
            "Add lines for them (an empty cell is unknown), or give strict=False to use them without labels."
        )


def read_text(path: Path) -> str:
    """Returns the text of a file in UTF-8."""
    try:
        return read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise FileFormatError(f"{path} is not text in UTF-8: save it as CSV in UTF-8.") from None
