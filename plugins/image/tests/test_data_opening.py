"""The options and the cache of `open_pictures`, and random damage to files of every format."""

import gzip
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composable_energy.errors import ComposableEnergyError, FileFormatError, OptionError, StorageError
from composable_energy_image.data import open_pictures
from plugins.image.tests.picture_files import channels_first, random_pixels, save


class TestOpening:
    def folder(self, tmp_path, count=7):
        return np.stack([channels_first(save(tmp_path / "some" / f"{number}.png", random_pixels(6, 6, 3))) for number in range(count)])

    def test_nothing_there(self, tmp_path):
        (tmp_path / "deep" / "deeper").mkdir(parents=True)
        (tmp_path / "x.zip").write_bytes(b"PK")
        for path, message in (
            ("deep", "holds no pictures of a known format.*png.*CelebA"),
            ("none", "does not exist"),
            ("x.zip", "unpack archives"),
        ):
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
        self.folder(tmp_path)
        with pytest.raises(OptionError, match=message):
            open_pictures(tmp_path, **options)

    def test_a_format_can_be_forced(self, tmp_path):
        pixels = self.folder(tmp_path)
        (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 4, 7, 6) + bytes(4 * 7 * 6))
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 4) + bytes(4))
        assert open_pictures(tmp_path).event_shape == (1, 7, 6)
        assert np.array_equal(open_pictures(tmp_path, format="folder").pixels, pixels)


class TestCache:
    def write(self, tmp_path, count=5):
        pixels = np.stack([channels_first(save(tmp_path / "some" / f"{number}.png", random_pixels(6, 6, 3))) for number in range(count)])
        return tmp_path / "some", tmp_path / "cache" / "deep", pixels

    def record_decoding(self, monkeypatch):
        """Returns the list of names that are decoded from now on."""
        import composable_energy_image.data.folders as folders

        seen, original = [], folders.open_image
        monkeypatch.setattr(folders, "open_image", lambda path: (seen.append(path.name), original(path))[1])
        return seen

    def test_decodes_once(self, tmp_path, monkeypatch):
        folder, cache, pixels = self.write(tmp_path)
        seen = self.record_decoding(monkeypatch)
        for _ in range(3):
            found = open_pictures(folder, cache=cache)
            assert isinstance(found.pixels, np.memmap)
            assert np.array_equal(found.pixels, pixels)
        assert sorted(seen) == [f"{number}.png" for number in range(5)]
        assert [path.suffix for path in cache.iterdir()] == [".npy"]

    def test_decodes_again_what_has_changed(self, tmp_path, monkeypatch):
        folder, cache, pixels = self.write(tmp_path)
        open_pictures(folder, cache=cache)
        pixels[1] = channels_first(save(folder / "1.png", random_pixels(6, 6, 3)))
        assert np.array_equal(open_pictures(folder, cache=cache).pixels, pixels)
        seen = self.record_decoding(monkeypatch)
        changes: list[dict[str, Any]] = [{"size": 4}, {"channels": 1}, {"limit": 3}]
        for options in changes:
            assert np.array_equal(open_pictures(folder, cache=cache, **options).pixels, open_pictures(folder, **options).pixels)
        assert len(seen) == 2 * (5 + 5 + 3)
        (folder / "4.png").unlink()
        assert len(open_pictures(folder, cache=cache)) == 4

    def test_damage_to_a_cache_is_mended(self, tmp_path):
        folder, cache, pixels = self.write(tmp_path)
        open_pictures(folder, cache=cache)
        (file,) = cache.iterdir()
        for wrong in (file.read_bytes()[:-1], b""):
            file.write_bytes(wrong)
            assert np.array_equal(open_pictures(folder, cache=cache).pixels, pixels)

    def test_a_disk_that_fills_while_writing(self, tmp_path):
        resource = pytest.importorskip("resource")
        folder, cache, pixels = self.write(tmp_path)
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
