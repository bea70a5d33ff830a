"""Labelled pictures: content, splits and batches; their opening: options, the cache, random damage, and files that would hang a reader."""

import gzip
import io
import math
import os
import struct
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from composable_energy.errors import ComposableEnergyError, DtypeError, FileFormatError, OptionError, ShapeError, StorageError
from composable_energy.sampling.noise import Noise
from composable_energy_cli.pictures import read_points
from composable_energy_image.data import Labels, Pictures, Preparation, open_pictures
from plugins.image.tests.picture_files import channels_first, random_pixels, save, write_mnist
from tests.campaign.files import png
from tests.refusals import refusals, refused


def some(count=10, channels=3, side=4, **labels):
    return Pictures.from_tensors(torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8), labels)


@pytest.mark.parametrize(
    ("words", "values", "names"),
    [
        (["0", "1", ""], [0, 1, -1], ("no", "yes")),
        (["-1", "1", "1"], [0, 1, 1], ("no", "yes")),
        (["Yes", "NO", " yes "], [1, 0, 1], ("no", "yes")),
        (["True", "false"], [1, 0], ("no", "yes")),
        (["1.0", "0.0", ""], [1, 0, -1], ("no", "yes")),  # integers beside empty cells, as pandas writes them
        (["10", "9007199254740993.0", "9007199254740992.0"], [0, 2, 1], ("10", "9007199254740992", "9007199254740993")),
        (["-1", "0", "1"], [0, 1, 2], ("-1", "0", "1")),
        (["red", "blond", "", "red"], [1, 0, -1, 1], ("blond", "red")),
        (["one", "infinity", "1_2"], [2, 1, 0], ("1_2", "infinity", "one")),
    ],
)
def test_words_become_indices(words, values, names):
    found = some(len(words), it=words).labels["it"]
    assert found.values.tolist() == values and found.names == names and found.binary == (names == ("no", "yes"))


test_bad_labels_are_refused = refusals(
    (lambda: some(2, it=[0.5, 1.0]), DtypeError, r"'it'.*float32.*long"),
    (lambda: some(2, it=[1, None]), DtypeError, r"'it'.*neither numbers nor words.*None"),
    (lambda: some(4, it=["-1", "0", "0.5", "1"]), OptionError, "'0.5' is not an integer"),
    (lambda: some(2, it=["0,0", "1,0"]), OptionError, "'0,0' has a decimal comma"),
    (lambda: some(2, it=["a", None]), DtypeError, r"'it'.*neither numbers nor words"),
    (lambda: some(2, it={"a", "b"}), DtypeError, r"'it'.*neither numbers nor words"),
    (lambda: some(2, it=[0, -2]), OptionError, r"'it'.*got -2 for picture 1"),
    (lambda: Labels(torch.tensor([2]), ("no", "yes")), OptionError, r"0 to 1, or -1 where unknown, got 2 for picture 0"),
    (lambda: Labels(torch.tensor([0]), ("a", "a")), OptionError, "distinct"),
    (lambda: some(2, it=torch.zeros(2, 1, dtype=torch.int64)), ShapeError, r"\(N,\)"),
    (lambda: Labels(torch.zeros(2, dtype=torch.int32), ("a",)), DtypeError, "int32"),
    (lambda: some(2, it=[0, 1], It=[0, 1]), OptionError, "'it' and 'It' are alike, except for case"),
    (lambda: some(2, it=[0, 1, 1]), ShapeError, r"2 pictures and 3 labels 'it'"),
)


