"""Labelled pictures: content, subsets and splits, and errors for bad input; the preparation of their batches."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.sampling.noise import Noise
from composable_energy_image.data import Labels, Pictures, Preparation
from tests.refusals import refusals


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


test_bad_labels_are_refused = refusals(
    (lambda: some(2, it=[0.5, 1.0]), DtypeError, r"'it'.*float32.*long"),
    (lambda: some(2, it=[1, None]), DtypeError, r"'it'.*neither numbers nor words.*None"),
    (lambda: some(2, it=[0, -2]), OptionError, r"'it'.*got -2 for picture 1"),
    (lambda: Labels(torch.tensor([2]), ("no", "yes")), OptionError, r"0 to 1, or -1 where unknown, got 2 for picture 0"),
    (lambda: Labels(torch.tensor([0]), ("a", "a")), OptionError, "distinct"),
    (lambda: some(2, it=torch.zeros(2, 1, dtype=torch.int64)), ShapeError, r"\(N,\)"),
    (lambda: Labels(torch.zeros(2, dtype=torch.int32), ("a",)), DtypeError, "int32"),
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
        for same in (images, images.numpy()):
            with pytest.raises(error, match=told):
                Pictures.from_tensors(same)


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
        assert angle.abs().max() < largest + 0.5
        assert abs(angle.mean()) < 5 * largest / math.sqrt(3 * count)
        assert angle.var() == pytest.approx(largest**2 / 3, rel=0.15)

    def test_flips_half_of_the_rows(self):
        images, count = torch.rand(4000, 1, 2, 3), 4000
        kept = images.clone()
        found = Preparation(flip=True)(images, self.noise(count))
        assert torch.equal(images, kept)
        flipped = (found == images.flip(-1)).flatten(1).all(1)
        assert ((found == images).flatten(1).all(1) ^ flipped).all()
        assert abs(flipped.float().mean() - 0.5) < 5 * math.sqrt(0.25 / count)

    def test_uniform_dequantization_fills_the_step_of_each_byte(self):
        bytes = torch.randint(0, 256, (2000, 1, 4, 4))
        found = Preparation(dequantize="uniform")(bytes / 255, self.noise(2000)).double() * 256 - bytes
        assert found.min() > -1e-4
        assert found.max() < 1 + 1e-4
        count = found.numel()
        assert abs(found.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / count)
        assert abs(found.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / count)

    def test_shifts_evenly_and_independently_of_flips(self):
        count, padding, side = 9000, 1, 5
        place = torch.zeros(1, 1, side, side)
        place[..., 2, 2] = 1
        found = Preparation(padding=padding)(place.expand(count, -1, -1, -1), self.noise(count))
        where = found.flatten(1).argmax(1)
        counts = torch.bincount(where, minlength=side**2).reshape(side, side)[1:4, 1:4].float()
        assert counts.sum() == count
        assert (counts - count / 9).square().sum() / (count / 9) < 8 + 5 * 4  # chi-squared: mean 8, standard deviation 4
        both = Preparation(padding=padding, flip=True)(torch.rand(1, 1, side, side).expand(count, -1, -1, -1), self.noise(count))
        kinds = both.flatten(1).unique(dim=0, return_counts=True)[1]
        assert len(kinds) == 18
        assert (kinds - count / 18).square().sum() / (count / 18) < 17 + 5 * math.sqrt(34)

    def test_bad_options_and_images(self):
        wrong: list[dict[str, Any]] = [{"dequantize": "gauss"}, {"dequantize": 0.0}, {"dequantize": True}, {"padding": -1}]
        wrong += [{"rotation": -1}, {"zoom": 1.0}, {"shift": math.nan}, {"bend": 2}]
        for options in wrong:
            with pytest.raises(OptionError, match=f"{next(iter(options))} must be .*got {next(iter(options.values()))!r}"):
                Preparation(**options)
        with pytest.raises(DtypeError, match="uint8"):
            Preparation()(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), self.noise(1))
        with pytest.raises(ShapeError, match=r"\(2, 2\)"):
            Preparation()(torch.zeros(2, 2), self.noise(2))
        with pytest.raises(ShapeError, match="padding of 2"):
            Preparation(padding=2)(torch.zeros(1, 1, 2, 2), self.noise(1))
