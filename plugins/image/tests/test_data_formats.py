"""Every format that pictures come in, from small files of exactly that format; and what damaged ones get."""

import gzip
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from composable_energy.errors import ComposableEnergyError, DtypeError, FileFormatError, OptionError, ShapeError, StorageError
from composable_energy_image.data import open_pictures

RANDOM = np.random.default_rng(0)


def drawn(*shape):
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def first(pixels):
    """Channels first."""
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]


class TestFolder:
    def folder(self, tmp_path, names=("a.png", "b.png", "c.png"), shape=(5, 4, 3)):
        return np.stack([first(save(tmp_path / name, drawn(*shape))) for name in names])

    def test_subfolders_are_classes(self, tmp_path):
        names = ("cat/1.png", "cat/deeper/2.bmp", "dog/1.PNG", "bird/9.png")
        pixels = self.folder(tmp_path, names)
        (tmp_path / "cat/notes.txt").write_text("no picture")
        (tmp_path / "cat/._1.png").write_bytes(b"what macOS leaves behind")
        found = open_pictures(tmp_path)
        assert np.array_equal(found.pixels, pixels[[3, 0, 1, 2]])
        assert found.labels["class"].names == ("bird", "cat", "dog")
        assert found.variable("class").values.tolist() == [0, 1, 1, 2]
        assert repr(found) == f"4 pictures of (3, 5, 4) from an image folder at {tmp_path}, labels: class (bird, cat, dog)"

    def test_files_without_labels(self, tmp_path):
        pixels = self.folder(tmp_path, ("a.png", "more/b.png"))
        found = open_pictures(tmp_path)
        assert np.array_equal(found.pixels, pixels)
        assert found.labels == {}

    @pytest.mark.parametrize("divider", [",", ";", "\t"])
    def test_a_table_of_attributes(self, tmp_path, divider):
        pixels = self.folder(tmp_path, ("a.png", "more/b.png", "more/c.png"))
        lines = [
            ["file", "smiling", "hair", "age"],
            ["more\\c.png", "1", "red", ""],
            ["./a.png", "-1", "black", "30"],
            ["more/b.png", "", "", "4"],
        ]
        table = tmp_path / "attributes.csv"
        table.write_text("\n\n".join(divider.join(line) for line in lines), encoding="utf-8-sig")
        for found in (open_pictures(tmp_path), open_pictures(tmp_path, labels=table.rename(tmp_path.parent / f"{tmp_path.name}.csv"))):
            assert np.array_equal(found.pixels, pixels)
            told = {name: (some.values.tolist(), some.names) for name, some in found.labels.items()}
            assert told == {
                "smiling": ([0, -1, 1], ("no", "yes")),
                "hair": ([0, -1, 1], ("black", "red")),
                "age": ([1, 0, -1], ("4", "30")),
            }

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("", "first line must name the columns"),
            ("file\na.png", "first line must name the columns"),
            ("a.png,1\nb.png,0\nc.png,1", "first line must name the columns"),
            ("file,x,x\na.png,1,1", "first line must name the columns"),
            ("file,x\n", "names no picture"),
            ("file,x\na.png,1\nb.png,0\nc.png", "line 4: expected 2 cells, found 1"),
            ("file,x\na.png,1\nb.png,0\nc.png,1\na.png,1", "line 5: a.png stands in line 2 already"),
            ("file,x\na.png,1\nb.png,0\nc.png,1\nd.png,1\ne.png,1", r"2 of the 5 pictures.*not in.*d.png, e.png.*strict=False"),
            ("file,x\na.png,1", r"2 of the 3 pictures.*not named in.*b.png, c.png.*strict=False"),
            ("file,x\na.png,\nb.png,\nc.png,", "column 'x': all values are empty"),
            ("file,x\na.png,1\nb.png,two\nc.png,3", "column 'x': numbers such as '1' beside words such as 'two'"),
            ("file,x\na.png,0.5\nb.png,1\nc.png,3", "column 'x': '0.5' is no integer"),
            ('file,x\na.png,"1\nb.png,0\n', "line 3: unexpected end of data"),
            ("\nfile,x\na.png,1\nb.png,0\nc.png,1", "first line must name the columns, .*got ''"),
        ],
    )
    def test_bad_tables(self, tmp_path, text, told):
        self.folder(tmp_path)
        (tmp_path / "table.csv").write_text(text)
        with pytest.raises(FileFormatError, match=told) as caught:
            open_pictures(tmp_path)
        assert "table.csv" in str(caught.value)

    def test_a_table_may_differ_where_that_is_said(self, tmp_path):
        self.folder(tmp_path)
        table = tmp_path / "table.csv"
        table.write_text("file,x\na.png,1\nb.png,0\nd.png,1")
        assert open_pictures(tmp_path, strict=False).labels["x"].values.tolist() == [1, 0, -1]
        table.write_text("file,x\nd.png,1")
        with pytest.raises(FileFormatError, match="1 of the 1 pictures"):
            open_pictures(tmp_path, strict=False)

    def test_which_table(self, tmp_path):
        self.folder(tmp_path)
        for name in ("one.csv", "two.csv"):
            (tmp_path / name).write_text(f"file,{name[:3]}\na.png,0\nb.png,1\nc.png,1")
        with pytest.raises(FileFormatError, match=r"one.csv, two.csv: say which by labels="):
            open_pictures(tmp_path)
        assert list(open_pictures(tmp_path, labels=tmp_path / "two.csv").labels) == ["two"]
        with pytest.raises(FileFormatError, match=r"none.csv cannot be read \(No such file"):
            open_pictures(tmp_path, labels=tmp_path / "none.csv")
        (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(FileFormatError, match=r"bytes.csv is no text in UTF-8"):
            open_pictures(tmp_path, labels=tmp_path / "bytes.csv")

    @pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
    @pytest.mark.parametrize("damage", ["empty", "cut", "other"])
    def test_a_damaged_picture_is_named(self, tmp_path, ending, damage):
        self.folder(tmp_path)
        path = tmp_path / f"bad.{ending}"
        save(path, drawn(40, 40, 3))
        data = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "other": b"<html>not found</html>"}[damage])
        with pytest.raises(FileFormatError, match=rf"bad\.{ending} cannot be read as a picture.*Replace or delete"):
            open_pictures(tmp_path, size=4)

    def test_sizes(self, tmp_path):
        wide, high = save(tmp_path / "a.png", drawn(8, 20, 3)), save(tmp_path / "b.png", drawn(12, 6, 3))
        with pytest.raises(ShapeError, match=r"a.png has 20 x 8 pixels and .*b.png 6 x 12: give size="):
            open_pictures(tmp_path)
        found = open_pictures(tmp_path, size=4).pixels
        lanczos = Image.Resampling.LANCZOS
        assert np.array_equal(found[0], first(np.asarray(Image.fromarray(wide).resize((10, 4), lanczos))[:, 3:7]))
        assert np.array_equal(found[1], first(np.asarray(Image.fromarray(high).resize((4, 8), lanczos))[2:6]))

    def test_a_square_of_the_right_size_stays_as_it_is(self, tmp_path):
        pixels = self.folder(tmp_path, shape=(6, 6, 3))
        assert np.array_equal(open_pictures(tmp_path, size=6).pixels, pixels)

    def test_channels(self, tmp_path):
        grey, colour = save(tmp_path / "b.png", drawn(4, 4)), save(tmp_path / "c.png", drawn(4, 4, 3))
        assert np.array_equal(open_pictures(tmp_path, limit=1).pixels[0], grey[None])
        with pytest.raises(ShapeError, match=r"b.png is grey and .*c.png in colour: give channels="):
            open_pictures(tmp_path)
        found = open_pictures(tmp_path, channels=3).pixels
        assert np.array_equal(found, np.stack([grey[None].repeat(3, 0), first(colour)]))
        found = open_pictures(tmp_path, channels=1).pixels
        assert np.array_equal(found, np.stack([grey, np.asarray(Image.fromarray(colour).convert("L"))])[:, None])
        save(tmp_path / "a.png", colour)
        assert np.array_equal(open_pictures(tmp_path).pixels[1], grey[None].repeat(3, 0))

    def test_other_kinds_of_pixels(self, tmp_path):
        colour = drawn(4, 4, 4)
        save(tmp_path / "alpha/a.png", colour)
        save(tmp_path / "deep/a.png", np.arange(16, dtype=np.uint16).reshape(4, 4) * 4369)
        palette = Image.fromarray(colour[..., :3]).quantize(8)
        (tmp_path / "palette").mkdir()
        palette.save(tmp_path / "palette/a.png")
        palette.save(tmp_path / "palette/b.png", transparency=bytes(range(8)))
        assert np.array_equal(open_pictures(tmp_path / "alpha").pixels[0], first(colour[..., :3]))
        assert np.array_equal(open_pictures(tmp_path / "deep").pixels[0, 0], 17 * np.arange(16).reshape(4, 4))
        for found in open_pictures(tmp_path / "palette").pixels:
            assert np.array_equal(found, first(np.asarray(palette.convert("RGB"))))
        Image.fromarray(np.ones((4, 4), np.int32)).save(tmp_path / "alpha/b.bmp", format="tiff")
        with pytest.raises(FileFormatError, match=r"b.bmp has pixels of 32 bits"):
            open_pictures(tmp_path / "alpha")

    def test_photographs_are_turned_upright(self, tmp_path):
        about = Image.Exif()
        about[0x0112] = 6  # the camera was turned: its right side is up
        pixels = save(tmp_path / "a.png", drawn(4, 7, 3), exif=about)
        assert np.array_equal(open_pictures(tmp_path).pixels[0], first(np.rot90(pixels, -1)))

    def test_linked_folders_count_once(self, tmp_path):
        self.folder(tmp_path / "data", ("cat/1.png", "dog/1.png"))
        (tmp_path / "data/again").symlink_to(tmp_path / "data", target_is_directory=True)
        (tmp_path / "data/bird").symlink_to(tmp_path / "birds", target_is_directory=True)
        self.folder(tmp_path, ("birds/1.png",))
        assert open_pictures(tmp_path / "data").labels["class"].names == ("bird", "cat", "dog")


