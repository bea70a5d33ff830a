"""The preparation of batches: flips, shifts and dequantization."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.sampling.noise import Noise
from composable_energy_image.data import Preparation


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