class TestPictures:
    @pytest.mark.slow
    @given(st.data())
    @settings(max_examples=50, deadline=None)
    def test_take_of_take_is_indexing(self, data):
        whole = pictures = some(12, side=2, it=list(range(12)))
        expected = torch.arange(12)
        for _ in range(3):
            count = len(expected)
            part = data.draw(st.slices(count) | st.lists(st.integers(-count, count - 1), min_size=1, max_size=9) if count else st.slices(0))
            rows = list(range(count))[part] if isinstance(part, slice) else part
            pictures = pictures.take(part if isinstance(part, slice) else torch.tensor(part))
            expected = expected[torch.tensor(rows, dtype=torch.int64)]
            assert len(pictures) == len(expected) and torch.equal(pictures.labels["it"].values, expected)
        assert np.array_equal(pictures.pixels, whole.pixels[expected.numpy()])
        assert torch.equal(pictures.images(torch.arange(len(expected))).mul(255).byte(), torch.from_numpy(pictures.pixels))

    @given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 2**63))
    @settings(max_examples=50, deadline=None)
    def test_split_is_a_partition_in_order(self, count, share, seed):
        pictures = some(count, side=1, it=list(range(count)) if count > 2 else [0, 1])
        if not 0 < round(share * count) < count:
            refused(OptionError, "both parts", pictures.split, share, seed)
            return
        first, second = pictures.split(share, seed)
        ids = [part.labels["it"].values for part in (first, second)]
        assert len(first) == round(share * count) and torch.equal(torch.cat(ids).sort().values, torch.arange(count))
        assert all(torch.equal(some, some.sort().values) for some in ids)
        again, _ = pictures.split(share, seed)
        assert torch.equal(again.labels["it"].values, ids[0])

    def test_variable(self):
        pictures = some(4, smiling=[0, 1, 1, 0], same=[1, 1, 1, 1], part=[1, -1, -1, 1], none=[-1] * 4)
        assert pictures.variable("smiling").values.tolist() == [0, 1, 1, 0]
        for name, told in {
            "smilling": "did you mean 'smiling'",
            "zzz": "known are smiling, same, part, none",
            "same": "'same' is 'yes' for all",
            "part": "'yes'.*labels > 0",
            "none": "unknown for all",
        }.items():
            refused(OptionError, told, pictures.variable, name)


BAD_IMAGES = [
    (torch.rand(2, 4, 4), ShapeError, r"\(2, 4, 4\).*images\[:, None\]"),
    (torch.rand(2, 5, 5, 3), ShapeError, "permute"),
    (torch.rand(2, 4, 8, 8), ShapeError, "1 or 3 channels"),
    (torch.full((2, 1, 2, 2), 255.0), OptionError, r"255 to 255: write `images / 255`"),
    (torch.full((2, 1, 2, 2), math.nan), OptionError, "nan"),
    (torch.full((2, 1, 2, 2), 7), DtypeError, "int64.*uint8"),
]
test_bad_images_are_refused = refusals(
    *BAD_IMAGES, *((images.numpy(), *told) for images, *told in BAD_IMAGES), call=lambda images: Pictures.from_tensors(images)
)


