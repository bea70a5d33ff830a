"""Image folders, CelebA, CIFAR, MNIST, dSprites and NumPy files, from small files, intact and damaged."""

import gzip
import pickle
import struct
import zipfile
from base64 import b64decode

import numpy as np
import pytest
import torch
from PIL import Image

from composable_energy.errors import DtypeError, FileFormatError, OptionError, ShapeError
from composable_energy_image.data import open_pictures
from composable_energy_viz.files import read_picture
from plugins.image.tests.picture_files import CELEBA_NAMES, channels_first, random_pixels, save, write_celeba, write_cifar, write_mnist
from tests.refusals import refused


class TestFolder:
    def folder(self, tmp_path, names=("a.png", "b.png", "c.png"), shape=(5, 4, 3)):
        return np.stack([channels_first(save(tmp_path / name, random_pixels(*shape))) for name in names])

    def test_subfolders_are_classes(self, tmp_path):
        pixels = self.folder(tmp_path, ("cat/1.png", "cat/deeper/2.bmp", "dog/1.PNG", "bird/9.png"))
        (tmp_path / "cat/notes.txt").write_text("no picture")
        (tmp_path / "cat/._1.png").write_bytes(b"what macOS leaves behind")
        found = open_pictures(tmp_path)
        assert np.array_equal(found.pixels, pixels[[3, 0, 1, 2]]) and found.labels["class"].names == ("bird", "cat", "dog")
        assert found.variable("class").values.tolist() == [0, 1, 1, 2]
        assert repr(found) == f"4 pictures of (3, 5, 4) from an image folder at {tmp_path}, labels: class (bird, cat, dog)"
        save(tmp_path / "run/samples.png", pixels[0, 0])
        (tmp_path / "run/recipe.toml").touch()
        assert np.array_equal(open_pictures(tmp_path).pixels, found.pixels)  # the sheets of a run are no data
        self.folder(tmp_path / "parts", ("train/cat/1.png", "Test/dog/1.png"))
        refused(FileFormatError, r"parts of a data set, .*and no classes", open_pictures, tmp_path / "parts")

    @pytest.mark.parametrize("divider", [",", ";", "\t"])
    def test_a_table_of_attributes(self, tmp_path, divider):
        pixels = self.folder(tmp_path, ("a.png", "more/b.png", "more/c.png"))
        lines = ['file|smiling|hair|"age,,,,;;;;"', "more\\c.png|1|r\u2028ed|", "./a.png|-1|black|30", "more/b.png|||4"]
        table = tmp_path / "attributes.csv"
        table.write_text("\n\n".join(lines).replace("|", divider), encoding="utf-8-sig")
        for found in (open_pictures(tmp_path), open_pictures(tmp_path, labels=table.rename(tmp_path.parent / f"{tmp_path.name}.csv"))):
            assert np.array_equal(found.pixels, pixels)
            smiling, hair, age = ((some.values.tolist(), some.names) for some in found.labels.values())
            assert list(found.labels) == ["smiling", "hair", "age,,,,;;;;"] and smiling == ([0, -1, 1], ("no", "yes"))
            assert hair == ([0, -1, 1], ("black", "r\u2028ed")) and age == ([1, 0, -1], ("4", "30"))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "first line must name the columns"),
            ("file,x,x\na.png,1,1", "first line must name the columns"),
            ("file,x\na.png,1\nb.png,0\nc.png", "line 4: expected 2 cells, found 1"),
            ("file,x\na.png,1\nb.png,0\nc.png,1\na.png,1", "line 5: a.png is already in line 2"),
            ("file,x\na.png,1\nb.png,0\nc.png,1\nd.png,1\ne.png,1", r"2 of the 5 pictures.*not in.*d.png, e.png.*strict=False"),
            ("file,x\na.png,1", r"2 of the 3 pictures.*not listed in.*b.png, c.png.*strict=False"),
            ("file,x\na.png,1\nb.png,two\nc.png,3", "column 'x': numbers such as '1' beside words such as 'two'"),
            ("file,x\na.png,yes\nb.png,NA\nc.png,no", "column 'x': 'NA' often means unknown: leave such cells empty"),
            ("file,x\na.png,Male\nb.png,male \nc.png,no", "column 'x': 'Male' and 'male' are alike, except for case"),
            ('file,x\na.png,"1\nb.png,0\n', "line 3: unexpected end of data"),
        ],
    )
    def test_bad_tables(self, tmp_path, text, message):
        self.folder(tmp_path)
        (tmp_path / "table.csv").write_text(text)
        refused(FileFormatError, f"(?=.*table.csv).*{message}", open_pictures, tmp_path)

    def test_a_table_may_differ_where_that_is_said(self, tmp_path):
        self.folder(tmp_path)
        table = tmp_path / "table.csv"
        table.write_text("file,x\na.png,1\nb.png,0\nd.png,1")
        assert open_pictures(tmp_path, strict=False).labels["x"].values.tolist() == [1, 0, -1]
        table.write_text("file,x\nd.png,1")
        refused(FileFormatError, "1 of the 1 pictures", open_pictures, tmp_path, strict=False)

    def test_which_table(self, tmp_path):
        self.folder(tmp_path)
        for name in ("one.csv", "two.csv"):
            (tmp_path / name).write_text(f"file,{name[:3]}\na.png,0\nb.png,1\nc.png,1")
        refused(FileFormatError, r"one.csv, two.csv: choose one by labels=", open_pictures, tmp_path)
        assert list(open_pictures(tmp_path, labels=tmp_path / "two.csv").labels) == ["two"]
        refused(FileFormatError, r"none.csv cannot be read: No such file", open_pictures, tmp_path, labels=tmp_path / "none.csv")
        (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
        refused(FileFormatError, r"bytes.csv is not text in UTF-8", open_pictures, tmp_path, labels=tmp_path / "bytes.csv")

    def test_sizes(self, tmp_path):
        wide, high = save(tmp_path / "a.png", random_pixels(8, 20, 3)), save(tmp_path / "b.png", random_pixels(12, 6, 3))
        refused(ShapeError, r"a.png has 20 x 8 pixels and .*b.png 6 x 12: give size=", open_pictures, tmp_path)
        found = open_pictures(tmp_path, size=4).pixels
        lanczos = Image.Resampling.LANCZOS
        assert np.array_equal(found[0], channels_first(np.asarray(Image.fromarray(wide).resize((10, 4), lanczos))[:, 3:7]))
        assert np.array_equal(found[1], channels_first(np.asarray(Image.fromarray(high).resize((4, 8), lanczos))[2:6]))

    def test_channels(self, tmp_path):
        grey, color = save(tmp_path / "b.png", random_pixels(4, 4)), save(tmp_path / "c.png", random_pixels(4, 4, 3))
        assert np.array_equal(open_pictures(tmp_path, limit=1).pixels[0], grey[None])
        refused(ShapeError, r"b.png is grey and .*c.png is in color: give channels=", open_pictures, tmp_path)
        in_color, in_grey = (open_pictures(tmp_path, channels=channels).pixels for channels in (3, 1))
        assert np.array_equal(in_color, np.stack([grey[None].repeat(3, 0), channels_first(color)]))
        assert np.array_equal(in_grey[:, 0], np.stack([grey, np.asarray(Image.fromarray(color).convert("L"))]))
        save(tmp_path / "a.png", color)
        assert np.array_equal(open_pictures(tmp_path).pixels[1], grey[None].repeat(3, 0))

    def test_other_kinds_of_pixels(self, tmp_path):
        color = random_pixels(4, 4, 4)
        save(tmp_path / "alpha/a.png", color)
        deep = save(tmp_path / "deep/a.png", np.arange(16, dtype=np.uint16).reshape(4, 4) * 4369)
        save(tmp_path / "deep/b.png", deep, transparency=3 * 4369)
        four = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAIAAAABBAAAAAAUuc1XAAAAAnRSTlMAA++anIIAAAAKSURBVHjaY2AGAAAFAARGW9/rAAAAAElFTkSuQmCC")
        (tmp_path / "four.png").write_bytes(four)  # 0 and 3 of 15, which is transparent
        palette = Image.fromarray(color[..., :3]).quantize(8)
        (tmp_path / "palette").mkdir()
        palette.save(tmp_path / "palette/a.png")
        palette.save(tmp_path / "palette/b.png", transparency=bytes(range(8)))
        shown = 255 - color[..., 3:] / 255 * (255.0 - color[..., :3])  # on white
        assert abs(open_pictures(tmp_path / "alpha").pixels[0] - channels_first(shown)).max() < 1
        assert np.array_equal(open_pictures(tmp_path / "deep").pixels[:, 0], [deep // 257, np.where(deep == 3 * 4369, 255, deep // 257)])
        assert np.asarray(read_picture(tmp_path / "four.png")[0]).tolist() == [[0, 255]]
        found = open_pictures(tmp_path / "palette").pixels
        assert np.array_equal(found[0], channels_first(np.asarray(palette.convert("RGB")))) and found[1].min() > 240
        Image.fromarray(np.ones((4, 4), np.int32)).save(tmp_path / "alpha/b.bmp", format="tiff")
        refused(FileFormatError, r"b.bmp cannot be read as a picture in PNG", open_pictures, tmp_path / "alpha")

    def test_photographs_are_turned_upright(self, tmp_path):
        about = Image.Exif()
        about[0x0112] = 6  # the camera was turned: its right side is up
        pixels = save(tmp_path / "a.png", random_pixels(4, 7, 3), exif=about)
        assert np.array_equal(open_pictures(tmp_path).pixels[0], channels_first(np.rot90(pixels, -1)))


class TestCelebA:
    def test_pictures_and_attributes(self, tmp_path):
        names, values = write_celeba(tmp_path)
        for part, rows in (("train", slice(0, 3)), ("valid", slice(3, 4)), ("test", slice(4, 6))):
            found = open_pictures(tmp_path, part=part)
            middle = [channels_first(np.asarray(Image.open(tmp_path / "img_align_celeba" / name))[20:198]) for name in names[rows]]
            assert np.array_equal(found.pixels, np.stack(middle)) and found.event_shape == (3, 178, 178)
            for column, name in enumerate(CELEBA_NAMES):
                assert found.labels[name].names == ("no", "yes")
                assert found.labels[name].values.tolist() == [int(value == 1) for value in values[rows, column]]

    def test_bad_lists(self, tmp_path):
        names, _ = write_celeba(tmp_path)
        path, parts = tmp_path / "list_attr_celeba.txt", tmp_path / "list_eval_partition.txt"
        text, listed = path.read_text(), parts.read_text()
        for wrong, error in (
            (text[: text.rindex(names[-1])], r"truncated: its first line says 6 pictures, found 5"),
            (text.replace(names[1], names[0]), r"line 4: 000001.jpg is listed twice"),
            (text.replace(" -1", "  0"), r"values of 1 or -1"),
        ):
            path.write_text(wrong)
            refused(FileFormatError, f"list_attr_celeba.txt.*{error}", open_pictures, tmp_path)
        path.write_text(text)
        parts.write_text(listed[: listed.rindex(names[-1])])
        refused(FileFormatError, r"partition.txt lists 5 pictures, .* 6: only one of them has 000006.jpg", open_pictures, tmp_path)

    def test_missing_things(self, tmp_path):
        names, _ = write_celeba(tmp_path)
        (tmp_path / "img_align_celeba" / names[0]).unlink()
        refused(FileFormatError, r"1 of the 6 pictures.*000001.jpg", open_pictures, tmp_path)
        assert len(open_pictures(tmp_path, strict=False, size=8)) == 2
        refused(OptionError, r"parts train, valid, test, got part='eval'", open_pictures, tmp_path, part="eval")
        (tmp_path / "list_eval_partition.txt").unlink()
        refused(OptionError, r"parts train, got part='test'", open_pictures, tmp_path, part="test", strict=False)
        (tmp_path / "list_attr_celeba.txt").unlink()
        refused(FileFormatError, r"list_attr_celeba.txt is missing", open_pictures, tmp_path)


class TestCifar:
    def test_ten(self, tmp_path):
        batches = write_cifar(tmp_path)
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
        pixels = random_pixels(2, 3, 32, 32)
        for name in ("train.bin", "test.bin"):
            (tmp_path / name).write_bytes(bytes([3, 97]) + pixels[0].tobytes() + bytes([19, 5]) + pixels[1].tobytes())
        found = open_pictures(tmp_path, part="test")
        assert np.array_equal(found.pixels, pixels) and found.labels["superclass"].values.tolist() == [3, 19]
        assert found.labels["class"].values.tolist() == [97, 5] and found.labels["class"].names == tuple(fine)

    def test_damage(self, tmp_path):
        write_cifar(tmp_path)
        batch = tmp_path / "data_batch_2.bin"
        data = batch.read_bytes()
        for wrong in (data[:-1], b""):
            batch.write_bytes(wrong)
            refused(FileFormatError, rf"data_batch_2.bin is truncated: .* 3,073 .*found {len(wrong):,} bytes", open_pictures, tmp_path)
        batch.write_bytes(data[:3073] + bytes([10]) + data[3074:])
        refused(FileFormatError, r"data_batch_2.bin, picture 1: label 10, but batches.meta.txt has 10 names", open_pictures, tmp_path)
        batch.unlink()
        refused(FileFormatError, r"data_batch_2.bin is missing: unpack", open_pictures, tmp_path)
        (tmp_path / "data_batch_2").write_bytes(b"\x80\x02.")
        refused(FileFormatError, r"pickled version.*binary", open_pictures, tmp_path)
        refused(OptionError, r"labels= applies to image folders.*CIFAR-10", open_pictures, tmp_path, labels="table.csv")


class TestIdx:
    @pytest.mark.parametrize(("pack", "dot"), [(False, "-"), (True, "-"), (False, ".")])
    def test_both_parts(self, tmp_path, pack, dot):
        for part, (pixels, labels) in write_mnist(tmp_path, pack, dot).items():
            found = open_pictures(tmp_path, part=part)
            assert np.array_equal(found.pixels, pixels[:, None]) and isinstance(found.pixels, np.memmap) != pack
            assert found.labels["class"].values.tolist() == labels.tolist() and found.labels["class"].names == tuple("0123456789")

    def test_a_table_names_pictures_by_their_number(self, tmp_path):
        write_mnist(tmp_path)
        table = tmp_path / "attributes.csv"
        table.write_text("number,round\n2,1\n0,0\n1,\n3,1\n")
        found = open_pictures(tmp_path, labels=table).labels
        assert found.keys() == {"round"} and found["round"].values.tolist() == [0, -1, 1, 1]
        table.write_text("number,round\n0,0\n4,1\n")
        refused(FileFormatError, r"attributes\.csv", open_pictures, tmp_path, labels=table)

    @pytest.mark.parametrize("pack", [False, True])
    def test_damage(self, tmp_path, pack):
        write_mnist(tmp_path, pack)
        ending = ".gz" * pack
        images, labels = tmp_path / f"train-images-idx3-ubyte{ending}", tmp_path / f"train-labels-idx1-ubyte{ending}"
        data = images.read_bytes()
        plain = gzip.decompress(data) if pack else data
        again = gzip.compress if pack else bytes
        for wrong, message in (
            (again(plain[:-5]), r"expected 184 bytes for 4 x 7 x 6, got 179"),
            (again(plain[:9]), "truncated"),
            (data[: len(data) // 2], "cannot be decompressed" if pack else "got 92"),
            (b"", "cannot be decompressed|truncated"),
        ):
            images.write_bytes(wrong)
            refused(FileFormatError, rf"train-images-idx3-ubyte.*({message})", open_pictures, tmp_path)
        images.write_bytes(data)
        labels.write_bytes(again(struct.pack(">2i", 0x801, 3) + bytes(3)))
        refused(FileFormatError, r"4 pictures, .* 3 labels", open_pictures, tmp_path)
        labels.unlink()
        refused(FileFormatError, r"lacks train-labels-idx1-ubyte", open_pictures, tmp_path)


class TestArrays:
    @pytest.mark.parametrize("shape", [(5, 4, 6), (5, 4, 6, 1), (5, 4, 6, 3), (5, 1, 4, 6), (5, 3, 4, 6)])
    def test_bytes_are_mapped(self, tmp_path, shape):
        pixels = random_pixels(*shape)
        np.save(tmp_path / "x.npy", pixels)
        found = open_pictures(tmp_path / "x.npy")
        expected = pixels[:, None] if pixels.ndim == 3 else pixels if shape[1] in (1, 3) else pixels.transpose(0, 3, 1, 2)
        assert isinstance(found.pixels, np.memmap) and np.array_equal(found.pixels, expected)
        index = torch.tensor([3, 0, 3])
        assert torch.equal(found.images(index), torch.from_numpy(expected[index.numpy()] / np.float32(255)))

    @pytest.mark.parametrize("keep", [np.savez, np.savez_compressed])
    def test_an_archive_with_labels(self, tmp_path, keep):
        pixels, hair = random_pixels(4, 5, 5), np.array(["red", "", "black", "red"])
        keep(tmp_path / "x.npz", images=pixels, round=np.array([1, 0, 1, 1], bool), big=np.array([5, 0, -1, 2], ">i4"), hair=hair)
        found = open_pictures(tmp_path / "x.npz")
        assert np.array_equal(found.pixels, pixels[:, None]) and found.labels["round"].values.tolist() == [1, 0, 1, 1]
        assert found.labels["big"].values.tolist() == [5, 0, -1, 2] and found.labels["hair"].values.tolist() == [1, -1, 0, 1]
        with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
            archive.writestr("notes.txt", "mine")
        refused(FileFormatError, "holds 'notes.txt', which is no array of numpy", open_pictures, tmp_path / "x.npz")

    @pytest.mark.parametrize(
        ("arrays", "error", "message"),
        [
            ({"pictures": random_pixels(2, 4, 4)}, FileFormatError, "has no array 'images', only pictures"),
            ({"images": random_pixels(2, 4, 4), "y": [1, 2, 3]}, ShapeError, r"'y' has shape \(3,\), expected \(2,\)"),
            ({"images": random_pixels(2, 4, 4), "y": [0.5, 1]}, DtypeError, "labels 'y'.*float64"),
            ({"images": random_pixels(2, 4, 4), "y": [[0, 1], [1, 0]], "y_1": [0, 1]}, FileFormatError, "two arrays of labels named 'y_1'"),
            ({"images": random_pixels(2, 4, 4), "y": np.array([{}, {}])}, FileFormatError, "never unpickled"),
            ({"images": random_pixels(2, 4, 4, 4)}, ShapeError, r"\(2, 4, 4, 4\), expected \(N, H, W\)"),
            ({"images": random_pixels(4, 4, 3)}, ShapeError, r"\(4, 4, 3\), expected \(N, H, W\)"),
            ({"images": np.zeros((2, 4, 4), np.int64)}, DtypeError, "int64, expected uint8"),
            ({"images": np.full((2, 4, 4), 200.0)}, OptionError, r"picture 0: .*images / 255"),
        ],
    )
    def test_bad_archives(self, tmp_path, arrays, error, message):
        np.savez(tmp_path / "x.npz", **arrays)
        refused(error, rf"x.npz.*{message}", open_pictures, tmp_path / "x.npz")
        if list(arrays) == ["images"]:
            np.save(tmp_path / "x.npy", arrays["images"])
            refused(error, rf"x.npy.*{message}", open_pictures, tmp_path / "x.npy")


class TestPublished:
    """Archives as they are published: dSprites with its pickled metadata, and factors that are fractions."""

    @pytest.fixture(autouse=True)
    def no_pickle(self, monkeypatch):
        """Fails if anything is unpickled."""
        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("it was unpickled"))

    def dsprites(self, path, n: int = 6, **more):
        """Writes an archive as dSprites is published: pictures of 0 and 1, factors twice, and a pickled dict."""
        chance = np.random.default_rng(0)
        classes = np.stack([np.arange(n) * 0, np.arange(n) % 3, np.arange(n) % 6, np.arange(n), np.arange(n), np.arange(n)[::-1]], 1)
        images = chance.integers(0, 2, (n, 8, 8), dtype=np.uint8)
        images[0, 0, :2] = 0, 1
        metadata = np.array({"title": "dSprites", "latents_names": ("color",)}, dtype=object)
        values = classes / 2 + 0.1
        np.savez_compressed(path, metadata=metadata, imgs=images, latents_classes=classes.astype(np.int64), latents_values=values, **more)
        return images, classes

    def test_dsprites_is_read_as_published(self, tmp_path):
        images, classes = self.dsprites(tmp_path / "d.npz")
        found = open_pictures(tmp_path / "d.npz", cache=None)
        assert np.array_equal(found.pixels[:, 0], images * 255)
        np.save(tmp_path / "imgs.npy", images)  # the array alone
        assert np.array_equal(open_pictures(tmp_path / "imgs.npy", cache=None).pixels, found.pixels)
        assert list(found.labels) == ["color", "shape", "scale", "orientation", "x", "y"]
        for i, name in enumerate(found.labels):
            assert found.labels[name].values.tolist() == classes[:, i].tolist()

    @pytest.mark.parametrize(("k", "digits", "form"), [(2, None, "npz"), (7, 3, "npz"), (40, 6, "npz"), (40, None, "npz"), (4, 3, "csv")])
    def test_fractions_are_classes(self, tmp_path, k, digits, form):
        wanted = np.random.default_rng(k).permutation(np.arange(3 * k) % k)
        factors = wanted / (k - 1) if digits is None else (wanted / (k - 1)).round(digits)
        images = np.arange(3 * k * 4, dtype=np.uint8).reshape(3 * k, 2, 2)
        if form == "npz":
            np.savez(tmp_path / "f.npz", images=images, light=factors.astype(np.float32), both=np.stack([factors, 1 - factors], 1))
            found = open_pictures(tmp_path / "f.npz", cache=None).labels
            assert found["both_0"].values.tolist() == wanted.tolist() == (k - 1 - found["both_1"].values).tolist()
        else:
            for i, image in enumerate(images):
                Image.fromarray(image).save(tmp_path / f"{i:03d}.png")
            (tmp_path / "f.csv").write_text("\n".join(["file,light", *[f"{i:03d}.png,{value}" for i, value in enumerate(factors)]]))
            found = open_pictures(tmp_path, cache=None).labels
        assert found["light"].values.tolist() == wanted.tolist() and len(found["light"].names) == k

    def test_other_numbers_are_no_classes(self, tmp_path):
        for factors in ([0.0, 0.37, 1.0, 0.36], [0.0, 0.5, 0.9], [0.5, 1.0, 0.5], [0.0, float("nan"), 1.0], [0.0, 2.0, 0.5]):
            np.savez(tmp_path / "f.npz", images=np.ones((len(factors), 2, 2), np.uint8), light=np.array(factors))
            refused(DtypeError, "light", open_pictures, tmp_path / "f.npz", cache=None)
