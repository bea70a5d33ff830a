"""Rendered worlds on disk: memory-mapped files of pictures and masks, with their labels."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from composable_energy.errors import FileFormatError, OptionError, StorageError
from composable_energy.files import exists, expanded, read_bytes, replace_file
from composable_energy.options import check_integer
from composable_energy_image.data.pictures import Labels, labels_from_numbers
from composable_energy_image.data.source import PictureSource, ReadRequest, array_source, join_names
from composable_energy_image.data.world import Scenes, World
from composable_energy_viz.files import check_archive, regular

PART = 1_000
"""Pictures that are rendered and marked as done together."""

_METADATA, _LABELS, _IMAGES, _MASKS = "world.json", "labels.npz", "images.npy", "masks.npy"
_COMPARED = 16  # pictures whose labels are compared to detect another world or other options
_ADVICE = "Delete the folder and render them again."


def render_to(folder: str | Path, world: World, n: int, seed: int = 0, *, masks: bool = False, progress: bool = False) -> Scenes:
    """Renders $n$ pictures of a seed into a folder, resuming where an interrupted call stopped, and returns them memory-mapped.

    The folder holds `images.npy`, bytes with shape $(N, C, H, W)$; with `masks`, `masks.npy`, bytes with shape $(N, H, W)$; `labels.npz`,
    an array for each field; and `world.json`, the metadata and the number of finished pictures.

    Raises:
        OptionError: A number is negative or not whole.
        FileFormatError: The folder holds other pictures or files, or damaged ones.
        StorageError: The disk is full or not writable, or has no space for the pictures.
        ExtraNotInstalled: The world needs a package that is not installed. Nothing is written.
    """
    folder = expanded(folder)
    check_integer("n", n, least=0)
    options = json.loads(json.dumps(world.options, default=str))
    classes = {name: list(field.values) for name, field in world.fields.items() if field.values}
    about = {"world": world.name, "size": world.size, "options": options, "n": int(n), "seed": int(seed), "masks": masks}
    metadata = {**about, "classes": classes}
    first = world.labels(min(n, _COMPARED), seed)
    done = _count_done(folder, metadata, first)
    if done == n and done is not None:
        return open_scenes(folder)
    _check_needs(folder, world, first, n - (done or 0), masks)
    with _report_storage(folder), ExitStack() as stack:
        if done is None:
            folder.mkdir(parents=True, exist_ok=True)
            _write_metadata(folder, metadata, 0)
            _write_labels(folder, first)
        pixels = stack.enter_context(_open_rows(folder / _IMAGES, (n, world.channels, world.size, world.size), done))
        regions = stack.enter_context(_open_rows(folder / _MASKS, (n, world.size, world.size), done)) if masks else None
        bar = stack.enter_context(tqdm(total=n, desc=world.name, unit="img", disable=not progress))
        parts: list[Mapping[str, np.ndarray]] = []
        for start in range(0, n, PART):
            stop = min(start + PART, n)
            parts.append(world.labels(stop - start, seed, start))
            if done is None or start >= done:
                scenes = world.render(parts[-1], masks=masks)
                for file, rows in ((pixels, scenes.images), (regions, scenes.masks)):
                    if file is not None and rows is not None:
                        file.write(np.ascontiguousarray(rows).data)
                        file.flush()
                if stop < n:
                    _write_metadata(folder, metadata, stop)  # last, because it marks them as done
            bar.update(stop - start)
        _write_labels(folder, {name: np.concatenate([first[name][:0], *(part[name] for part in parts)]) for name in first})
        _write_metadata(folder, metadata, n)
    return open_scenes(folder)


def _check_needs(folder: Path, world: World, labels: Mapping[str, np.ndarray], n: int, masks: bool) -> None:
    """Raises if the world cannot render here or the disk has no space, before anything is written."""
    if not n:
        return
    world.render({name: array[:1] for name, array in labels.items()}, masks=masks)
    needed = n * (world.channels + masks) * world.size**2
    free = shutil.disk_usage(next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())).free
    if needed > free:
        raise StorageError(f"{n:,} pictures need {needed / 1e9:.3g} GB in {folder}, and {free / 1e9:.3g} GB are free: ask for fewer.")


def open_scenes(folder: str | Path) -> Scenes:
    """Opens the pictures of a folder that `render_to` finished; pixels and masks are memory-mapped.

    Raises:
        FileFormatError: The folder has no pictures, or they are unfinished or damaged.
    """
    folder = expanded(folder)
    if (metadata := _read_metadata(folder)) is None or metadata["done"] != metadata["n"]:
        state = "holds no rendered pictures" if metadata is None else f"has {metadata['done']} of {metadata['n']} pictures"
        raise FileFormatError(f"The folder {folder} {state}: render them with `composable-energy render WORLD -n N -o {folder}`.")
    n, size = metadata["n"], metadata["size"]
    images, labels = _open_array(folder / _IMAGES, (n, None, size, size)), _read_labels(folder)
    found = Scenes(images, labels, _open_array(folder / _MASKS, (n, size, size)) if metadata["masks"] else None)
    if wrong := [name for name, array in found.labels.items() if len(array) != n]:
        raise FileFormatError(f"{folder / _LABELS} does not have {n} values of {', '.join(wrong)}. {_ADVICE}")
    return found


def is_rendered(path: Path) -> bool:
    """Returns whether a folder holds a rendered world."""
    return (path / _METADATA).is_file() and (path / _LABELS).is_file()


def read_rendered(request: ReadRequest) -> PictureSource:
    """Reads a rendered world. Labels with one class for each picture become attributes; numbers, and labels of several objects, do not."""
    folder = request.path
    scenes, metadata = open_scenes(folder), _read_metadata(folder) or {}
    world = metadata["world"]
    description = f"a rendered world, {world}"
    request.check(description, hint=" (render the other part with another seed)")
    if not len(scenes):
        raise FileFormatError(f"{folder} holds no pictures: render some with `composable-energy render {world} -n N -o {folder}`.")
    labels = {}
    for name, array in scenes.labels.items():
        if array.ndim == 1 and array.dtype.kind in "bi":
            values, names = torch.from_numpy(array.astype(np.int64)), metadata["classes"].get(name)
            try:
                labels[name] = labels_from_numbers(values) if names is None else Labels(values, names)
            except OptionError as error:
                raise FileFormatError(f"{folder}, labels {name!r}: {error}") from None
    if left_out := [name for name in scenes.labels if name not in labels]:
        description += f" (no classes: {', '.join(left_out)})"
    return array_source(description, folder, scenes.images, [folder / _IMAGES, folder / _LABELS], labels)


def _count_done(folder: Path, metadata: Mapping[str, Any], first: Mapping[str, np.ndarray]) -> int | None:
    """Returns the number of finished pictures in a folder; None if there are none. Other files in it would be replaced or mixed up."""
    if (saved := _read_metadata(folder)) is None:
        if others := sorted(path.name for path in folder.glob("[!.]*")):
            raise FileFormatError(f"The folder {folder} holds other files, {join_names(others)}, and no {_METADATA}. Use an empty folder.")
        return None
    found, requested = ({**of["options"], **of, "options": None, "classes": None} for of in (saved, metadata))
    differences = [f"{name} {found[name]!r} instead of {value!r}" for name, value in requested.items() if found.get(name, value) != value]
    if not differences and saved["done"]:
        labels = _read_labels(folder)
        pairs = [(labels[name][:_COMPARED], array) for name, array in first.items() if name in labels]
        same = labels.keys() == first.keys() and all(a.shape == b.shape and np.allclose(a, b, atol=1e-5) for a, b in pairs)
        differences = [] if same else ["the labels differ, so the world is another"]
    if differences:
        raise FileFormatError(f"The folder {folder} holds other pictures: {', '.join(differences)}. Use another folder or delete this one.")
    return saved["done"] if saved["done"] == saved["n"] else saved["done"] // PART * PART or None


def _read_metadata(folder: Path) -> dict[str, Any] | None:
    if not exists(path := folder / _METADATA):
        return None
    try:
        metadata = json.loads(read_bytes(path))
        numbers = [metadata[name] for name in ("size", "n", "seed", "done")]
        if not (all(type(number) is int for number in numbers) and 0 <= metadata["done"] <= metadata["n"]):
            raise ValueError(f"its numbers are {numbers}")
        classes = {str(name): tuple(map(str, values)) for name, values in metadata.get("classes", {}).items()}
        own = {"world": str(metadata["world"]), "options": dict(metadata.get("options", {})), "masks": bool(metadata["masks"])}
        return {**metadata, **own, "classes": classes}
    except (FileFormatError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"Cannot read {path}: {type(error).__name__}: {error}. {_ADVICE}") from error


def _read_labels(folder: Path) -> dict[str, np.ndarray]:
    try:
        check_archive(folder / _LABELS)
        with (folder / _LABELS).open("rb") as file, np.load(file) as labels:
            found = dict(labels)
            if not all(map(np.ndim, found.values())):
                raise ValueError("it holds a single value, or a file that is no array")
            return found
    except Exception as error:  # NumPy and zipfile do not document their errors for damaged files
        raise FileFormatError(f"Cannot read {folder / _LABELS}: {error}. {_ADVICE}") from error


def _open_array(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(regular(path), mode="r") if shape[0] else np.load(regular(path))
    except (FileFormatError, OSError, ValueError, EOFError) as error:
        raise FileFormatError(f"Cannot read {path}: {error}. {_ADVICE}") from error
    expected = tuple(found if length is None else length for length, found in zip(shape, array.shape, strict=False))
    if array.shape != expected or array.dtype != np.uint8:
        raise FileFormatError(f"{path} has {array.dtype} with shape {array.shape}, expected bytes with shape {shape}. {_ADVICE}")
    return array


@contextmanager
def _open_rows(path: Path, shape: tuple[int, ...], done: int | None) -> Iterator[BinaryIO]:
    """Opens the file of an array of bytes to append rows; rows after those that are done are truncated."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": shape, "fortran_order": False, "descr": "|u1"})
    end = len(header.getvalue()) + (done or 0) * int(np.prod(shape[1:]))
    if done is None:
        path.write_bytes(header.getvalue())
    try:
        file = regular(path).open("r+b")
    except (FileFormatError, OSError) as error:
        raise FileFormatError(f"Cannot read {path}: {error}. {_ADVICE}") from error
    with file:
        if file.read(len(header.getvalue())) != header.getvalue() or path.stat().st_size < end:
            raise FileFormatError(f"{path} has fewer than the {done} finished pictures, or another shape. {_ADVICE}")
        file.truncate(end)
        file.seek(end)
        yield file


def _write_labels(folder: Path, labels: Mapping[str, np.ndarray]) -> None:
    file = BytesIO()
    np.savez(file, **labels)  # pyright: ignore[reportArgumentType]
    replace_file(folder / _LABELS, file.getvalue())


def _write_metadata(folder: Path, metadata: Mapping[str, object], done: int) -> None:
    replace_file(folder / _METADATA, f"{json.dumps({**metadata, 'done': done})}\n".encode())


@contextmanager
def _report_storage(folder: Path) -> Iterator[None]:
    try:
        yield
    except (FileFormatError, StorageError):
        raise
    except OSError as error:
        raise StorageError(f"Cannot write pictures to {folder}: {error}. Free some space; the same call resumes.") from error
