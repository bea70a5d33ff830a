"""Files that would hang a reader, or that raised errors without a type."""

import gzip
import io
import os
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from composable_energy.errors import ComposableEnergyError, FileFormatError
from composable_energy_image.data import open_pictures


def write_picture(path):
    Image.new("RGB", (4, 4)).save(path)


@pytest.mark.skipif(os.name != "posix", reason="pipes and links of POSIX")
@pytest.mark.parametrize("name", ["2.png", "table.csv", "a.npy", "a.npz", "link.png"])
def test_pipes_and_links_to_nowhere_are_refused_at_once(tmp_path, name):
    if name == "link.png":
        (tmp_path / name).symlink_to(tmp_path / name)
    else:
        os.mkfifo(tmp_path / name)
    write_picture(tmp_path / "1.png")
    with pytest.raises(ComposableEnergyError, match=name):
        open_pictures(tmp_path / name if name.startswith("a.") else tmp_path, cache=tmp_path / "cache")


def test_a_number_of_5000_digits_is_no_label(tmp_path):
    write_picture(tmp_path / "1.png")
    (tmp_path / "table.csv").write_text("file,class\n1.png," + "7" * 5000 + "\n")
    with pytest.raises(FileFormatError, match="is not an integer"):
        open_pictures(tmp_path, cache=None)


def npz(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            data = io.BytesIO()
            if isinstance(value, bytes):
                archive.writestr(name, value)
                continue
            np.save(data, value)
            archive.writestr(f"{name}.npy", data.getvalue())


@pytest.mark.parametrize(
    "label",
    [
        b"no array",
        np.zeros(2, dtype="M8[s]"),
        np.zeros(2, dtype=[("a", "i4")]),
        np.zeros(2, dtype=np.complex128),
        np.array([b"a", b"b"]),
        np.array([0, 2**62]),
        np.array([-(2**62), 0]),
        np.array(3),
    ],
    ids=["bytes", "dates", "records", "complex", "byte strings", "huge", "negative", "a number"],
)
def test_a_bad_member_of_an_archive_is_a_typed_error(tmp_path, label):
    npz(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 3), np.uint8), label=label)
    with pytest.raises(ComposableEnergyError):
        open_pictures(tmp_path / "a.npz", cache=None)


def test_a_name_that_no_folder_can_have_is_found_before_training(tmp_path):
    write_picture(tmp_path / "1.png")
    for table in ("file," + "x" * 300 + "\n1.png,1\n", "file,class\n1.png," + "x" * 300 + "\n"):
        (tmp_path / "table.csv").write_text(table)
        with pytest.raises(FileFormatError, match="of 300 characters"):
            open_pictures(tmp_path, cache=None)


def write_header(path, width, height):
    """Writes a grey picture in PNG that ends after its first rows."""
    chunks = {b"IHDR": struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0), b"IDAT": zlib.compress(bytes(1000))}
    written = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks.items()]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(written))


@pytest.mark.parametrize("side", [60_000, 12_000])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path, side):
    write_picture(tmp_path / "1.png")
    write_header(tmp_path / "2.png", side, side)
    with pytest.raises(FileFormatError, match=r"2\.png has .* pixels, and 67,108,864 at most are read"):
        open_pictures(tmp_path, cache=None, size=4)


def write_idx(folder, images, labels=2):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(images)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">2i", 0x801, labels) + bytes(labels)))


@pytest.mark.parametrize(
    ("shape", "zeros", "message"),
    [
        ((2, 3, 3), 16, "expected 34 bytes for 2 x 3 x 3, found more"),
        ((2, 60_000, 60_000), 4, "pictures of 60,000 x 60,000 pixels, and 67,108,864 at most are read"),
        ((100, 8192, 8192), 4, r"unpacks to .* bytes, and 4,294,967,296 at most are read: unpack it to a plain file"),
        ((1, 8192, 8192), 4, "1 pictures and .* labels: they belong to different data sets"),
    ],
)
def test_a_file_whose_header_is_not_right_is_not_unpacked(tmp_path, shape, zeros, message):
    write_idx(tmp_path, gzip.compress(struct.pack(">4I", 0x803, *shape)) + zeros * gzip.compress(bytes(2**24)), labels=max(2, shape[0]))
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=message):
            open_pictures(tmp_path, cache=None)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_an_archive_that_unpacks_to_too_much_is_refused_by_its_list(tmp_path):
    from composable_energy_cli.pictures import read_points

    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(2**16))
        archive.infolist()[0].file_size = 2**33
    for read in (lambda path: open_pictures(path, cache=None), lambda path: read_points(path, [(3, 8, 8)], (0, 1))):
        with pytest.raises(FileFormatError, match="unpacks to 8,589,934,592 bytes, and 4,294,967,296 at most are read"):
            read(tmp_path / "a.npz")
