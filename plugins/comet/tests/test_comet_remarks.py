"""Section 4 of the paper as tests: masks are a strict special case of energies.

Unsupervised learning of compositional energy concepts (Du et al., 2021), https://arxiv.org/abs/2111.03042, remark 1.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import composable_energy as ce

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

COMPONENTS, PIXELS = 3, 12


class Masked(ce.Energy):
    """A component as an energy: it has a color at the pixels of its mask, and does not mind the others."""

    mask: Tensor
    color: Tensor

    def __init__(self, mask: Tensor, color: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("color", color)
        self.event_shape = (PIXELS,)

    def forward(self, x: Tensor) -> Tensor:
        return (self.mask * (x - self.color).square()).sum(1)


def minimum(energy: ce.Energy, start: Tensor) -> Tensor:
    return energy.sample(len(start), init=start, sampler="descent", step_size=0.2, steps=100, seed=0)


class TestMasksAreAStrictSpecialCase:
    """Remark 1."""

    def test_a_composition_of_masks_is_a_minimum_of_energies(self):
        generator = torch.Generator().manual_seed(0)
        owner = torch.randint(COMPONENTS, (PIXELS,), generator=generator)
        colors = torch.rand(COMPONENTS, PIXELS, generator=generator)
        masks = torch.stack([(owner == k).float() for k in range(COMPONENTS)])
        composed = (masks * colors).sum(0)
        parts = [Masked(mask, color) for mask, color in zip(masks, colors, strict=True)]
        start = torch.rand(4, PIXELS, generator=generator)
        torch.testing.assert_close(minimum(ce.all_of(*parts), start), composed.expand(4, -1))
        for k, part in enumerate(parts):  # a part alone determines its own pixels, and leaves the others
            torch.testing.assert_close(minimum(part, start), torch.where(masks[k] > 0, colors[k], start))

    def test_the_minimum_of_a_pair_depends_on_both_where_a_mask_fixes_a_value(self):
        parts = [ce.as_energy(lambda x, place=place: (x - place).square().sum(1), name=f"at {place}") for place in (2.0, 3.0, 4.0)]
        pairs = {(i, j): minimum(parts[i] & parts[j], torch.zeros(1, 1)).item() for i, j in ((0, 1), (0, 2), (1, 2))}
        assert list(pairs.values()) == pytest.approx([2.5, 3.0, 3.5], abs=1e-4)
        for part in range(3):  # a mask of 1 would give both pairs of a component its value; so each mask is 0, and the picture too
            one, other = (value for pair, value in pairs.items() if part in pair)
            assert abs(one - other) > 0.4
        assert min(pairs.values()) > 2
