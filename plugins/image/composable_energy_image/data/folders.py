"""Readers of folders with one file per picture, image folders with a table of attributes and CelebA."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from composable_energy.errors import FileFormatError, OptionError
from composable_energy.files import exists, is_directory
from composable_energy_image.data.pictures import BINARY, Labels, check_spellings, labels_from_words
from composable_energy_image.data.source import ENDINGS, PictureSource, ReadRequest, join_names, read_text
from composable_energy_viz.files import crop_centre, read_picture

_CELEBA = "img_align_celeba"
_PARTS = ("train", "valid", "test")


def is_folder(path: Path) -> bool:
    """Returns whether a folder holds a picture, at any depth."""
    return is_directory(path) and next(_files(path, set()), None) is not None


def read_folder(request: ReadRequest) -> PictureSource:
    """Reads an image folder: with a table of attributes, with one sub-folder per class, or without labels."""
    folder = request.path
    request.check("an image folder", hint=" (open that of another part by its own path)", own_labels=False)
    if not (names := sorted(path.relative_to(folder).as_posix() for path in _list_files(request))):
        raise FileFormatError(f"{folder} holds no pictures: expected files that end in {', '.join(ENDINGS)}, at any depth.")
    tables = [request.labels] if request.labels else sorted(path for path in folder.glob("*.csv") if not path.name.startswith("."))
    if len(tables) > 1:
        listed = join_names([path.name for path in tables])
        raise FileFormatError(f"{folder} holds {len(tables)} tables, {listed}: choose one by labels= (--labels of the command `train`).")
    if tables:
        labels = read_labels(tables[0], names, folder, request.strict)
    elif all("/" in name for name in names):
        classes = [name.split("/")[0] for name in names]
        if {name.lower() for name in classes} <= {*_PARTS, "val", "validation"}:
            raise FileFormatError(f"{folder} has the parts of a data set, {join_names([*set(classes)])}, and no classes: open one.")
        index_of = {name: index for index, name in enumerate(check_spellings(sorted(set(classes))))}
        labels = {"class": Labels(torch.tensor([index_of[name] for name in classes]), tuple(index_of))}
    else:
        labels = {}
    return _source("an image folder", [folder / name for name in names], lambda path: read_picture(path)[0], labels)


def is_celeba(path: Path) -> bool:
    """Returns whether a folder holds CelebA's folder of aligned pictures."""
    return is_directory(path / _CELEBA)


def read_celeba(request: ReadRequest) -> PictureSource:
    """Reads CelebA: aligned pictures of 178 x 218, cropped to the central 178 x 178, and attributes of -1 and 1."""
    description, folder = "CelebA", request.path / _CELEBA
    if not exists(path := request.path / "list_attr_celeba.txt"):
        raise FileFormatError(f"{path} is missing: put it beside {_CELEBA}, or open {folder} as an image folder with its table by labels=.")
    partition = request.path / "list_eval_partition.txt"
    part = request.check(description, _PARTS if partition.exists() else ("train",))
    columns, rows = _read_attributes(path)
    present = sorted(file.name for file in _list_files(ReadRequest(folder, progress=request.progress)))
    check_match(path, rows, present, folder, request.strict)
    listed = _read_partition(partition, rows)[part] if partition.exists() else list(rows)
    existing = set(present)
    if not (names := [name for name in listed if name in existing]):
        raise FileFormatError(f"{folder} holds no picture of the part {part!r}.")
    values = torch.frombuffer(bytearray().join(rows[name] for name in names), dtype=torch.uint8).long().view(len(names), -1)
    labels = {name: Labels(values[:, column].contiguous(), BINARY) for column, name in enumerate(columns)}
    files = [folder / name for name in names]

    def read(path: Path) -> Image.Image:
        picture, _ = read_picture(path)
        return crop_centre(picture, *2 * (min(picture.size),))

    return _source(f"{description}, part {part}", files, read, labels)


def _source(description: str, files: list[Path], read: Callable[[Path], Image.Image], labels: dict[str, Labels]) -> PictureSource:
    return PictureSource(description, len(files), lambda row: read(files[row]), lambda row: str(files[row]), files, labels)


