"""The worlds without MuJoCo: sprites, colored sprites and tetris."""

from __future__ import annotations

import numpy as np
import pytest

from composable_energy.errors import OptionError
from composable_energy_scenes import FULL_COLORS, PIECES, SPRITE_FACTORS, SPRITES, ColoredSprites, Sprites, Tetris

BY_LIGHT = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 0): "yellow", (1, 0, 1): "magenta", (0, 1, 1): "cyan"}


class TestSprites:
    def test_areas_go_with_the_square_of_the_scale_and_not_with_the_shape(self):
        scenes = Sprites(128).draw(120, seed=1, masks=True)
        assert scenes.masks is not None
        area = 0.3 / 4 * 128**2 * scenes.labels["scale"] ** 2
        found = scenes.masks.sum((1, 2), dtype=int)
        np.testing.assert_allclose(found, area, rtol=0.02, atol=6)
        assert set(scenes.labels["shape"]) == {0, 1, 2}
        np.testing.assert_array_equal(scenes.images[:, 0], 255 * scenes.masks)

    def test_they_are_where_and_turned_as_labels_say(self):
        n = 80
        told = Sprites(128, grid=False).labels(n, seed=2) | {"shape": np.full(n, SPRITES.index("ellipse"))}
        masks = Sprites(128).render(told, masks=True).masks
        assert masks is not None
        for mask, where, turn in zip(masks, told["position"], told["orientation"], strict=True):
            rows, columns = np.nonzero(mask)
            x, y = (columns + 0.5) / 64 - 1, 1 - (rows + 0.5) / 64
            np.testing.assert_allclose([x.mean(), y.mean()], 0.59 * where, atol=0.01)
            assert min(rows.min(), columns.min()) > 0 and max(rows.max(), columns.max()) < 127
            longest = np.linalg.eigh(np.cov(np.stack([x, y])))[1][:, 1]
            assert abs(longest @ turn) > 0.99

    def test_every_point_of_the_grid_has_its_labels(self):
        steps = np.stack(np.meshgrid(*(np.arange(k) for k in (3, 6, 4, 2, 2)), indexing="ij"), -1).reshape(-1, 5) * [1, 1, 10, 31, 31]
        told = Sprites().at(steps)
        found = {name: len(np.unique(values, axis=0)) for name, values in told.items()}
        assert found == {"shape": 3, "scale": 6, "orientation": 4, "position": 4}
        assert told["position"].min() == -1 and told["position"].max() == 1 and told["scale"].min() == 0.5 and told["scale"].max() == 1
        different = 1 + 2 + 4  # of four quarter turns: of the square, the ellipse and the heart
        assert len(np.unique(Sprites().render(told).images, axis=0)) == 6 * 4 * different
        assert np.prod(list(SPRITE_FACTORS.values())) == 737_280

    def test_several_stand_apart_and_have_their_colors(self):
        scenes = ColoredSprites(64, count=(1, 4)).draw(60, seed=3, masks=True)
        assert scenes.masks is not None
        told = scenes.labels
        assert set(told["present"].sum(1)) == {1, 2, 3, 4}
        for image, mask, present, color, scale in zip(
            scenes.images, scenes.masks, told["present"], told["color"], told["scale"], strict=True
        ):
            n = present.sum()
            assert set(np.unique(mask)) == set(range(n + 1)) and not image[:, mask == 0].any()
            for k in range(n):
                assert np.unique(image[:, mask == k + 1], axis=1).shape == (3, 1)
                red, green, blue = image[:, mask == k + 1][:, 0] > 0
                assert FULL_COLORS[color[k]] == BY_LIGHT[red, green, blue]
                np.testing.assert_allclose((mask == k + 1).sum(), 0.3 / 4 * 64**2 * scale[k] ** 2, rtol=0.05, atol=8)


class TestTetris:
    def test_there_are_nineteen_pieces_of_four_connected_cells(self):
        assert len(PIECES) == 19 and len({cells.tobytes() for cells in PIECES.values()}) == 19
        for cells in PIECES.values():
            assert cells.shape == (4, 2) and (cells.min(0) == 0).all()
            assert sum(np.abs(a - b).sum() == 1 for a in cells for b in cells) in (6, 8)  # three shared edges, four of the square

    def test_pieces_are_where_labels_say_and_touch_in_different_colors_only(self):
        scenes = Tetris().draw(200, seed=1, masks=True)
        assert scenes.masks is not None
        names, touching = list(PIECES), 0
        for i, mask in enumerate(scenes.masks):
            cells = mask.reshape(7, 5, 7, 5)
            assert (cells == cells[:, :1, :, :1]).all()
            board = cells[:, 0, :, 0]
            for k in range(3):
                expected = PIECES[names[scenes.labels["shape"][i, k]]] + scenes.labels["cell"][i, k]
                np.testing.assert_array_equal(np.argwhere(board == k + 1), expected)
            color = np.concatenate([[-1], scenes.labels["color"][i]])
            wide = np.pad(board, 1)
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                other = np.roll(wide, (-down, -right), (0, 1))
                border = (wide != other) & (wide > 0) & (other > 0)
                touching += border.any()
                assert (color[wide[border]] != color[other[border]]).all()
        assert touching > 50
        assert set(scenes.labels["color"].ravel()) == set(range(6))

    def test_arrangements_that_cannot_be_are_refused(self):
        told = Tetris().labels(1, seed=1)
        with pytest.raises(OptionError, match="outside the board of 7 x 7"):
            Tetris().render(told | {"cell": told["cell"] + 4})
        with pytest.raises(OptionError, match="overlap"):
            Tetris().render({"shape": np.zeros((1, 3), int), "color": np.array([[0, 1, 2]]), "cell": np.zeros((1, 3, 2), int)})
