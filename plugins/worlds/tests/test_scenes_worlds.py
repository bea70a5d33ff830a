"""The worlds: labels in range, pictures that agree with their labels; backends for rendering, found automatically and equal in pictures."""

import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import composable_energy as ce
import composable_energy_scenes as worlds
from composable_energy.errors import DtypeError, ExtraNotInstalled, OptionError, ShapeError
from composable_energy_image.data import World
from composable_energy_scenes.projection import CameraView
from tests.processes import run_code
from tests.refusals import refusals

DRAW = """
import sys
import numpy as np
import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled
try:
    for name in ("one-object", "objects", "room"):
        drawn = ce.get("world", name).draw(16, seed=4, masks=True)
        np.savez(f"{name}.npz", images=drawn.images, masks=drawn.masks, **drawn.labels)
except ExtraNotInstalled as error:
    print(error)
    sys.exit(7)
"""
HIDE = """
import ctypes.util
find = ctypes.util.find_library
ctypes.util.find_library = lambda name: None if name in {hidden} else find(name)
"""
ONE = """
import os
import composable_energy as ce
from composable_energy.errors import ComposableEnergyError
try:
    print(ce.get("world", "one-object").draw(2).images.shape, os.environ.get("MUJOCO_GL"))
except ComposableEnergyError as error:
    print(type(error).__name__, error)
"""


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
    one, many = worlds.OneObject().labels(2_000, seed=1), worlds.Objects().labels(200, seed=1)
    for values, least, most in ((one["position"], -1, 1), (one["size"], 0.3, 0.7), (one["light"], -1, 1), (one["floor"], 0.3, 0.44)):
        assert least <= values.min() < least + 0.02 * (most - least) and most - 0.02 * (most - least) < values.max() <= most
    for values, kinds in ((one["shape"], worlds.KINDS), (one["color"], worlds.COLORS)):
        share = np.bincount(values, minlength=len(kinds)) / 2_000
        np.testing.assert_allclose(share, 1 / len(kinds), atol=5 * np.sqrt(1 / len(kinds) / 2_000))
    np.testing.assert_allclose(np.linalg.norm(one["light"], axis=1), 1, atol=1e-6)
    assert set(many["present"].sum(1)) == {3, 4, 5, 6} and np.abs(many["position"]).max() <= 1
    assert many["size"][many["present"]].min() >= 0.16 and many["size"].max() <= 0.30
    factors = worlds.Room().labels(500, seed=1)["factors"]
    assert factors.shape == (500, len(worlds.ROOM_FACTORS)) and 0 <= factors.min() < 0.01 < 0.99 < factors.max() <= 1
    shape = worlds.Sprites().labels(3_000, seed=1)
    assert len(np.unique(shape["scale"])) == 6 and len(np.unique(shape["orientation"], axis=0)) == 40
    assert len(np.unique(shape["position"])) == 32 and len(np.unique(worlds.Sprites(grid=False).labels(100)["scale"])) == 100


class TestSolids:
    """One object is where its label says and as large, and of several none is hidden."""

    view = CameraView((0.0, -3.5, 3.3), float(np.degrees(np.arctan2(0.67, 0.74))), 46.0)

    def test_the_middle_of_a_mask_is_the_projected_middle(self):
        scenes = world("one-object").draw(60, seed=8, masks=True)
        assert scenes.masks is not None
        for mask, where, half in zip(scenes.masks, scenes.labels["position"], scenes.labels["size"], strict=True):
            rows, columns = np.nonzero(mask)
            assert np.abs(np.array([columns.mean(), rows.mean()]) + 0.5 - self.view.pixels(np.array([*where, half]), 64)).max() < 1.5
            assert mask.max() == 1

    def test_a_sphere_has_the_area_of_its_ellipse(self):
        r"""A sphere at $(x, y, z)$ from the camera covers $\pi f^2 r^2 (x^2 + y^2 + z^2 - r^2)^{1/2} (z^2 - r^2)^{-3/2}$ pixels."""
        n = 40
        labels = world("one-object").labels(n, seed=8) | {"shape": np.full(n, worlds.KINDS.index("sphere"))}
        masks = world("one-object").render(labels, masks=True).masks
        assert masks is not None
        half = labels["size"]
        x, y, z = ((np.concatenate([labels["position"], half[:, None]], 1) - self.view.position) @ self.view.axes().T).T
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
        told = worlds.Objects(count=(6, 6)).labels(60, seed=2)
        reach = told["size"] * np.where(told["shape"] == worlds.KINDS.index("box"), np.sqrt(2), 1)
        between = np.linalg.norm(told["position"][:, :, None] - told["position"][:, None], axis=3)
        i, j = np.triu_indices(6, 1)
        assert (between[:, i, j] > reach[:, i] + reach[:, j]).all()

    def test_colors_and_light_are_seen(self):
        """The brightest color of an object is its own, and the side of the lamp is the brighter one."""
        n = len(worlds.COLORS)
        labels = {name: np.repeat(values[:1], n, 0) for name, values in world("one-object").labels(1, seed=3).items()}
        labels |= {"color": np.arange(n), "shape": np.full(n, worlds.KINDS.index("sphere")), "position": np.zeros((n, 2), np.float32)}
        scenes = world("one-object").render(labels, masks=True)
        assert scenes.masks is not None
        mean = np.stack([image[:, mask > 0].mean(1) for image, mask in zip(scenes.images, scenes.masks, strict=True)])
        high = mean > 100
        assert high[:7].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]] and mean[7].max() < 60
        sides = []
        for cosine in (-1.0, 1.0):
            lit = labels | {"light": np.tile(np.array([cosine, 0], np.float32), (n, 1)), "color": np.full(n, worlds.COLORS.index("white"))}
            picture = world("one-object").render(lit).images[0].mean(0)
            sides.append(picture[28:36, 32:38].mean() - picture[28:36, 26:32].mean())
        assert sides[0] < -5 and sides[1] > 5