class TestCelebA:
    NAMES = ("Male", "Smiling", "Young")

    def write(self, path, count=6, parts=(0, 0, 0, 1, 2, 2)):
        names = [f"{number:06d}.jpg" for number in range(1, count + 1)]
        values = RANDOM.choice([-1, 1], (count, 3))
        for name in names:
            save(path / "img_align_celeba" / name, drawn(218, 178, 3))
        rows = [f"{name}  {' '.join(f'{value:2d}' for value in row)}" for name, row in zip(names, values, strict=True)]
        (path / "list_attr_celeba.txt").write_text("\n".join([str(count), " ".join(self.NAMES) + " ", *rows]) + "\n")
        if parts:
            (path / "list_eval_partition.txt").write_text("".join(f"{n} {p}\n" for n, p in zip(names, parts, strict=True)))
        return names, values

    def test_pictures_and_attributes(self, tmp_path):
        names, values = self.write(tmp_path)
        for part, rows in (("train", slice(0, 3)), ("valid", slice(3, 4)), ("test", slice(4, 6))):
            found = open_pictures(tmp_path, part=part)
            middle = [first(np.asarray(Image.open(tmp_path / "img_align_celeba" / name))[20:198]) for name in names[rows]]
            assert np.array_equal(found.pixels, np.stack(middle))
            assert found.event_shape == (3, 178, 178)
            for column, name in enumerate(self.NAMES):
                assert found.labels[name].names == ("no", "yes")
                assert found.labels[name].values.tolist() == [int(value == 1) for value in values[rows, column]]

    def test_resized_after_the_crop(self, tmp_path):
        names, _ = self.write(tmp_path, parts=())
        found = open_pictures(tmp_path, size=16, limit=1)
        middle = Image.open(tmp_path / "img_align_celeba" / names[0]).crop((0, 20, 178, 198))
        assert np.array_equal(found.pixels[0], first(np.asarray(middle.resize((16, 16), Image.Resampling.LANCZOS))))
        assert len(open_pictures(tmp_path, size=8)) == 6

    def test_bad_lists(self, tmp_path):
        names, _ = self.write(tmp_path)
        path, parts = tmp_path / "list_attr_celeba.txt", tmp_path / "list_eval_partition.txt"
        text, told = path.read_text(), parts.read_text()
        for wrong, error in (
            (text[: text.rindex(names[-1])], r"cut off: its first line says 6 pictures, found 5"),
            (text[:-4], r"line 8: expected a file name and 3 values of 1 or -1, found 2"),
            (text.replace(names[1], names[0]), r"line 4: 000001.jpg stands there twice"),
            (text.replace(" -1", "  0"), r"values of 1 or -1"),
            ("", "first line must be the number"),
            (text.replace(names[2], "x.jpg"), r"1 of the 6 pictures.*not in.*x.jpg"),
        ):
            path.write_text(wrong)
            with pytest.raises(FileFormatError, match=error) as caught:
                open_pictures(tmp_path)
            assert str(path) in str(caught.value)
        path.write_text(text)
        parts.write_text(told[: told.rindex(names[-1])])
        with pytest.raises(FileFormatError, match=r"list_eval_partition.txt has 5 pictures, .* 6: only one names 000006.jpg"):
            open_pictures(tmp_path)
        parts.write_text(told.replace("jpg 2", "jpg 3"))
        with pytest.raises(FileFormatError, match=r"line 5: expected a file name and 0, 1 or 2"):
            open_pictures(tmp_path)

    def test_missing_things(self, tmp_path):
        names, _ = self.write(tmp_path)
        (tmp_path / "img_align_celeba" / names[0]).unlink()
        with pytest.raises(FileFormatError, match=r"1 of the 6 pictures.*000001.jpg"):
            open_pictures(tmp_path)
        assert len(open_pictures(tmp_path, strict=False, size=8)) == 2
        with pytest.raises(OptionError, match=r"parts train, valid, test, got part='eval'"):
            open_pictures(tmp_path, part="eval")
        (tmp_path / "list_eval_partition.txt").unlink()
        with pytest.raises(OptionError, match=r"parts train, got part='test'"):
            open_pictures(tmp_path, part="test", strict=False)
        (tmp_path / "list_attr_celeba.txt").unlink()
        with pytest.raises(FileFormatError, match=r"list_attr_celeba.txt is missing"):
            open_pictures(tmp_path)