class TestPreparation:
    def noise(self, count, **options):
        return Noise(seed=3, chains=range(count), step=2, **options)

    @pytest.mark.slow
    @given(st.sets(st.integers(0, 39), min_size=1), st.sampled_from(["numpy", "philox"]), st.sampled_from(["none", "uniform", 0.1]))
    @settings(max_examples=30, deadline=None)
    def test_a_row_depends_on_its_chain_only(self, rows, kind, dequantize):
        prepare = Preparation(flip=True, padding=2, dequantize=dequantize, rotation=20, zoom=0.1, shift=0.1, bend=0.05)
        images = torch.rand(40, 3, 6, 5)
        noise, rows = self.noise(40, kind=kind), sorted(rows)
        assert torch.equal(prepare(images, noise)[rows], prepare(images[rows], noise.for_chains(rows)))

    def test_a_rotation_turns_about_the_centre_by_at_most_its_angle(self):
        """A far pixel moves on a circle; the mean of angles that are uniform in [-a, a] is 0, their variance a^2 / 3."""
        side, count, largest = 65, 2000, 30.0
        grid = torch.arange(side) - side // 2
        right = (-((grid[None, :] - 24) ** 2 + grid[:, None] ** 2) / 18).exp().expand(count, 1, side, side)
        found = Preparation(rotation=largest)(right, self.noise(count))[:, 0]
        weight = found.sum((1, 2))
        across, down = ((found * place).sum((1, 2)) / weight for place in (grid[None, :], grid[:, None]))
        assert torch.hypot(across, down).sub(24).abs().max() < 0.5
        angle = torch.atan2(down, across).rad2deg()
        assert angle.abs().max() < largest + 0.5 and abs(angle.mean()) < 5 * largest / math.sqrt(3 * count)
        assert angle.var() == pytest.approx(largest**2 / 3, rel=0.15)

    def test_flips_half_of_the_rows(self):
        images, count = torch.rand(4000, 1, 2, 3), 4000
        kept = images.clone()
        found = Preparation(flip=True)(images, self.noise(count))
        assert torch.equal(images, kept)
        flipped = (found == images.flip(-1)).flatten(1).all(1)
        assert ((found == images).flatten(1).all(1) ^ flipped).all() and abs(flipped.float().mean() - 0.5) < 5 * math.sqrt(0.25 / count)

    def test_uniform_dequantization_fills_the_step_of_each_byte(self):
        bytes = torch.randint(0, 256, (2000, 1, 4, 4))
        found = Preparation(dequantize="uniform")(bytes / 255, self.noise(2000)).double() * 256 - bytes
        assert found.min() > -1e-4 and found.max() < 1 + 1e-4
        count = found.numel()
        assert abs(found.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / count) and abs(found.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / count)

    def test_shifts_evenly_and_independently_of_flips(self):
        count, padding, side = 9000, 1, 5
        place = torch.zeros(1, 1, side, side)
        place[..., 2, 2] = 1
        where = Preparation(padding=padding)(place.expand(count, -1, -1, -1), self.noise(count)).flatten(1).argmax(1)
        counts = torch.bincount(where, minlength=side**2).reshape(side, side)[1:4, 1:4].float()
        assert counts.sum() == count
        assert (counts - count / 9).square().sum() / (count / 9) < 8 + 5 * 4  # chi-squared: mean 8, standard deviation 4
        both = Preparation(padding=padding, flip=True)(torch.rand(1, 1, side, side).expand(count, -1, -1, -1), self.noise(count))
        kinds = both.flatten(1).unique(dim=0, return_counts=True)[1]
        assert len(kinds) == 18 and (kinds - count / 18).square().sum() / (count / 18) < 17 + 5 * math.sqrt(34)

    def test_bad_options_and_images(self):
        wrong: list[dict[str, Any]] = [{"dequantize": "gauss"}, {"dequantize": 0.0}, {"dequantize": True}, {"padding": -1}]
        wrong += [{"rotation": -1}, {"zoom": 1.0}, {"shift": math.nan}, {"bend": 2}]
        for options in wrong:
            refused(OptionError, f"{next(iter(options))} must be .*got {next(iter(options.values()))!r}", Preparation, **options)
        pixel, bytes = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
        for padding, images, error, told in (
            (0, bytes, DtypeError, "uint8"),
            (0, pixel[0, 0], ShapeError, r"\(2, 2\)"),
            (2, pixel, ShapeError, "padding of 2"),
        ):
            refused(error, told, Preparation(padding=padding), images, self.noise(len(images)))


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
        refused(FileFormatError, "holds no pictures: expected files", open_pictures, tmp_path / "deep", format="folder")

    def test_a_format_can_be_forced(self, tmp_path):
        pixels = write_folder(tmp_path)[2]
        write_mnist(tmp_path)
        assert open_pictures(tmp_path).event_shape == (1, 7, 6) and np.array_equal(open_pictures(tmp_path, format="folder").pixels, pixels)