class TestRoom:
    def pictures(self, factor: int, values: list[float]) -> np.ndarray:
        factors = np.full((len(values), len(worlds.ROOM_FACTORS)), 0.5)
        factors[:, factor] = values
        return world("room").render({"factors": factors}).images.astype(float)

    @pytest.mark.parametrize("factor", range(len(worlds.ROOM_FACTORS)), ids=worlds.ROOM_FACTORS)
    def test_each_factor_changes_the_picture_steadily(self, factor):
        low, near, high = self.pictures(factor, [0, 0.25, 1])
        assert np.abs(high - low).mean() > 3 and 0 < np.abs(near - low).mean() < np.abs(high - low).mean()


def render(world: World, **changes: np.ndarray) -> None:
    world.render(world.labels(2, seed=1) | changes)


test_labels_and_options_that_are_none_are_refused = refusals(
    (lambda: render(worlds.Sprites(), scale=np.zeros(3)), ShapeError, r"'scale' must have shape \(N\), N = 2; got \(3,\)"),
    (lambda: render(worlds.Sprites(), shape=np.zeros(2)), DtypeError, "'shape' must be int64, got float64"),
    (lambda: render(worlds.Sprites(), shape=np.array([0, 3])), OptionError, "'shape' must be 0 to 2, got 0 to 3"),
    (lambda: render(worlds.Sprites(), scale=np.array([0.5, np.nan])), OptionError, "'scale' must be finite"),
    (lambda: render(worlds.Room(), factors=np.array([[0.5] * 6 + [1.5]] * 2)), OptionError, r"each be in \[0, 1\], got 0.5 to 1.5"),
    (lambda: render(worlds.Tetris(), cell=worlds.Tetris().labels(2, seed=1)["cell"] + 4), OptionError, "outside the board of 7 x 7"),
    (lambda: render(worlds.Tetris(), shape=np.zeros((2, 3), int), cell=np.zeros((2, 3, 2), int)), OptionError, "overlap"),
    (lambda: render(world("one-object"), size=np.zeros(2)), OptionError, "half width of a solid must be"),
    (lambda: worlds.OneObject(7), OptionError, "from 8 to 256, got 7"),
    (lambda: worlds.Objects(count=(0, 3)), OptionError, r"1 to 10, got \(0, 3\)"),
    (lambda: worlds.Objects(shapes=("cone",)), OptionError, r"among box, sphere, cylinder, pin, truck, table, snowman, got \('cone',\)"),
    (lambda: worlds.Objects(count=(10, 10), sizes=(0.5, 0.5)).labels(1), OptionError, "do not fit on the floor"),
    (lambda: worlds.ColoredSprites(count=(1, 9)), OptionError, "1 to 4"),
    (lambda: worlds.ColoredSprites(count=(2.0, 3.0)), OptionError, r"count must be a whole number of at least 0, got 2\.0"),
    (lambda: worlds.Objects(shadows="no"), OptionError, "shadows must be True or False, got 'no'"),
    (lambda: render(worlds.Sprites(), scale=np.array([0.5, 0])), OptionError, "Scales of sprites must be positive"),
    (lambda: render(worlds.Sprites(), orientation=np.ones((2, 2))), OptionError, "whose squares sum to 1"),
    (lambda: worlds.Tetris(36, 7), OptionError, "multiple of the number of cells"),
    (lambda: worlds.Sprites().at(np.array([[3, 0, 0, 0, 0]])), OptionError, "below"),
    (lambda: worlds.Sprites().labels(-1), OptionError, "n must be a whole number of at least 0, got -1"),
)