class TestCifar:
    def ten(self, path, count=3):
        path.mkdir(exist_ok=True)
        (path / "batches.meta.txt").write_text("\n".join(["airplane", "automobile", *map(str, range(8))]) + "\n\n")
        batches = []
        for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
            labels, pixels = RANDOM.integers(0, 10, count).astype(np.uint8), drawn(count, 3, 32, 32)
            (path / name).write_bytes(b"".join(bytes([y]) + x.tobytes() for y, x in zip(labels, pixels, strict=True)))
            batches.append((labels, pixels))
        return batches

    def test_ten(self, tmp_path):
        batches = self.ten(tmp_path)
        for part, some in (("train", batches[:5]), ("test", batches[5:])):
            found = open_pictures(tmp_path, part=part)
            assert np.array_equal(found.pixels, np.concatenate([pixels for _, pixels in some]))
            assert found.labels["class"].values.tolist() == np.concatenate([labels for labels, _ in some]).tolist()
            assert found.labels["class"].names[:2] == ("airplane", "automobile")
        assert open_pictures(tmp_path, size=16, channels=1).event_shape == (1, 16, 16)

    def test_hundred(self, tmp_path):
        coarse, fine = [f"group{n}" for n in range(20)], [f"kind{n}" for n in range(100)]
        (tmp_path / "coarse_label_names.txt").write_text("\n".join(coarse))
        (tmp_path / "fine_label_names.txt").write_text("\n".join(fine))
        pixels = drawn(2, 3, 32, 32)
        for name in ("train.bin", "test.bin"):
            (tmp_path / name).write_bytes(bytes([3, 97]) + pixels[0].tobytes() + bytes([19, 5]) + pixels[1].tobytes())
        found = open_pictures(tmp_path, part="test")
        assert np.array_equal(found.pixels, pixels)
        assert found.labels["superclass"].values.tolist() == [3, 19]
        assert found.labels["class"].values.tolist() == [97, 5]
        assert found.labels["class"].names == tuple(fine)

    def test_damage(self, tmp_path):
        self.ten(tmp_path)
        batch = tmp_path / "data_batch_2.bin"
        data = batch.read_bytes()
        for wrong in (data[:-1], b""):
            batch.write_bytes(wrong)
            with pytest.raises(
                FileFormatError, match=rf"data_batch_2.bin is cut off: expected 3,073 bytes for each.*found {len(wrong):,} bytes"
            ):
                open_pictures(tmp_path)
        batch.write_bytes(data[:3073] + bytes([10]) + data[3074:])
        with pytest.raises(FileFormatError, match=r"data_batch_2.bin, picture 1: label 10, but batches.meta.txt has 10 names"):
            open_pictures(tmp_path)
        batch.unlink()
        with pytest.raises(FileFormatError, match=r"data_batch_2.bin is missing: unpack"):
            open_pictures(tmp_path)
        (tmp_path / "data_batch_2").write_bytes(b"\x80\x02.")
        with pytest.raises(FileFormatError, match=r"pickled version.*binary"):
            open_pictures(tmp_path)
        with pytest.raises(OptionError, match=r"parts train, test, got part='valid'"):
            open_pictures(tmp_path, part="valid")
        with pytest.raises(OptionError, match=r"labels= goes with an image folder.*CIFAR-10"):
            open_pictures(tmp_path, labels="table.csv")