def _read_attributes(path: Path) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """Returns the names of the attributes, and for each picture one byte per attribute, a fiftieth of the memory of words."""
    lines = read_text(path).splitlines()
    columns = tuple(lines[1].split()) if len(lines) > 1 else ()
    if not columns or not lines[0].strip().isdecimal() or len(set(columns)) < len(columns):
        raise FileFormatError(f"{path}: the first line must be the number of pictures and the second the names of the attributes.")
    rows, expected = {}, int(lines[0])
    for number, row in enumerate((line.split() for line in lines[2:]), 3):
        if not row:
            continue
        if len(row) != len(columns) + 1 or not set(row[1:]) <= {"1", "-1"}:
            raise FileFormatError(f"{path}, line {number}: expected a file name and {len(columns)} values of 1 or -1, got {len(row) - 1}.")
        if row[0] in rows:
            raise FileFormatError(f"{path}, line {number}: {row[0]} is listed twice; keep one of the lines.")
        rows[row[0]] = bytes(value == "1" for value in row[1:])
    if len(rows) != expected:
        raise FileFormatError(f"{path} is truncated: its first line says {expected:,} pictures, found {len(rows):,}. Download it again.")
    return columns, rows


def _read_partition(path: Path, rows: dict[str, bytes]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {part: [] for part in _PARTS}
    listed = set()
    for number, row in enumerate((line.split() for line in read_text(path).splitlines()), 1):
        if not row:
            continue
        if len(row) != 2 or row[1] not in ("0", "1", "2"):
            raise FileFormatError(f"{path}, line {number}: expected a file name and 0, 1 or 2, found {' '.join(row)[:80]!r}.")
        parts[_PARTS[int(row[1])]].append(row[0])
        listed.add(row[0])
    if listed != rows.keys():
        differ = join_names(sorted(listed ^ rows.keys()))
        raise FileFormatError(f"{path} lists {len(listed):,} pictures, that of attributes {len(rows):,}: only one of them has {differ}.")
    return parts


def _list_files(request: ReadRequest) -> list[Path]:
    return list(tqdm(_files(request.path, set()), desc=f"listing {request.path.name}", unit="file", disable=not request.progress))


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _files(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yields all pictures below a folder. Hidden files are skipped; links are followed, each folder once."""
    if ((status := folder.stat()).st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__")):
                continue
            if _is_dir(entry):
                if not exists(Path(entry.path) / "recipe.toml"):  # a run, whose sheets of samples are no data
                    yield from _files(Path(entry.path), seen)
            elif entry.name.lower().endswith(ENDINGS):
                yield Path(entry.path)


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
    text = read_text(path)
    head = text.partition("\n")[0]  # str.splitlines knows other ends of lines
    bare = "".join(head.split('"')[::2])  # without names in quotes
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=bare.count), strict=True)
    rows, line_of = {}, {}
    try:
        first, *columns = [name.strip() for name in next(reader, [])] or [""]
        if not columns or "" in columns or len(set(columns)) < len(columns) or first.lower().endswith(ENDINGS):
            raise FileFormatError(f"{path}: the first line must name the columns, each once, as in 'file,smiling,male', got {head[:80]!r}.")
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
    """Raises if a table does not match the files of a folder. Without `strict`, one matching name is enough."""
    files = set(present)
    if (missing := [name for name in listed if name not in files]) and (strict or len(missing) == len(listed)):
        raise FileFormatError(
            f"{len(missing):,} of the {len(listed):,} pictures that {path} lists are not in {folder}: {join_names(missing)}. "
            "Names are relative to that folder; add the pictures or delete the lines, or ignore these: strict=False (data.strict=false)."
        )
    if strict and (extra := [name for name in present if name not in listed]):
        raise FileFormatError(
            f"{len(extra):,} of the {len(present):,} pictures in {folder} are not listed in {path}: {join_names(extra)}. "
            "Add lines for them (an empty cell is unknown), or give strict=False (data.strict=false) to use them without labels."
        )
