"""Damage to bytes, edits of JSON data, and files of pictures that are damaged or much larger in memory than on disk."""

import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ODD: list[Any] = [
    *(None, True, 0, -1, 1, 2, 10**6, 10**9, 10**20, -(10**20), 0.0, -0.5, 1e300, 1e-300),
    *("", "x", "\x1b[2J", "../..", "/dev/zero", "a" * 5000),
    *([], [0], [[]], {}, {"$tensor": "x"}, {"$module": [0, ""]}, {"$module": [1, "base"]}, {"$tuple": []}, {"$slice": [0, 10**18, 1]}),
    *({"$distribution": ["Normal", {}, {}]}, {"$support": ["positive", []]}),
]
_ZEROS = gzip.compress(bytes(2**24))  # a member of a gzip file; some of them in a row are a large file
_SIDES = (0, 1, 3, 300, 9000, 12_000, 60_000, 2**31 - 1)


def damage(data: bytes, chance: random.Random) -> bytes:
    """Returns damaged bytes: flips, cuts, insertions, swaps of blocks, zeros."""
    if not data:
        return b"\0"
    place, size = chance.randrange(len(data)), chance.choice([1, 4, 16, 512])
    match chance.randrange(8):
        case 0 | 1:
            return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]
        case 2:
            return data[:place]
        case 3:
            return data[:place] + chance.randbytes(size) + data[place:]
        case 4:
            return data[:place] + data[place + size :]
        case 5:
            return data[:place] + bytes(size) + data[place + size :]
        case 6:
            first, second = sorted((place, chance.randrange(len(data))))
            blocks = data[second : second + size], data[first + size : second], data[first : first + size]
            return b"".join([data[:first], *blocks, data[second + size :]])
        case _:
            return data + data[:size]


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of each value inside JSON data."""
    if path:
        yield path
    if isinstance(data, (dict, list)):
        for key in data if isinstance(data, dict) else range(len(data)):
            yield from places(data[key], (*path, key))


def edit(data: Any, chance: random.Random) -> None:
    """Replaces, removes, doubles or moves one value inside JSON data."""
    *path, last = chance.choice(list(places(data)))
    holder = data
    for key in path:
        holder = holder[key]
    match chance.randrange(6):
        case 0 if isinstance(holder, dict):
            del holder[last]
        case 1 if isinstance(holder, dict):
            holder[chance.choice(["x", "$tensor", "terms"])] = deepcopy(chance.choice(ODD))
        case 2 if isinstance(holder, list):
            holder.insert(last, holder[last])
        case 3 if isinstance(holder, list):
            del holder[last]
        case 4 if isinstance(holder[last], int) and not isinstance(holder[last], bool):
            holder[last] += chance.choice([-1, 1, 100, 10**9])
        case _:
            holder[last] = deepcopy(chance.choice(ODD))  # a later edit may change it


def png(width: int, height: int, pixels: bytes, times: int = 1, kind: int = 0, bits: int = 8) -> bytes:
    """Returns a picture, grey or of kind 2 with colors, whose header may be wrong; its pixels are repeated."""
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(pixels) for _ in range(times)) + packer.flush()
    chunks = {b"IHDR": struct.pack(">2I5B", width, height, bits, kind, 0, 0, 0), b"IDAT": packed, b"IEND": b""}
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def idx(chance: random.Random, place: Path) -> None:
    """Writes IDX files whose header says less or more than there is."""
    n, side = chance.choice([0, 1, 2, 2, 2**16, 2**32 - 1]), chance.choice([0, 3, 3, 60_000])
    content = struct.pack(">4I", 0x803, n, side, side) + chance.randbytes(chance.choice([0, 17, 18, 18, 19]))
    whole = gzip.compress(content) + _ZEROS * chance.choice([0, 0, 1, 16])
    (place / "train-images-idx3-ubyte.gz").write_bytes(damage(whole, chance) if chance.random() < 0.5 else whole)
    (place / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">2I", 0x801, 2) + bytes(2)))


def folder_of_pictures(chance: random.Random, place: Path) -> None:
    """Writes a picture that is whole, and one that is not."""
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(place / "1.png")
    if chance.random() < 0.5:
        (place / "2.png").write_bytes(png(chance.choice(_SIDES), chance.choice(_SIDES), chance.randbytes(12)))
    elif chance.random() < 0.3:
        (place / "2.png").write_bytes(bomb())
    else:
        file = io.BytesIO()
        picture = Image.fromarray(np.frombuffer(chance.randbytes(27), np.uint8).reshape(3, 3, 3))
        picture.save(file, chance.choice(["PNG", "JPEG", "BMP", "WEBP"]))
        (place / f"2{chance.choice(['.png', '.jpg', '.bmp', '.webp'])}").write_bytes(damage(file.getvalue(), chance))


def array(chance: random.Random, place: Path) -> None:
    """Writes an archive of numpy whose list of files, or whose arrays, say other sizes."""
    file, shape = io.BytesIO(), chance.choice([(2, 3, 3, 3), (2, 3, 3), (2**31, 2**20), (10**9, 10**9)])
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(place / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", file.getvalue() + bytes(chance.choice([0, 17, 18, 54])))
        if chance.random() < 0.3:
            archive.infolist()[0].file_size = chance.choice([0, 1, 2**33])
    if chance.random() < 0.5:
        (place / "a.npz").write_bytes(damage((place / "a.npz").read_bytes(), chance))


KINDS: dict[str, Callable[[random.Random, Path], None]] = {"IDX": idx, "pictures": folder_of_pictures, "array": array}


@cache
def bomb() -> bytes:
    """Returns a picture of 350 kB that takes 363 MB when it is read; Pillow itself refuses more than 179 million pixels."""
    return png(11_000, 11_000, bytes(33_001), 11_000, kind=2)