class TestIdx:
    def write(self, path, pack=False, dot="-"):
        made = {}
        for part in ("train", "t10k"):
            pixels, labels = drawn(4, 7, 6), RANDOM.integers(0, 10, 4).astype(np.uint8)
            images = struct.pack(">4i", 0x803, 4, 7, 6) + pixels.tobytes()
            classes = struct.pack(">2i", 0x801, 4) + labels.tobytes()
            for name, data in ((f"{part}-images{dot}idx3-ubyte", images), (f"{part}-labels{dot}idx1-ubyte", classes)):
                (path / f"{name}{'.gz' * pack}").write_bytes(gzip.compress(data) if pack else data)
            made["train" if part == "train" else "test"] = pixels, labels
        return made

    @pytest.mark.parametrize(("pack", "dot"), [(False, "-"), (True, "-"), (False, ".")])
    def test_both_parts(self, tmp_path, pack, dot):
        for part, (pixels, labels) in self.write(tmp_path, pack, dot).items():
            found = open_pictures(tmp_path, part=part)
            assert np.array_equal(found.pixels, pixels[:, None])
            assert isinstance(found.pixels, np.memmap) != pack
            assert found.labels["class"].values.tolist() == labels.tolist()
            assert found.labels["class"].names == tuple("0123456789")

    @pytest.mark.parametrize("pack", [False, True])
    def test_damage(self, tmp_path, pack):
        self.write(tmp_path, pack)
        ending = ".gz" * pack
        images, labels = tmp_path / f"train-images-idx3-ubyte{ending}", tmp_path / f"train-labels-idx1-ubyte{ending}"
        data = images.read_bytes()
        plain = gzip.decompress(data) if pack else data
        again = gzip.compress if pack else bytes
        for wrong, told in (
            (again(plain[:-5]), r"expected 184 bytes for 4 x 7 x 6, found 179"),
            (again(plain[:9]), "cut off"),
            (again(b"\0\0\x0d" + plain[3:]), "no IDX file of bytes"),
            (data[: len(data) // 2], "cannot be unpacked" if pack else "found 92"),
            (b"", "cannot be unpacked|cut off"),
        ):
            images.write_bytes(wrong)
            with pytest.raises(FileFormatError, match=rf"train-images-idx3-ubyte.*({told})"):
                open_pictures(tmp_path)
        images.write_bytes(data)
        labels.write_bytes(again(struct.pack(">2i", 0x801, 3) + bytes(3)))
        with pytest.raises(FileFormatError, match=r"4 pictures and .* 3 labels"):
            open_pictures(tmp_path)
        labels.unlink()
        with pytest.raises(FileFormatError, match=r"lacks train-labels-idx1-ubyte"):
            open_pictures(tmp_path)


class TestArrays:
    @pytest.mark.parametrize("shape", [(5, 4, 6), (5, 4, 6, 1), (5, 4, 6, 3), (5, 1, 4, 6), (5, 3, 4, 6)])
    def test_bytes_are_mapped(self, tmp_path, shape):
        pixels = drawn(*shape)
        np.save(tmp_path / "x.npy", pixels)
        found = open_pictures(tmp_path / "x.npy")
        expected = pixels[:, None] if pixels.ndim == 3 else pixels if shape[1] in (1, 3) else pixels.transpose(0, 3, 1, 2)
        assert isinstance(found.pixels, np.memmap)
        assert np.array_equal(found.pixels, expected)
        index = torch.tensor([3, 0, 3])
        assert torch.equal(found.images(index), torch.from_numpy(expected[index.numpy()] / np.float32(255)))

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_numbers_become_bytes(self, tmp_path, dtype):
        pixels = drawn(5, 4, 6, 3)
        np.save(tmp_path / "x.npy", (pixels / 255).astype(dtype))
        assert np.array_equal(open_pictures(tmp_path / "x.npy").pixels, pixels.transpose(0, 3, 1, 2))

    @pytest.mark.parametrize("keep", [np.savez, np.savez_compressed])
    def test_an_archive_with_labels(self, tmp_path, keep):
        pixels = drawn(4, 5, 5)
        keep(
            tmp_path / "x.npz",
            images=pixels,
            round=np.array([True, False, True, True]),
            big=np.array([5, 0, -1, 2], ">i4"),
            hair=np.array(["red", "", "black", "red"]),
        )
        found = open_pictures(tmp_path / "x.npz")
        assert np.array_equal(found.pixels, pixels[:, None])
        assert found.labels["round"].values.tolist() == [1, 0, 1, 1]
        assert found.labels["big"].values.tolist() == [5, 0, -1, 2]
        assert found.labels["hair"].values.tolist() == [1, -1, 0, 1]

    @pytest.mark.parametrize(
        ("arrays", "error", "told"),
        [
            ({"pictures": drawn(2, 4, 4)}, FileFormatError, "has no array 'images', but pictures"),
            ({"images": drawn(2, 4, 4), "y": [1, 2, 3]}, ShapeError, r"'y' has shape \(3,\), expected \(2,\)"),
            ({"images": drawn(2, 4, 4), "y": [0.5, 1]}, DtypeError, "labels 'y'.*float64"),
            ({"images": drawn(2, 4, 4), "y": [b"a", b"b"]}, DtypeError, "labels 'y'"),
            ({"images": drawn(2, 4, 4), "y": [-2, 1]}, OptionError, "labels 'y'.*got -2"),
            ({"images": drawn(2, 4, 4), "y": np.array([{}, {}])}, FileFormatError, "never unpickled"),
            ({"images": drawn(2, 4, 4, 4)}, ShapeError, r"\(2, 4, 4, 4\), expected \(N, H, W\)"),
            ({"images": drawn(0, 4, 4)}, ShapeError, r"\(0, 4, 4\)"),
            ({"images": np.zeros((2, 4, 4), np.int64)}, DtypeError, "int64, expected uint8"),
            ({"images": np.full((2, 4, 4), 200.0)}, OptionError, r"picture 0: .*images / 255"),
        ],
    )
    def test_bad_archives(self, tmp_path, arrays, error, told):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(error, match=rf"x.npz.*{told}"):
            open_pictures(tmp_path / "x.npz")
        if list(arrays) == ["images"]:
            np.save(tmp_path / "x.npy", arrays["images"])
            with pytest.raises(error, match=rf"x.npy.*{told}"):
                open_pictures(tmp_path / "x.npy")

    @pytest.mark.parametrize("ending", ["npy", "npz"])
    def test_damage(self, tmp_path, ending):
        path = tmp_path / f"x.{ending}"
        np.save(path, drawn(9, 8, 8)) if ending == "npy" else np.savez_compressed(path, images=drawn(9, 8, 8))
        data = path.read_bytes()
        middle = len(data) // 2
        changed = data[:middle] + bytes(byte ^ 255 for byte in data[middle : middle + 9]) + data[middle + 9 :]
        for wrong in (data[:-200], data[:7], b"", b"<html>not found</html>", *([changed] if ending == "npz" else [])):
            path.write_bytes(wrong)
            with pytest.raises(FileFormatError, match=rf"x.{ending} cannot be read .* damaged or cut off"):
                open_pictures(path)
        np.save(path.with_suffix(".npy"), np.array([{}]))
        with pytest.raises(FileFormatError, match="never unpickled"):
            open_pictures(path.with_suffix(".npy"))


class TestOpening:
    def folder(self, tmp_path, count=7):
        return np.stack([first(save(tmp_path / "some" / f"{number}.png", drawn(6, 6, 3))) for number in range(count)])

    def test_nothing_there(self, tmp_path):
        (tmp_path / "deep" / "deeper").mkdir(parents=True)
        (tmp_path / "x.zip").write_bytes(b"PK")
        for path, told in (
            ("deep", "holds no pictures of a known format.*png.*CelebA"),
            ("none", "There is nothing at"),
            ("x.zip", "unpack archives"),
        ):
            with pytest.raises(FileFormatError, match=told) as caught:
                open_pictures(tmp_path / path)
            assert str(tmp_path / path) in str(caught.value)
        with pytest.raises(FileFormatError, match="holds no pictures: expected files"):
            open_pictures(tmp_path / "deep", format="folder")

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"limit": 0}, "limit must be .*got 0"),
            ({"limit": True}, "limit must be .*got True"),
            ({"size": 0}, "size must be .*got 0"),
            ({"size": 4.5}, "size must be .*got 4.5"),
            ({"channels": 2}, "channels must be 1 .*got 2"),
            ({"format": "folders"}, "got 'folders'; did you mean 'folder'"),
            ({"part": "test"}, "got part='test'"),
        ],
    )
    def test_bad_options(self, tmp_path, options, told):
        self.folder(tmp_path)
        with pytest.raises(OptionError, match=told):
            open_pictures(tmp_path, **options)

    def test_a_format_can_be_forced(self, tmp_path):
        pixels = self.folder(tmp_path)
        TestIdx().write(tmp_path)
        assert open_pictures(tmp_path).event_shape == (1, 7, 6)
        assert np.array_equal(open_pictures(tmp_path, format="folder").pixels, pixels)

    @pytest.mark.parametrize("where", ["folder", "npy"])
    def test_a_limit_spreads_over_all(self, tmp_path, where):
        pixels = self.folder(tmp_path, 10)
        np.save(tmp_path / "x.npy", pixels)
        path = tmp_path / ("some" if where == "folder" else "x.npy")
        assert np.array_equal(open_pictures(path, limit=4).pixels, pixels[[0, 2, 5, 7]])
        assert np.array_equal(open_pictures(path, limit=99).pixels, pixels)

    def test_progress_says_what_it_does(self, tmp_path, capsys):
        self.folder(tmp_path)
        open_pictures(tmp_path, progress=True)
        told = capsys.readouterr().err
        assert "listing" in told
        assert "an image folder" in told
        assert "7/7" in told
        open_pictures(tmp_path)
        assert capsys.readouterr().err == ""


