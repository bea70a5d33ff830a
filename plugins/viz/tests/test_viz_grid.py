"""`ce.viz.grid`: where each image is, what is refused, and files that are read again."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

import composable_energy as ce
from composable_energy.errors import OptionError, ShapeError
from composable_energy_viz import PictureWarning
from tests.processes import needs_forkserver, run_code


def steps(n: int, channels: int = 3, size: int = 8) -> torch.Tensor:
    """Images of one value each, which differ by more than rounding."""
    return (torch.arange(n) / max(1, n - 1)).view(n, 1, 1, 1).expand(n, channels, size, size)


def middle(sheet: Image.Image, row: int, column: int, tile: int, gap: int = 4) -> int:
    pixel = sheet.getpixel((column * (tile + gap) + tile // 2, row * (tile + gap) + tile // 2))
    assert isinstance(pixel, tuple) and len(set(pixel)) == 1
    return int(pixel[0])


class TestLayout:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_images_are_in_reading_order(self, channels):
        sheet = ce.viz.grid(steps(6, channels), columns=3, scale=2)
        assert sheet.size == (3 * 16 + 8, 2 * 16 + 4)
        found = [middle(sheet, i // 3, i % 3, 16) for i in range(6)]
        assert found == [round(255 * i / 5) for i in range(6)]

    def test_one_image_a_list_and_an_array_are_images(self):
        images = steps(3)
        wanted = ce.viz.grid(images).tobytes()
        assert ce.viz.grid(list(images)).tobytes() == ce.viz.grid(images.numpy()).tobytes() == wanted
        assert ce.viz.grid((images * 255).round().byte()).tobytes() == wanted
        assert ce.viz.grid(images[1], scale=1).size == (8, 8)

    def test_labels_stand_below_their_images(self):
        plain, labelled = ce.viz.grid(torch.ones(4, 1, 8, 8)), ce.viz.grid(torch.ones(4, 1, 8, 8), labels=["a", "", "long " * 99, 7])
        assert labelled.width == plain.width and labelled.height == plain.height + 2 * 18
        tile = (plain.width - 4) // 2
        strips = [np.asarray(labelled)[tile : tile + 18, x : x + tile] for x in (0, tile + 4)]
        assert strips[0].min() < 100 and strips[1].min() == 255

    def test_the_range_is_mapped_to_black_and_white(self):
        images = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 8, 8)
        sheet = ce.viz.grid(images, value_range=(-1, 1), columns=3, scale=1)
        assert [middle(sheet, 0, i, 8) for i in range(3)] == [0, 128, 255]


class TestRefusals:
    @pytest.mark.parametrize(
        ("images", "labels", "advice"),
        [
            (torch.rand(4, 2), None, "For points on the plane use `show`"),
            (torch.rand(4, 8, 8), None, r"`images\.unsqueeze\(1\)`"),
            (torch.rand(4, 8, 8, 3), None, "channels seem to be last"),
            (torch.rand(0, 3, 8, 8), None, r"got \(0, 3, 8, 8\)"),
            ([torch.rand(3, 8, 8), torch.rand(3, 4, 4)], None, "images must"),
            ("images", None, "images must"),
            (torch.rand(2, 3, 8, 8), ["one"], "one for each of 2 images"),
            (torch.rand(2, 3, 8, 8), "text", "one for each of 2 images"),
        ],
    )
    def test_other_shapes_and_labels_say_what_to_do(self, images, labels, advice):
        with pytest.raises(ShapeError, match=advice):
            ce.viz.grid(images, labels=labels)

    def test_values_that_are_not_finite(self):
        images = torch.rand(4, 3, 8, 8)
        images[1, 0, 0, 0], images[2] = float("nan"), float("inf")
        with pytest.raises(OptionError, match="2 of 4 images have values that are not finite"):
            ce.viz.grid(images)

    def test_another_range_warns_with_the_values(self):
        with pytest.warns(PictureWarning, match=r"from -1 to 1: give value_range="):
            ce.viz.grid(torch.linspace(-1, 1, 192).view(1, 3, 8, 8))

    @pytest.mark.parametrize(
        "options", [{"columns": 0}, {"scale": 0}, {"scale": 1.5}, {"value_range": (1, 0)}, {"path": "x.doc"}, {"path": "no-folder/x.png"}]
    )
    def test_bad_options_are_named(self, options):
        with pytest.raises(OptionError, match=next(iter(options))):
            ce.viz.grid(torch.rand(2, 3, 8, 8), **options)


@pytest.mark.full
@needs_forkserver
def test_grids_need_no_matplotlib_and_figures_name_the_extra(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import torch, composable_energy as ce\n"
        "ce.viz.grid(torch.rand(2, 3, 8, 8))\n"
        "ce.viz.show(lambda x: x.square().sum(1), window=(-1, 1), draws=0)\n"
    )
    done = run_code(code, tmp_path)
    assert re.search(r"ExtraNotInstalled: .*pip install 'composable-energy\[viz\]'", done.stderr)