BY_LIGHT = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 0): "yellow", (1, 0, 1): "magenta", (0, 1, 1): "cyan"}


class TestSprites:
    def test_areas_go_with_the_square_of_the_scale_and_not_with_the_shape(self):
        scenes = worlds.Sprites(128).draw(120, seed=1, masks=True)
        assert scenes.masks is not None
        np.testing.assert_allclose(scenes.masks.sum((1, 2), dtype=int), 0.3 / 4 * 128**2 * scenes.labels["scale"] ** 2, rtol=0.02, atol=6)
        assert set(scenes.labels["shape"]) == {0, 1, 2}
        np.testing.assert_array_equal(scenes.images[:, 0], 255 * scenes.masks)

    def test_they_are_where_and_turned_as_labels_say(self):
        n = 80
        told = worlds.Sprites(128, grid=False).labels(n, seed=2) | {"shape": np.full(n, worlds.SPRITES.index("ellipse"))}
        masks = worlds.Sprites(128).render(told, masks=True).masks
        assert masks is not None
        for mask, where, turn in zip(masks, told["position"], told["orientation"], strict=True):
            rows, columns = np.nonzero(mask)
            x, y = (columns + 0.5) / 64 - 1, 1 - (rows + 0.5) / 64
            np.testing.assert_allclose([x.mean(), y.mean()], 0.59 * where, atol=0.01)
            assert min(rows.min(), columns.min()) > 0 and max(rows.max(), columns.max()) < 127
            assert abs(np.linalg.eigh(np.cov(np.stack([x, y])))[1][:, 1] @ turn) > 0.99

    def test_every_point_of_the_grid_has_its_labels(self):
        steps = np.stack(np.meshgrid(*(np.arange(k) for k in (3, 6, 4, 2, 2)), indexing="ij"), -1).reshape(-1, 5) * [1, 1, 10, 31, 31]
        told = worlds.Sprites().at(steps)
        found = {name: len(np.unique(values, axis=0)) for name, values in told.items()}
        assert found == {"shape": 3, "scale": 6, "orientation": 4, "position": 4}
        assert told["position"].min() == -1 and told["position"].max() == 1 and told["scale"].min() == 0.5 and told["scale"].max() == 1
        different = 1 + 2 + 4  # of four quarter turns: of the square, the ellipse and the heart
        assert len(np.unique(worlds.Sprites().render(told).images, axis=0)) == 6 * 4 * different
        assert np.prod(list(worlds.SPRITE_FACTORS.values())) == 737_280

    def test_several_stand_apart_and_have_their_colors(self):
        scenes = worlds.ColoredSprites(64, count=(1, 4)).draw(60, seed=3, masks=True)
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
                assert worlds.FULL_COLORS[color[k]] == BY_LIGHT[red, green, blue]
                np.testing.assert_allclose((mask == k + 1).sum(), 0.3 / 4 * 64**2 * scale[k] ** 2, rtol=0.05, atol=8)


class TestTetris:
    def test_there_are_nineteen_pieces_of_four_connected_cells(self):
        assert len(worlds.PIECES) == 19 and len({cells.tobytes() for cells in worlds.PIECES.values()}) == 19
        for cells in worlds.PIECES.values():
            assert cells.shape == (4, 2) and (cells.min(0) == 0).all()
            assert sum(np.abs(a - b).sum() == 1 for a in cells for b in cells) in (6, 8)  # three shared edges, four of the square

    def test_pieces_are_where_labels_say_and_touch_in_different_colors_only(self):
        scenes = worlds.Tetris().draw(200, seed=1, masks=True)
        assert scenes.masks is not None
        names, touching = list(worlds.PIECES), 0
        for i, mask in enumerate(scenes.masks):
            cells = mask.reshape(7, 5, 7, 5)
            assert (cells == cells[:, :1, :, :1]).all()
            board = cells[:, 0, :, 0]
            for k in range(3):
                expected = worlds.PIECES[names[scenes.labels["shape"][i, k]]] + scenes.labels["cell"][i, k]
                np.testing.assert_array_equal(np.argwhere(board == k + 1), expected)
            color = np.concatenate([[-1], scenes.labels["color"][i]])
            wide = np.pad(board, 1)
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                other = np.roll(wide, (-down, -right), (0, 1))
                border = (wide != other) & (wide > 0) & (other > 0)
                touching += border.any()
                assert (color[wide[border]] != color[other[border]]).all()
        assert touching > 50 and set(scenes.labels["color"].ravel()) == set(range(6))


SHAPES = (*worlds.KINDS, *worlds.TOYS)


def some_solids() -> World:
    return world("objects", size=64, count=(1, 4), sizes=(0.22, 0.40), shapes=SHAPES)


