"""Tables of attributes: CSV files whose first column names pictures."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from composable_energy.errors import FileFormatError, OptionError
from composable_energy_image.data.labels import Labels, labels_of_words
from composable_energy_image.data.source import ENDINGS, named

__all__ = ["Table", "check_match", "read_csv", "text_of"]


@dataclass(frozen=True)
class Table:
    """Rows of words by the name of a picture, and the names of the columns."""

    path: Path
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[str]]

    def labels(self, names: Sequence[str]) -> dict[str, Labels]:
        """Returns the attributes of pictures by their names; of a picture without a row nothing is known.

        Raises:
            FileFormatError: A column is empty, or has words beside numbers.
        """
        unknown = ("",) * len(self.columns)
        rows = [self.rows.get(name, unknown) for name in names]
        found = {}
        for column, name in enumerate(self.columns):
            try:
                found[name] = labels_of_words([row[column] for row in rows])
            except OptionError as error:
                raise FileFormatError(f"{self.path}, column {name!r}: {error}") from None
        return found


def read_csv(path: Path) -> Table:
    """Reads a table: a line of column names, then for each picture its file name and its attributes.

    Columns are divided by commas, semicolons or tabs, whichever the first line has most of.

    Raises:
        FileFormatError: The file is missing, has no columns or rows, a row has too many or too few cells, or a picture has two rows.
    """
    lines = text_of(path).splitlines()
    head = lines[0] if lines else ""
    reader = csv.reader(lines, delimiter=max(",;\t", key=head.count), strict=True)
    rows, places = {}, {}
    try:
        first, *columns = [name.strip() for name in next(reader, [])] or [""]
        if not columns or "" in columns or len(set(columns)) < len(columns) or first.lower().endswith(ENDINGS):
            raise FileFormatError(
                f"{path}: the first line must name the columns, that of the file names and then each attribute once, as in "
                f"'file,smiling,male', got {head[:80]!r}."
            )
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            name = row[0].strip().replace("\\", "/").removeprefix("./")
            if len(row) != len(columns) + 1:
                raise FileFormatError(f"{path}, line {reader.line_num}: expected {len(columns) + 1} cells, found {len(row)}.")
            if name in rows:
                raise FileFormatError(f"{path}, line {reader.line_num}: {name} stands in line {places[name]} already; keep one of them.")
            rows[name], places[name] = row[1:], reader.line_num
    except csv.Error as error:
        raise FileFormatError(f"{path}, line {reader.line_num}: {error}.") from None
    if not rows:
        raise FileFormatError(f"{path} names no picture: each line after the first is a file name and its attributes.")
    return Table(path, tuple(columns), rows)


def check_match(path: Path, listed: Mapping[str, object], there: Sequence[str], folder: Path, strict: bool) -> None:
    """Raises if a table and the files do not agree, as those of different versions or of half a download do.

    Without `strict` it is enough that one name of the table is there.
    """
    files = set(there)
    missing = [name for name in listed if name not in files]
    if missing and (strict or len(missing) == len(listed)):
        raise FileFormatError(
            f"{len(missing):,} of the {len(listed):,} pictures that {path} names are not in {folder}: {named(missing)}. "
            "File names are relative to that folder; add the pictures or delete the lines, or give strict=False to leave such lines out."
        )
    extra = [name for name in there if name not in listed]
    if extra and strict:
        raise FileFormatError(
            f"{len(extra):,} of the {len(there):,} pictures in {folder} are not named in {path}: {named(extra)}. "
            "Add lines for them (an empty cell is unknown), or give strict=False to take them without labels."
        )


def text_of(path: Path) -> str:
    """Returns the text of a file in UTF-8.

    Raises:
        FileFormatError: There is no such file, or it is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise FileFormatError(f"{path} is no text in UTF-8: save it as CSV in UTF-8.") from None
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read ({error.strerror}).") from None
