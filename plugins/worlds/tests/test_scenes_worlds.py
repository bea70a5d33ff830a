"""The worlds: labels in range, pictures that agree with their labels, and no dependence on earlier draws."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import composable_energy as ce
from composable_energy.errors import DtypeError, ExtraNotInstalled, OptionError, ShapeError
from composable_energy_image.data import World
from composable_energy_scenes import COLORS, KINDS, ROOM_FACTORS, ColoredSprites, Objects, OneObject, Room, Sprites, Tetris
from composable_energy_scenes.projection import CameraView


@cache
def world(name: str, **options: object) -> World:
    """One of each, so that what draws is started once."""
    made = ce.get("world", name, **options)
    try:
        made.draw(1)
    except ExtraNotInstalled as error:
        pytest.skip(f"nothing draws here: {error}")
    return made


@pytest.mark.slow
def test_labels_are_spread_over_their_ranges():
    one, many = OneObject().labels(2_000, seed=1), Objects().labels(200, seed=1)
    for values, least, most in ((one["position"], -1, 1), (one["size"], 0.3, 0.7), (one["light"], -1, 1), (one["floor"], 0.3, 0.44)):
        assert least <= values.min() < least + 0.02 * (most - least) and most - 0.02 * (most - least) < values.max() <= most
    for values, kinds in ((one["shape"], KINDS), (one["color"], COLORS)):
        share = np.bincount(values, minlength=len(kinds)) / 2_000
        np.testing.assert_allclose(share, 1 / len(kinds), atol=5 * np.sqrt(1 / len(kinds) / 2_000))
    np.testing.assert_allclose(np.linalg.norm(one["light"], axis=1), 1, atol=1e-6)
    assert set(many["present"].sum(1)) == {3, 4, 5, 6}
    assert np.abs(many["position"]).max() <= 1
    assert many["size"][many["present"]].min() >= 0.16 and many["size"].max() <= 0.30
    factors = Room().labels(500, seed=1)["factors"]
    assert factors.shape == (500, len(ROOM_FACTORS)) and 0 <= factors.min() < 0.01 < 0.99 < factors.max() <= 1
    shape = Sprites().labels(3_000, seed=1)
    assert len(np.unique(shape["scale"])) == 6 and len(np.unique(shape["orientation"], axis=0)) == 40
    assert len(np.unique(shape["position"])) == 32
    assert len(np.unique(Sprites(grid=False).labels(100)["scale"])) == 100


class TestSolids:
    """One object is where its label says and as large, and of several none is hidden."""

    view = CameraView((0.0, -3.5, 3.3), float(np.degrees(np.arctan2(0.67, 0.74))), 46.0)

    def test_the_middle_of_a_mask_is_the_projected_middle(self):
        scenes = world("one-object").draw(60, seed=8, masks=True)
        assert scenes.masks is not None
        for mask, where, half in zip(scenes.masks, scenes.labels["position"], scenes.labels["size"], strict=True):
            rows, columns = np.nonzero(mask)
            expected = self.view.pixels(np.array([*where, half]), 64)
            assert np.abs(np.array([columns.mean(), rows.mean()]) + 0.5 - expected).max() < 1.5
            assert mask.max() == 1

    def test_a_sphere_has_the_area_of_its_ellipse(self):
        r"""A sphere at $(x, y, z)$ from the camera covers $\pi f^2 r^2 (x^2 + y^2 + z^2 - r^2)^{1/2} (z^2 - r^2)^{-3/2}$ pixels."""
        n = 40
        labels = world("one-object").labels(n, seed=8) | {"shape": np.full(n, KINDS.index("sphere"))}
        masks = world("one-object").render(labels, masks=True).masks
        assert masks is not None
        half = labels["size"]
        middle = np.concatenate([labels["position"], half[:, None]], 1)
        x, y, z = ((middle - self.view.position) @ self.view.axes().T).T
        focal = 32 / np.tan(np.radians(self.view.angle / 2))
        area = np.pi * focal**2 * half**2 * np.sqrt(x**2 + y**2 + z**2 - half**2) / (z**2 - half**2) ** 1.5
        np.testing.assert_allclose((masks > 0).sum((1, 2)), area, rtol=0.03, atol=4)

    @pytest.mark.slow
    def test_what_labels_count_is_what_masks_show(self):
        scenes = world("objects").draw(60, seed=8, masks=True)
        assert scenes.masks is not None
        told = scenes.labels
        for i, mask in enumerate(scenes.masks):
            n = told["present"][i].sum()
            assert told["present"][i, :n].all() and not told["size"][i, n:].any()
            shown = np.bincount(mask.ravel(), minlength=n + 1)
            assert len(shown) == n + 1 and shown[1:].min() >= 12

    def test_objects_stand_apart(self):
        told = Objects(count=(6, 6)).labels(60, seed=2)
        reach = told["size"] * np.where(told["shape"] == KINDS.index("box"), np.sqrt(2), 1)
        between = np.linalg.norm(told["position"][:, :, None] - told["position"][:, None], axis=3)
        i, j = np.triu_indices(6, 1)
        assert (between[:, i, j] > reach[:, i] + reach[:, j]).all()

    def test_scenes_do_not_depend_on_the_size_of_pictures_and_options_hold(self):
        for name, values in Objects(32).labels(8, seed=4).items():
            np.testing.assert_array_equal(values, Objects(64).labels(8, seed=4)[name])
        told = Objects(count=(2, 4), shapes=("sphere",), sizes=(0.3, 0.3)).labels(40, seed=4)
        assert set(told["present"].sum(1)) == {2, 3, 4}
        assert set(told["shape"][told["present"]]) == {KINDS.index("sphere")} and told["size"].max() == np.float32(0.3)

    def test_colors_and_light_are_seen(self):
        """The brightest color of an object is its own, and the side of the lamp is the brighter one."""
        n = len(COLORS)
        labels = {name: np.repeat(values[:1], n, 0) for name, values in world("one-object").labels(1, seed=3).items()}
        labels |= {"color": np.arange(n), "shape": np.full(n, KINDS.index("sphere")), "position": np.zeros((n, 2), np.float32)}
        scenes = world("one-object").render(labels, masks=True)
        assert scenes.masks is not None
        mean = np.stack([image[:, mask > 0].mean(1) for image, mask in zip(scenes.images, scenes.masks, strict=True)])
        high = mean > 100
        assert high[:7].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]] and mean[7].max() < 60
        sides = []
        for cosine in (-1.0, 1.0):
            lit = labels | {"light": np.tile(np.array([cosine, 0], np.float32), (n, 1)), "color": np.full(n, COLORS.index("white"))}
            picture = world("one-object").render(lit).images[0].mean(0)
            sides.append(picture[28:36, 32:38].mean() - picture[28:36, 26:32].mean())
        assert sides[0] < -5 and sides[1] > 5


class TestRoom:
    def pictures(self, factor: int, values: list[float]) -> np.ndarray:
        factors = np.full((len(values), len(ROOM_FACTORS)), 0.5)
        factors[:, factor] = values
        return world("room").render({"factors": factors}).images.astype(float)

    @pytest.mark.parametrize("factor", range(len(ROOM_FACTORS)), ids=ROOM_FACTORS)
    def test_each_factor_changes_the_picture_steadily(self, factor):
        low, near, high = self.pictures(factor, [0, 0.25, 1])
        assert np.abs(high - low).mean() > 3
        assert 0 < np.abs(near - low).mean() < np.abs(high - low).mean()

    def test_furniture_moves_with_the_camera_not_with_the_lamp(self):
        factors = np.full((3, 7), 0.5)
        factors[1, 1:4], factors[2, 4] = 0, 0
        masks = world("room").render({"factors": factors}, masks=True).masks
        assert masks is not None
        np.testing.assert_array_equal(masks[0], masks[1])
        assert (masks[0] != masks[2]).mean() > 0.05
        assert len(np.unique(masks[0])) > 20

    def test_factors_beyond_their_range_are_refused(self):
        with pytest.raises(OptionError, match=r"each be in \[0, 1\], got 0.5 to 1.5"):
            Room().render({"factors": np.array([[0.5] * 6 + [1.5]])})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scale": np.zeros(3)}, ShapeError, r"'scale' must have shape \(N\), N = 2; got \(3,\)"),
        ({"shape": np.zeros(2)}, DtypeError, "'shape' must be int64, got float64"),
        ({"shape": np.array([0, 3])}, OptionError, "'shape' must be 0 to 2, got 0 to 3"),
        ({"scale": np.array([0.5, np.nan])}, OptionError, "'scale' must be finite"),
    ],
)
def test_labels_that_are_none_are_refused(changes, error, message):
    labels = {**Sprites().labels(2), **changes}
    with pytest.raises(error, match=message):
        Sprites().render({name: values for name, values in labels.items() if values is not None})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneObject(7), "from 8 to 256, got 7"),
        (lambda: Sprites(64.0), "got 64.0"),  # pyright: ignore[reportArgumentType]
        (lambda: Objects(count=(0, 3)), r"1 to 10, got \(0, 3\)"),
        (lambda: Objects(shapes=("cone",)), r"among box, sphere, cylinder, pin, truck, table, snowman, got \('cone',\)"),
        (lambda: Objects(sizes=(0.3, 0.2)), r"got \(0.3, 0.2\)"),
        (lambda: Objects(count=(10, 10), sizes=(0.5, 0.5)).labels(1), "do not fit on the floor"),
        (lambda: ColoredSprites(count=(1, 9)), "1 to 4"),
        (lambda: Tetris(36, 7), "multiple of the number of cells"),
        (lambda: Sprites().at(np.array([[3, 0, 0, 0, 0]])), "below"),
        (lambda: Sprites().at(np.zeros((1, 5))), "float"),
        (lambda: world("one-object").render(world("one-object").labels(1) | {"size": np.zeros(1)}), "half width of a solid must be"),
        (lambda: Sprites().labels(-1), "n must be a whole number of at least 0, got -1"),
        (lambda: Sprites().draw(1, seed=1.5), "seed must be a whole number"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_options_that_are_none_are_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()