test_bad_options_are_refused = refusals(
    ({"limit": 0}, "limit must be .*got 0"),
    ({"channels": 2}, "channels must be 1 .*got 2"),
    ({"format": "folders"}, "format must be one of 'npy', .*got 'folders'"),
    ({"part": "test"}, "got part='test'"),
    call=lambda tmp_path, options: open_pictures(write_folder(tmp_path)[0], **options),
    fixture="tmp_path",
    error=OptionError,
)


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
        assert list(cache.iterdir()) == [] and np.array_equal(open_pictures(folder, cache=cache).pixels, pixels)


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
        found[place : data.draw(st.sampled_from([place, place + 1, len(found)]))] = data.draw(st.binary(max_size=4))
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
    refused(ComposableEnergyError, name, open_pictures, tmp_path / name if name.startswith("a.") else tmp_path, cache=tmp_path / "cache")


def npz(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            data = io.BytesIO()
            if isinstance(value, bytes):
                archive.writestr(name, value)
                continue
            np.save(data, value)
            archive.writestr(f"{name}.npy", data.getvalue())


def open_with(tmp_path, label):
    npz(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 3), np.uint8), label=label)
    open_pictures(tmp_path / "a.npz", cache=None)


DATES, RECORDS = np.zeros(2, dtype="M8[s]"), np.zeros(2, dtype=[("a", "i4")])
NUMBERS = [np.zeros(2, dtype=np.complex128), np.array([0, 2**62]), np.array([-(2**62), 0]), np.array(3)]
test_a_bad_member_of_an_archive_is_a_typed_error = refusals(
    *((label, None) for label in (b"no array", np.array([b"a", b"b"]), DATES, RECORDS, *NUMBERS)),
    call=open_with,
    fixture="tmp_path",
    error=ComposableEnergyError,
)


def test_a_name_that_no_folder_can_have_is_found_before_training(tmp_path):
    write_picture(tmp_path / "1.png")
    for table in ("file," + "x" * 300 + "\n1.png,1\n", "file,class\n1.png," + "x" * 300 + "\n"):
        (tmp_path / "table.csv").write_text(table)
        refused(FileFormatError, "of 300 characters", open_pictures, tmp_path, cache=None)


@pytest.mark.parametrize("side", [60_000, 12_000])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path, side):
    write_picture(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(png(side, side, bytes(1000)))
    refused(FileFormatError, r"2\.png has .* pixels, and 67,108,864 at most are read", open_pictures, tmp_path, cache=None, size=4)


def write_idx(folder, images, labels=2):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(images)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">2i", 0x801, labels) + bytes(labels)))


@pytest.mark.parametrize(
    ("shape", "zeros", "message"),
    [
        ((2, 3, 3), 16, "expected 34 bytes for 2 x 3 x 3, got more"),
        ((2, 60_000, 60_000), 4, "pictures of 60,000 x 60,000 pixels, and 67,108,864 at most are read"),
        ((100, 8192, 8192), 4, r"unpacks to .* bytes, and 4,294,967,296 at most are read: unpack it to a plain file"),
        ((1, 8192, 8192), 4, "1 pictures, .* labels: they are of two data sets"),
    ],
)
def test_a_file_whose_header_is_not_right_is_not_unpacked(tmp_path, shape, zeros, message):
    write_idx(tmp_path, gzip.compress(struct.pack(">4I", 0x803, *shape)) + zeros * gzip.compress(bytes(2**24)), labels=max(2, shape[0]))
    tracemalloc.start()
    try:
        refused(FileFormatError, message, open_pictures, tmp_path, cache=None)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_an_archive_that_unpacks_to_too_much_is_refused_by_its_list(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(2**16))
        archive.infolist()[0].file_size = 2**33
    for read in (lambda path: open_pictures(path, cache=None), lambda path: read_points(path, [(3, 8, 8)], (0, 1))):
        refused(FileFormatError, "unpacks to 8,589,934,592 bytes, and 4,294,967,296 at most are read", read, tmp_path / "a.npz")
