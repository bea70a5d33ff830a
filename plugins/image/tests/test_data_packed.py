"""CIFAR, MNIST and NumPy files, intact and damaged."""

import gzip
import struct

import numpy as np
import pytest
import torch

from composable_energy.errors import DtypeError, FileFormatError, OptionError, ShapeError
from composable_energy_image.data import open_pictures
from plugins.image.tests.picture_files import RANDOM, random_pixels


class TestCifar:
    def ten(self, path, count=3):
        path.mkdir(exist_ok=True)
        (path / "batches.meta.txt").write_text("\n".join(["airplane", "automobile", *map(str, range(8))]) + "\n\n")
        batches = []
        for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
            labels, pixels = RANDOM.integers(0, 10, count).astype(np.uint8), random_pixels(count, 3, 32, 32)
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
        pixels = random_pixels(2, 3, 32, 32)
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
                FileFormatError, match=rf"data_batch_2.bin is truncated: expected 3,073 bytes for each.*found {len(wrong):,} bytes"
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
        with pytest.raises(OptionError, match=r"labels= applies to image folders.*CIFAR-10"):
            open_pictures(tmp_path, labels="table.csv")


class TestIdx:
    def write(self, path, pack=False, dot="-"):
        made = {}
        for part in ("train", "t10k"):
            pixels, labels = random_pixels(4, 7, 6), RANDOM.integers(0, 10, 4).astype(np.uint8)
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
        for wrong, message in (
            (again(plain[:-5]), r"expected 184 bytes for 4 x 7 x 6, found 179"),
            (again(plain[:9]), "truncated"),
            (again(b"\0\0\x0d" + plain[3:]), "not an IDX file of bytes"),
            (data[: len(data) // 2], "cannot be decompressed" if pack else "found 92"),
            (b"", "cannot be decompressed|truncated"),
        ):
            images.write_bytes(wrong)
            with pytest.raises(FileFormatError, match=rf"train-images-idx3-ubyte.*({message})"):
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
        pixels = random_pixels(*shape)
        np.save(tmp_path / "x.npy", pixels)
        found = open_pictures(tmp_path / "x.npy")
        expected = pixels[:, None] if pixels.ndim == 3 else pixels if shape[1] in (1, 3) else pixels.transpose(0, 3, 1, 2)
        assert isinstance(found.pixels, np.memmap)
        assert np.array_equal(found.pixels, expected)
        index = torch.tensor([3, 0, 3])
        assert torch.equal(found.images(index), torch.from_numpy(expected[index.numpy()] / np.float32(255)))

    @pytest.mark.parametrize("keep", [np.savez, np.savez_compressed])
    def test_an_archive_with_labels(self, tmp_path, keep):
        pixels = random_pixels(4, 5, 5)
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
        ("arrays", "error", "message"),
        [
            ({"pictures": random_pixels(2, 4, 4)}, FileFormatError, "has no array 'images', only pictures"),
            ({"images": random_pixels(2, 4, 4), "y": [1, 2, 3]}, ShapeError, r"'y' has shape \(3,\), expected \(2,\)"),
            ({"images": random_pixels(2, 4, 4), "y": [0.5, 1]}, DtypeError, "labels 'y'.*float64"),
            ({"images": random_pixels(2, 4, 4), "y": np.array([{}, {}])}, FileFormatError, "never unpickled"),
            ({"images": random_pixels(2, 4, 4, 4)}, ShapeError, r"\(2, 4, 4, 4\), expected \(N, H, W\)"),
            ({"images": np.zeros((2, 4, 4), np.int64)}, DtypeError, "int64, expected uint8"),
            ({"images": np.full((2, 4, 4), 200.0)}, OptionError, r"picture 0: .*images / 255"),
        ],
    )
    def test_bad_archives(self, tmp_path, arrays, error, message):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(error, match=rf"x.npz.*{message}"):
            open_pictures(tmp_path / "x.npz")
        if list(arrays) == ["images"]:
            np.save(tmp_path / "x.npy", arrays["images"])
            with pytest.raises(error, match=rf"x.npy.*{message}"):
                open_pictures(tmp_path / "x.npy")
