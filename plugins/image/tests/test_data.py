"""Labelled pictures: content, subsets and splits, and errors for bad input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy_image.data import Labels, Pictures


def some(count=10, channels=3, side=4, **labels):
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)
    return Pictures.from_tensors(images, labels)


class TestLabels:
    @pytest.mark.parametrize(
        ("words", "values", "names"),
        [
            (["0", "1", ""], [0, 1, -1], ("no", "yes")),
            (["-1", "1", "1"], [0, 1, 1], ("no", "yes")),
            (["Yes", "NO", " yes "], [1, 0, 1], ("no", "yes")),
            (["True", "false"], [1, 0], ("no", "yes")),
            (["1.0", "0.0", ""], [1, 0, -1], ("no", "yes")),  # integers beside empty cells, as pandas writes them
            (["10", "9", "2"], [2, 1, 0], ("2", "9", "10")),
            (["-1", "0", "1"], [0, 1, 2], ("-1", "0", "1")),
            (["red", "blond", "", "red"], [1, 0, -1, 1], ("blond", "red")),
            (["nan", "infinity", "1_2"], [2, 1, 0], ("1_2", "infinity", "nan")),
        ],
    )
    def test_words_become_indices(self, words, values, names):
        found = some(len(words), it=words).labels["it"]
        assert found.values.tolist() == values
        assert found.names == names
        assert found.binary == (names == ("no", "yes"))

    def test_bad_numbers(self):
        with pytest.raises(DtypeError, match=r"'it'.*float32.*long"):
            some(2, it=[0.5, 1.0])
        with pytest.raises(DtypeError, match=r"'it'.*neither numbers nor words.*None"):
            some(2, it=[1, None])
        with pytest.raises(OptionError, match=r"'it'.*got -2 for picture 1"):
            some(2, it=[0, -2])
        with pytest.raises(OptionError, match=r"0 to 1, or -1 where unknown, got 2 for picture 0"):
            Labels(torch.tensor([2]), ("no", "yes"))
        with pytest.raises(OptionError, match="distinct"):
            Labels(torch.tensor([0]), ("a", "a"))
        with pytest.raises(ShapeError, match=r"\(N,\)"):
            some(2, it=torch.zeros(2, 1, dtype=torch.int64))
        with pytest.raises(DtypeError, match="int32"):
            Labels(torch.zeros(2, dtype=torch.int32), ("a",))
        with pytest.raises(ShapeError, match=r"2 pictures and 3 labels 'it'"):
            some(2, it=[0, 1, 1])


class TestPictures:
    @given(st.integers(1, 6), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
    @settings(max_examples=25, deadline=None)
    def test_bytes_come_back(self, count, channels, height, width, seed):
        images = torch.randint(0, 256, (count, channels, height, width), generator=torch.Generator().manual_seed(seed))
        kept = Pictures.from_tensors(images.byte())
        assert kept.event_shape == (channels, height, width)
        shown = kept.images(torch.arange(count))
        assert shown.dtype == torch.float32
        assert torch.equal(shown, images / 255)
        assert np.array_equal(Pictures.from_tensors(shown).pixels, kept.pixels)

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
            assert len(pictures) == len(expected)
            assert torch.equal(pictures.labels["it"].values, expected)
        assert np.array_equal(pictures.pixels, whole.pixels[expected.numpy()])
        index = torch.arange(len(expected))
        assert torch.equal(pictures.images(index).mul(255).byte(), torch.from_numpy(pictures.pixels))

    @given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 2**63))
    @settings(max_examples=50, deadline=None)
    def test_split_is_a_partition_in_order(self, count, share, seed):
        pictures = some(count, side=1, it=list(range(count)) if count > 2 else [0, 1])
        if not 0 < round(share * count) < count:
            with pytest.raises(OptionError, match="both parts"):
                pictures.split(share, seed)
            return
        first, second = pictures.split(share, seed)
        ids = [part.labels["it"].values for part in (first, second)]
        assert len(first) == round(share * count)
        assert torch.equal(torch.cat(ids).sort().values, torch.arange(count))
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
            with pytest.raises(OptionError, match=told):
                pictures.variable(name)

    @pytest.mark.parametrize(
        ("images", "error", "told"),
        [
            (torch.rand(2, 4, 4), ShapeError, r"\(2, 4, 4\).*images\[:, None\]"),
            (torch.rand(2, 5, 5, 3), ShapeError, "permute"),
            (torch.rand(2, 4, 8, 8), ShapeError, "1 or 3 channels"),
            (torch.full((2, 1, 2, 2), 255.0), OptionError, r"\[255, 255\]; write `images / 255`"),
            (torch.full((2, 1, 2, 2), math.nan), OptionError, "nan"),
            (torch.full((2, 1, 2, 2), 7), DtypeError, "int64.*uint8"),
        ],
    )
    def test_bad_images(self, images, error, told):
        with pytest.raises(error, match=told):
            Pictures.from_tensors(images)
        with pytest.raises(error, match=told):
            Pictures.from_tensors(images.numpy())
