"""Files of pictures that are damaged, or that are much larger in memory than on disk."""

import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from tests.campaign.files import damage

_ZEROS = gzip.compress(bytes(2**24))  # a member of a gzip file; some of them in a row are a large file
_SIDES = (0, 1, 3, 300, 9000, 12_000, 60_000, 2**31 - 1)


def png(width: int, height: int, pixels: bytes, times: int = 1, kind: int = 0) -> bytes:
    """Returns a picture, grey or of kind 2 with colors, whose header may be wrong; its pixels are repeated."""
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(pixels) for _ in range(times)) + packer.flush()
    chunks = {b"IHDR": struct.pack(">2I5B", width, height, 8, kind, 0, 0, 0), b"IDAT": packed, b"IEND": b""}
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