def alone(shape: str, color: str = "red") -> dict[str, np.ndarray]:
    """Returns the labels of one object in the middle of the floor."""
    labels = {name: np.zeros_like(values[:1]) for name, values in some_solids().labels(1, seed=0).items()}
    labels["present"][0, 0], labels["size"][0, 0] = True, 0.4
    labels["shape"][0, 0], labels["color"][0, 0] = SHAPES.index(shape), worlds.COLORS.index(color)
    labels["light"][0], labels["floor"][0] = (0.0, -1.0), 0.37
    return labels


@pytest.mark.parametrize("name", worlds.TOYS)
def test_a_toy_is_one_object_as_large_as_a_solid(name):
    scenes, box = (some_solids().render(alone(shape), masks=True) for shape in (name, "box"))
    assert scenes.masks is not None and box.masks is not None and set(np.unique(scenes.masks)) == {0, 1}
    area, whole = (scenes.masks > 0).sum(), (box.masks > 0).sum()
    assert 0.25 * whole < area < 1.1 * whole and abs(np.nonzero(scenes.masks[0].any(0))[0].mean() - 31.5) < 1.5


@pytest.mark.parametrize("name", worlds.TOYS)
def test_a_toy_has_its_color_and_colors_of_its_parts(name):
    red, blue = (some_solids().render(alone(name, color), masks=True) for color in ("red", "blue"))
    assert red.masks is not None
    here = red.masks[0] > 0
    np.testing.assert_array_equal(red.masks, blue.masks)
    assert 0.3 < (np.abs(red.images[0].astype(int) - blue.images[0]).max(0) > 30)[here].mean() < 1.0
    assert red.images[0][:, here].max(1)[0] > 150 and worlds.PALETTE[worlds.COLORS.index("red")][0] > 0.8


def test_labels_and_flat_worlds_need_nothing_that_draws(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    for name in ("one-object", "objects", "room"):
        assert ce.get("world", name).labels(2)
    for name in ("sprites", "colored-sprites", "tetris"):
        assert len(ce.get("world", name).draw(2, masks=True)) == 2


def python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs code; what draws is chosen when MuJoCo is imported, once for each process."""
    return run_code(code, folder, **{"MUJOCO_GL": None, "PYOPENGL_PLATFORM": None, **variables})


def needs_mujoco() -> None:
    if importlib.util.find_spec("mujoco") is None:  # without importing it: what draws is chosen by who does
        pytest.skip("MuJoCo is not installed: pip install 'composable-energy-worlds[mujoco]'")


@pytest.mark.full
def test_egl_and_osmesa_draw_the_same(tmp_path):
    needs_mujoco()
    for backend in ("egl", "osmesa"):
        folder = tmp_path / backend
        folder.mkdir()
        done = python(DRAW, folder, MUJOCO_GL=backend)
        if done.returncode == 7:
            pytest.skip(f"{backend} does not draw here: {done.stdout}")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "nothing is said at the end of the process"
    for name in ("one-object", "objects", "room"):
        with np.load(tmp_path / "egl" / f"{name}.npz") as one, np.load(tmp_path / "osmesa" / f"{name}.npz") as other:
            assert np.abs(one["images"].astype(int) - other["images"]).max() <= 2
            for array in one.files:
                if array != "images":
                    np.testing.assert_array_equal(one[array], other[array])


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="MuJoCo draws by itself on other systems")
@pytest.mark.parametrize(
    ("before", "variables", "message"),
    [
        (HIDE.format(hidden={"EGL", "OSMesa"}), {}, "ExtraNotInstalled No backend for off-screen rendering is installed."),
        ("", {"MUJOCO_GL": "rubbish"}, "ExtraNotInstalled MuJoCo cannot render with MUJOCO_GL=rubbish"),
        ("import mujoco\n", {"DISPLAY": "", "WAYLAND_DISPLAY": ""}, "ExtraNotInstalled MuJoCo cannot render with MUJOCO_GL= on linux"),
        ("", {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "egl"}, "ExtraNotInstalled MuJoCo cannot render with MUJOCO_GL=osmesa"),
    ],
    ids=["nothing", "rubbish", "imported before", "contradiction"],
)
def test_the_error_names_the_packages(tmp_path, before, variables, message):
    needs_mujoco()
    told = python(before + ONE, tmp_path, **variables).stdout
    assert told.startswith(message), told
    assert "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri" in told and "apt-get install libosmesa6" in told


@pytest.mark.full
def test_the_error_names_the_extra(tmp_path):
    told = python("import sys\nsys.modules['mujoco'] = None\nimport os\nos.environ['MUJOCO_GL'] = 'egl'\n" + ONE, tmp_path).stdout
    assert told.startswith("ExtraNotInstalled This world needs MuJoCo: `pip install 'composable-energy-worlds[mujoco]'`."), told
