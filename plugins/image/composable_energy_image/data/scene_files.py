"""Worlds on disk: pictures and masks as files of bytes that are mapped into memory, labels beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from composable_energy.errors import FileFormatError, StorageError
from composable_energy_image.data.world import Scenes, World, check_integer

__all__ = ["PART", "open_scenes", "render_to"]

PART = 1_000
"""Pictures that are drawn and vouched for together."""

_TOLD, _LABELS, _IMAGES, _MASKS = "world.json", "labels.npz", "images.npy", "masks.npy"
_COMPARED = 16  # pictures whose labels tell whether a folder is of the same world with the same options
_ADVICE = "Delete the folder and draw them again."


def render_to(folder: str | Path, world: World, n: int, seed: int = 0, *, masks: bool = False, progress: bool = False) -> Scenes:
    """Draws pictures of a seed into a folder, or goes on where it stopped, and returns them mapped from there.

    The folder has `images.npy`, bytes with shape $(N, C, H, W)$; `masks.npy`, bytes with shape $(N, H, W)$, if asked for; `labels.npz`,
    an array for each field; and `world.json`, which says what they are and how many are done.

    Args:
        folder: Where to.
        world: What to draw.
        n: How many pictures.
        seed: Which.
        masks: Whether masks are wanted.
        progress: Whether to show a bar.

    Raises:
        OptionError: A number is not a whole one, or negative.
        FileFormatError: The folder holds other pictures, or files that cannot be gone on with.
        StorageError: The disk is full, or does not let us write.
    """
    from tqdm import tqdm

    folder = Path(folder).expanduser()
    check_integer("n", n)
    options = json.loads(json.dumps(world.options, default=str))
    told = {"world": world.name, "size": world.size, "options": options, "n": int(n), "seed": int(seed), "masks": masks}
    first = world.labels(min(n, _COMPARED), seed)
    done = _done(folder, told, first)
    if done == n and done is not None:
        return open_scenes(folder)
    with _storing(folder), ExitStack() as stack:
        if done is None:
            folder.mkdir(parents=True, exist_ok=True)
            _write_labels(folder, first)
        shape = (n, world.channels, world.size, world.size)
        pixels = stack.enter_context(_rows(folder / _IMAGES, shape, done))
        regions = stack.enter_context(_rows(folder / _MASKS, (n, world.size, world.size), done)) if masks else None
        bar = stack.enter_context(tqdm(total=n, desc=world.name, unit="img", disable=not progress))
        parts: list[Mapping[str, np.ndarray]] = []
        for start in range(0, n, PART):
            stop = min(start + PART, n)
            parts.append(world.labels(stop - start, seed, start))
            if done is None or start >= done:
                scenes = world.render(parts[-1], masks=masks)
                _append(pixels, scenes.images)
                if regions is not None and scenes.masks is not None:
                    _append(regions, scenes.masks)
                if stop < n:
                    _write(folder, told | {"done": stop})  # after the pictures, so it vouches for them
            bar.update(stop - start)
        _write_labels(folder, {name: np.concatenate([first[name][:0], *(part[name] for part in parts)]) for name in first})
        _write(folder, told | {"done": n})
    return open_scenes(folder)


def open_scenes(folder: str | Path) -> Scenes:
    """Returns the pictures of a folder that `render_to` finished; pixels and masks are mapped, not read.

    Raises:
        FileFormatError: The folder holds none, or they are not finished, or damaged.
    """
    folder = Path(folder).expanduser()
    told = _read(folder)
    if told is None or told["done"] != told["n"]:
        state = "holds no rendered pictures" if told is None else f"has {told['done']} of {told['n']} pictures"
        raise FileFormatError(f"The folder {folder} {state}: draw them with `composable-energy render WORLD -n N -o {folder}`.")
    found = Scenes(
        _mapped(folder / _IMAGES, (told["n"], None, told["size"], told["size"])),
        _read_labels(folder),
        _mapped(folder / _MASKS, (told["n"], told["size"], told["size"])) if told["masks"] else None,
    )
    if short := [name for name, array in found.labels.items() if len(array) != told["n"]]:
        raise FileFormatError(f"{folder / _LABELS} has other than {told['n']} values of {', '.join(short)}. {_ADVICE}")
    return found


def _done(folder: Path, told: Mapping[str, Any], first: Mapping[str, np.ndarray]) -> int | None:
    """How many pictures a folder has of those that are asked for; None if nothing was begun."""
    before = _read(folder)
    if before is None:
        return None
    there, asked = _flat(before), _flat(told)
    said = [f"{name} {there[name]!r} instead of {asked[name]!r}" for name in asked if there.get(name, asked[name]) != asked[name]]
    if not said:
        saved = _read_labels(folder)
        same = saved.keys() == first.keys() and all(_near(saved[name][:_COMPARED], array) for name, array in first.items())
        said = [] if same else ["the labels differ, so the world was another"]
    if said:
        raise FileFormatError(f"The folder {folder} holds other pictures: {', '.join(said)}. Take another folder, or delete this one.")
    return before["done"] if before["done"] == before["n"] else before["done"] // PART * PART


def _flat(told: Mapping[str, Any]) -> dict[str, Any]:
    return {**told["options"], **{name: value for name, value in told.items() if name not in ("options", "done")}}


def _near(array: np.ndarray, other: np.ndarray) -> bool:
    return array.shape == other.shape and np.allclose(array, other, atol=1e-5)


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / _TOLD
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        numbers = [told[name] for name in ("size", "n", "seed", "done")]
        if not (all(type(number) is int for number in numbers) and 0 <= told["done"] <= told["n"]):
            raise ValueError(f"its numbers are {numbers}")
        return {"options": {}, **told, "world": str(told["world"]), "masks": bool(told["masks"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"Cannot read {path}: {type(error).__name__}: {error}. {_ADVICE}") from error


def _read_labels(folder: Path) -> dict[str, np.ndarray]:
    try:
        with (folder / _LABELS).open("rb") as file, np.load(file) as labels:
            return dict(labels)
    except Exception as error:  # NumPy and zipfile raise what they like for a file that is none
        raise FileFormatError(f"Cannot read {folder / _LABELS}: {error}. {_ADVICE}") from error


def _mapped(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r") if shape[0] else np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise FileFormatError(f"Cannot read {path}: {error}. {_ADVICE}") from error
    wanted = tuple(found if asked is None else asked for asked, found in zip(shape, array.shape, strict=False))
    if array.shape != wanted or array.dtype != np.uint8:
        raise FileFormatError(f"{path} has {array.dtype} with shape {array.shape}, expected bytes with shape {shape}. {_ADVICE}")
    return array


@contextmanager
def _rows(path: Path, shape: tuple[int, ...], done: int | None) -> Iterator[BinaryIO]:
    """A file of an array of bytes, of which some rows are done, open for the others; what lies behind those that are done is cut off."""
    if done is None:
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "|u1"})
            yield file
        return
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            found, _, kind = np.lib.format.read_array_header_1_0(file)
            end = file.tell() + done * int(np.prod(shape[1:]))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"Cannot read {path}: {error}. {_ADVICE}") from error
    if found != shape or kind != np.uint8 or path.stat().st_size < end:
        raise FileFormatError(f"{path} has fewer than the {done} pictures that are done, or others. {_ADVICE}")
    with path.open("r+b") as file:
        file.truncate(end)
        file.seek(end)
        yield file


def _append(file: BinaryIO, rows: np.ndarray) -> None:
    file.write(np.ascontiguousarray(rows).data)
    file.flush()


def _write_labels(folder: Path, labels: Mapping[str, np.ndarray]) -> None:
    half = folder / f".{_LABELS}"
    with half.open("wb") as file:
        np.savez(file, **labels)  # pyright: ignore[reportArgumentType]
    half.replace(folder / _LABELS)


def _write(folder: Path, told: Mapping[str, object]) -> None:
    half = folder / f".{_TOLD}"
    half.write_text(json.dumps(told) + "\n", encoding="utf-8")
    half.replace(folder / _TOLD)


@contextmanager
def _storing(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileFormatError:
        raise
    except OSError as error:
        raise StorageError(
            f"Cannot write pictures to {folder}: {error}. Make room, or name another folder; the same call goes on."
        ) from error
