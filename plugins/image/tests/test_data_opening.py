"""Opening of pictures: options, the cache, random damage to files of every format, and files that would hang a reader."""

import gzip
import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from composable_energy.errors import ComposableEnergyError, FileFormatError, OptionError, StorageError
from composable_energy_image.data import open_pictures
from plugins.image.tests.picture_files import channels_first, random_pixels, save
from tests.campaign.pictures import png


def write_folder(tmp_path, count=5):
    pixels = np.stack([channels_first(save(tmp_path / "some" / f"{number}.png", random_pixels(6, 6, 3))) for number in range(count)])
    return tmp_path / "some", tmp_path / "cache" / "deep", pixels


class TestOpening:
    def test_nothing_there(self, tmp_path):
        (tmp_path / "deep" / "deeper").mkdir(parents=True)
        (tmp_path / "x.zip").write_bytes(b"PK")
        messages = {"deep": "holds no pictures of a known format.*png.*CelebA", "none": "does not exist", "x.zip": "unpack archives"}
        for path, message in messages.items():
            with pytest.raises(FileFormatError, match=message) as caught:
                open_pictures(tmp_path / path)
            assert str(tmp_path / path) in str(caught.value)
        with pytest.raises(FileFormatError, match="holds no pictures: expected files"):
            open_pictures(tmp_path / "deep", format="folder")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"limit": 0}, "limit must be .*got 0"),
            ({"channels": 2}, "channels must be 1 .*got 2"),
            ({"format": "folders"}, "format must be one of 'npy', .*got 'folders'"),
            ({"part": "test"}, "got part='test'"),
        ],
    )
    def test_bad_options(self, tmp_path, options, message):
        write_folder(tmp_path)
        with pytest.raises(OptionError, match=message):
            open_pictures(tmp_path, **options)

    def test_a_format_can_be_forced(self, tmp_path):
        pixels = write_folder(tmp_path)[2]
        (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 4, 7, 6) + bytes(4 * 7 * 6))
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 4) + bytes(4))
        assert open_pictures(tmp_path).event_shape == (1, 7, 6)
        assert np.array_equal(open_pictures(tmp_path, format="folder").pixels, pixels)


class TestCache:
    def test_pictures_are_decoded_once_until_they_change(self, tmp_path):
        folder, cache, pixels = write_folder(tmp_path)
        for _ in range(2):
            found = open_pictures(folder, cache=cache)
            assert isinstance(found.pixels, np.memmap) and np.array_equal(found.pixels, pixels)
        (file,) = cache.iterdir()
        before = file.read_bytes()
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 255]))
        assert not np.array_equal(open_pictures(folder, cache=cache).pixels, pixels)  # read from the cache, not decoded again
        pixels[1] = channels_first(save(folder / "1.png", random_pixels(6, 6, 3)))
        assert np.array_equal(open_pictures(folder, cache=cache).pixels, pixels)
        for options in ({"size": 4}, {"channels": 1}, {"limit": 3}):
            assert np.array_equal(open_pictures(folder, cache=cache, **options).pixels, open_pictures(folder, **options).pixels)
        (folder / "4.png").unlink()
        assert len(open_pictures(folder, cache=cache)) == 4

    def test_damage_to_a_cache_is_mended(self, tmp_path):
        folder, cache, pixels = write_folder(tmp_path)
        open_pictures(folder, cache=cache)
        (file,) = cache.iterdir()
        for wrong in (file.read_bytes()[:-1], b""):
            file.write_bytes(wrong)
            assert np.array_equal(open_pictures(folder, cache=cache).pixels, pixels)

    def test_a_disk_that_fills_while_writing(self, tmp_path):
        resource = pytest.importorskip("resource")
        folder, cache, pixels = write_folder(tmp_path)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))
        try:
            with pytest.raises(StorageError, match=r"pictures-\w+.npy cannot be written \(File too large\): free some space"):
                open_pictures(folder, cache=cache)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(cache.iterdir()) == []
        assert np.array_equal(open_pictures(folder, cache=cache).pixels, pixels)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small file of each kind that has a structure of its own."""
    folder = tmp_path_factory.mktemp("whole")
    pixels = random_pixels(12, 12, 3)
    for ending in ("png", "jpg", "webp", "bmp"):
        save(folder / f"a.{ending}", pixels)
    np.save(folder / "x.npy", pixels[None])
    np.savez_compressed(folder / "x.npz", images=pixels[None], hair=np.array(["red"]))
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 2, 3, 3) + bytes(18))
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(struct.pack(">4i", 0x803, 2, 3, 3) + bytes(18)))
    (folder / "table.csv").write_text("file,x,y\na.png,1,red\n")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_the_damage_pictures_come_or_an_error_that_names_the_file(whole, tmp_path_factory, data):
    name = data.draw(st.sampled_from(sorted(whole)))
    found = bytearray(whole[name])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(found)))
        end = data.draw(st.sampled_from([place, place + 1, len(found)]))
        found[place:end] = data.draw(st.binary(max_size=4))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / name).write_bytes(found)
    if name == "table.csv":
        (folder / "a.png").write_bytes(whole["a.png"])
    if "idx" in name:
        (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 2) + bytes(2))
    try:
        assert open_pictures(folder / name if name.startswith("x.") else folder).pixels.dtype == np.uint8
    except ComposableEnergyError as error:
        assert name in str(error)


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


@pytest.mark.parametrize("side", [60_000, 12_000])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path, side):
    write_picture(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(png(side, side, bytes(1000)))
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