class TestCache:
    def write(self, tmp_path, count=5):
        pixels = np.stack([first(save(tmp_path / "some" / f"{number}.png", drawn(6, 6, 3))) for number in range(count)])
        return tmp_path / "some", tmp_path / "cache" / "deep", pixels

    def decoded(self, monkeypatch):
        """What is decoded from now on."""
        import composable_energy_image.data.folders as folders

        seen, original = [], folders.opened
        monkeypatch.setattr(folders, "opened", lambda path: (seen.append(path.name), original(path))[1])
        return seen

    def test_decodes_once(self, tmp_path, monkeypatch):
        folder, cache, pixels = self.write(tmp_path)
        seen = self.decoded(monkeypatch)
        for _ in range(3):
            found = open_pictures(folder, cache=cache)
            assert isinstance(found.pixels, np.memmap)
            assert np.array_equal(found.pixels, pixels)
        assert sorted(seen) == [f"{number}.png" for number in range(5)]
        assert [path.suffix for path in cache.iterdir()] == [".npy"]

    def test_decodes_again_what_has_changed(self, tmp_path, monkeypatch):
        folder, cache, pixels = self.write(tmp_path)
        open_pictures(folder, cache=cache)
        pixels[1] = first(save(folder / "1.png", drawn(6, 6, 3)))
        assert np.array_equal(open_pictures(folder, cache=cache).pixels, pixels)
        seen = self.decoded(monkeypatch)
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

    def test_an_error_leaves_nothing_half_written(self, tmp_path):
        folder, cache, _ = self.write(tmp_path)
        (folder / "3.png").write_bytes(b"")
        with pytest.raises(FileFormatError, match=r"3\.png"):
            open_pictures(folder, cache=cache)
        assert list(cache.iterdir()) == []

    def test_a_cache_that_cannot_be_written(self, tmp_path):
        folder, _, _ = self.write(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="cannot be written"):
            open_pictures(folder, cache=tmp_path / "file")

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

    def test_arrays_and_archives(self, tmp_path):
        pixels = drawn(4, 6, 6, 3)
        np.save(tmp_path / "x.npy", pixels)
        np.savez(tmp_path / "x.npz", images=pixels)
        cache = tmp_path / "cache"
        assert isinstance(open_pictures(tmp_path / "x.npy", cache=cache).pixels, np.memmap)
        assert not cache.exists()  # the file itself is mapped
        found = open_pictures(tmp_path / "x.npz", cache=cache)
        assert isinstance(found.pixels, np.memmap)
        assert np.array_equal(found.pixels, pixels.transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small file of each kind that has a structure of its own."""
    folder = tmp_path_factory.mktemp("whole")
    pixels = drawn(12, 12, 3)
    for ending in ("png", "jpg", "webp", "bmp"):
        save(folder / f"a.{ending}", pixels)
    np.save(folder / "x.npy", pixels[None])
    np.savez_compressed(folder / "x.npz", images=pixels[None], hair=np.array(["red"]))
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 2, 3, 3) + bytes(18))
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(struct.pack(">4i", 0x803, 2, 3, 3) + bytes(18)))
    (folder / "table.csv").write_text("file,x,y\na.png,1,red\n")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
