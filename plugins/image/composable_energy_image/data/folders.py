"""Pictures in files of their own: an image folder, and CelebA."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from composable_energy.errors import FileFormatError
from composable_energy_image.data.attribute_table import check_match, read_csv, text_of
from composable_energy_image.data.labels import BINARY, Labels
from composable_energy_image.data.source import ENDINGS, Request, Source, named, opened

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["is_celeba", "is_folder", "read_celeba", "read_folder"]

_CELEBA = "img_align_celeba"
_PARTS = ("train", "valid", "test")


def is_folder(path: Path) -> bool:
    """Whether some picture lies in a folder, at any depth."""
    return path.is_dir() and next(_files(path, set()), None) is not None


def read_folder(request: Request) -> Source:
    """An image folder: with a table of attributes, with a sub-folder for each class, or without labels.

    Raises:
        FileFormatError: There is no picture, or the table does not fit.
    """
    folder = request.path
    told = "an image folder"
    request.among(("train",), f"{told} (open that of another part by its own path)")
    names = [path.relative_to(folder).as_posix() for path in _scanned(request)]
    if not names:
        raise FileFormatError(f"{folder} holds no pictures: expected files that end in {', '.join(ENDINGS)}, at any depth.")
    names.sort()
    table = request.labels or _only_table(folder)
    if table is not None:
        found = read_csv(table)
        check_match(table, found.rows, names, folder, request.strict)
        labels = found.labels(names)
    elif all("/" in name for name in names):
        classes = sorted({name.split("/")[0] for name in names})
        place = {name: index for index, name in enumerate(classes)}
        labels = {"class": Labels(torch.tensor([place[name.split("/")[0]] for name in names]), tuple(classes))}
    else:
        labels = {}
    files = [folder / name for name in names]
    return Source(told, len(files), lambda row: opened(files[row]), lambda row: str(files[row]), files, labels)


def is_celeba(path: Path) -> bool:
    """Whether a folder holds CelebA's folder of aligned pictures."""
    return (path / _CELEBA).is_dir()


def read_celeba(request: Request) -> Source:
    """CelebA: aligned pictures of 178 x 218, cut to the 178 x 178 in the middle; attributes of -1 and 1.

    Raises:
        FileFormatError: A list is cut off, or names pictures that are not there.
    """
    told, folder = "CelebA", request.path / _CELEBA
    request.without_labels(told)
    path = request.path / "list_attr_celeba.txt"
    if not path.exists():
        raise FileFormatError(f"{path} is missing: put it beside {_CELEBA}, or open {folder} as an image folder with its table by labels=.")
    partition = request.path / "list_eval_partition.txt"
    part = request.among(_PARTS if partition.exists() else ("train",), told)
    columns, rows = _attributes(path)
    there = sorted(file.name for file in _scanned(Request(folder, progress=request.progress)))
    check_match(path, rows, there, folder, request.strict)
    chosen = _partition(partition, rows)[part] if partition.exists() else list(rows)
    files_there = set(there)
    names = [name for name in chosen if name in files_there]
    if not names:
        raise FileFormatError(f"{folder} holds no picture of the part {part!r}.")
    values = torch.frombuffer(bytearray().join(rows[name] for name in names), dtype=torch.uint8).long().view(len(names), -1)
    labels = {name: Labels(values[:, column].contiguous(), BINARY) for column, name in enumerate(columns)}
    files = [folder / name for name in names]
    return Source(f"{told}, part {part}", len(files), lambda row: _square(opened(files[row])), lambda row: str(files[row]), files, labels)


def _attributes(path: Path) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """Returns the names of the attributes, and for each picture a byte of 0 or 1 for each: 40 words of text would take 50 times as much."""
    lines = text_of(path).splitlines()
    columns = tuple(lines[1].split()) if len(lines) > 1 else ()
    if not columns or not lines[0].strip().isdecimal() or len(set(columns)) < len(columns):
        raise FileFormatError(f"{path}: the first line must be the number of pictures and the second the names of the attributes.")
    rows, expected = {}, int(lines[0])
    for number, row in enumerate((line.split() for line in lines[2:]), 3):
        if not row:
            continue
        if len(row) != len(columns) + 1 or not set(row[1:]) <= {"1", "-1"}:
            raise FileFormatError(
                f"{path}, line {number}: expected a file name and {len(columns)} values of 1 or -1, found {len(row) - 1}."
            )
        if row[0] in rows:
            raise FileFormatError(f"{path}, line {number}: {row[0]} stands there twice; keep one of them.")
        rows[row[0]] = bytes(value == "1" for value in row[1:])
    if len(rows) != expected:
        raise FileFormatError(f"{path} is cut off: its first line says {expected:,} pictures, found {len(rows):,}. Fetch it again.")
    return columns, rows


def _partition(path: Path, rows: dict[str, bytes]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {part: [] for part in _PARTS}
    told = set()
    for number, row in enumerate((line.split() for line in text_of(path).splitlines()), 1):
        if not row:
            continue
        if len(row) != 2 or row[1] not in ("0", "1", "2"):
            raise FileFormatError(f"{path}, line {number}: expected a file name and 0, 1 or 2, found {' '.join(row)[:80]!r}.")
        parts[_PARTS[int(row[1])]].append(row[0])
        told.add(row[0])
    if told != rows.keys():
        differ = sorted(told ^ rows.keys())
        raise FileFormatError(f"{path} has {len(told):,} pictures, the list of attributes {len(rows):,}: only one names {named(differ)}.")
    return parts


def _only_table(folder: Path) -> Path | None:
    tables = sorted(path for path in folder.glob("*.csv") if not path.name.startswith("."))
    if len(tables) > 1:
        raise FileFormatError(f"{folder} holds {len(tables)} tables, {named([path.name for path in tables])}: say which by labels=.")
    return tables[0] if tables else None


def _square(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def _scanned(request: Request) -> list[Path]:
    from tqdm import tqdm

    return list(tqdm(_files(request.path, set()), desc=f"listing {request.path.name}", unit="file", disable=not request.progress))


def _files(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """All pictures below a folder; hidden files are none, and links are followed, each folder once."""
    about = folder.stat()
    if (about.st_dev, about.st_ino) in seen:
        return
    seen.add((about.st_dev, about.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__")):
                continue
            if entry.is_dir():
                yield from _files(Path(entry.path), seen)
            elif entry.name.lower().endswith(ENDINGS):
                yield Path(entry.path)
