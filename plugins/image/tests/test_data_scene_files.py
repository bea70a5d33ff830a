"""Worlds in folders: interrupted rendering gives the same pictures, and other worlds, options and damage are refused."""

import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from composable_energy.errors import FileFormatError, StorageError
from composable_energy_image.data import Field, Scenes, World, open_pictures, open_scenes, render_to, scene_files


class Dots(World):
    """One bright pixel."""

    name = "dots"
    channels = 1

    def __init__(self, size: int = 8, corner: bool = False) -> None:
        self.size, self.corner, self.rendered = size, corner, 0
        self.fields = {"where": Field((2,), "int64", "row and column")}

    def sample_labels(self, random):
        return {"where": random.integers(2 if self.corner else self.size, size=2)}

    def render(self, labels, *, masks=False):
        where = self.check_labels(labels)["where"]
        n = len(where)
        self.rendered += n
        found = np.zeros((n, self.size, self.size), np.uint8)
        found[np.arange(n), where[:, 0], where[:, 1]] = 1
        return Scenes(200 * found[:, None], {"where": where}, found if masks else None)


class Hidden(Dots):
    """Says of itself what it is not."""

    options = {"size": 8}

    def sample_labels(self, random):
        return {"where": (0, 0)}


class Stopped(Dots):
    """Stops in the third part."""

    def render(self, labels, *, masks=False):
        if self.rendered >= 20:
            raise KeyboardInterrupt
        return super().render(labels, masks=masks)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(scene_files, "PART", 10)


def same(scenes: Scenes, other: Scenes) -> None:
    np.testing.assert_array_equal(scenes.images, other.images)
    np.testing.assert_array_equal(scenes.labels["where"], other.labels["where"])
    np.testing.assert_array_equal(scenes.masks, other.masks)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("n", [0, 35])
@pytest.mark.parametrize("masks", [False, True])
def test_a_folder_holds_what_the_world_draws(tmp_path, n, masks):
    drawn = render_to(tmp_path / "new" / "dots", Dots(), n, seed=3, masks=masks)
    same(drawn, Dots().draw(n, 3, masks=masks))
    same(drawn, open_scenes(tmp_path / "new" / "dots"))
    assert len(drawn) == n and drawn.images.dtype == np.uint8
    assert n == 0 or isinstance(drawn.images, np.memmap)
    again = Dots()
    same(render_to(tmp_path / "new" / "dots", again, n, seed=3, masks=masks), drawn)
    assert again.rendered == 0


def test_drawing_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        render_to(tmp_path, Stopped(), 35, masks=True)
    with pytest.raises(FileFormatError, match="has 20 of 35 pictures: render them with `composable-energy render"):
        open_scenes(tmp_path)
    with (tmp_path / "images.npy").open("ab") as file:
        file.write(b"half of a picture")
    rest = Dots()
    same(render_to(tmp_path, rest, 35, masks=True), Dots().draw(35, masks=True))
    assert rest.rendered == 16  # the first of them only tells how large the files become


@pytest.mark.parametrize(
    ("world", "n", "options", "message"),
    [
        (Dots(), 36, {}, "n 35 instead of 36"),
        (Dots(), 35, {"seed": 1}, "seed 0 instead of 1"),
        (Dots(), 35, {"masks": True}, "masks False instead of True"),
        (Dots(9), 35, {}, "size 8 instead of 9"),
        (Dots(corner=True), 35, {}, "corner False instead of True"),
        (Hidden(), 35, {}, "the labels differ, so the world is another"),
    ],
)
def test_other_pictures_are_left_alone(tmp_path, world, n, options, message):
    render_to(tmp_path, Dots(), 35)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileFormatError, match=f"holds other pictures: {message}"):
        render_to(tmp_path, world, n, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("where", bytes(35))


DAMAGE = {
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "an archive": archive,
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "labels.npz", "world.json"])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_damaged_files_are_reported_and_not_gone_on_with(tmp_path, name, damage):
    with pytest.raises(KeyboardInterrupt):
        render_to(tmp_path, Stopped(), 35, masks=True)
    for finished in (False, True):
        if finished:
            render_to(tmp_path, Dots(), 35, masks=True)
        whole = (tmp_path / name).read_bytes()
        DAMAGE[damage](tmp_path / name)
        if finished or name != "world.json":
            with pytest.raises(FileFormatError):
                open_scenes(tmp_path)
        if (name, damage) == ("world.json", "missing"):  # then there is nothing that vouches for anything, and all is drawn anew
            same(render_to(tmp_path, Dots(), 35, masks=True), Dots().draw(35, masks=True))
            continue
        with pytest.raises(FileFormatError, match=f"{name}.*(Delete the folder|holds other)"):
            render_to(tmp_path, Dots(), 35, masks=True)
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).write_bytes(whole)


@pytest.mark.skipif(sys.platform != "linux", reason="a disk that is always full")
def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    (tmp_path / "images.npy").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"No space left on device.*Free some space"):
        render_to(tmp_path, Dots(), 35)


class Solids(World):
    """A grey square, with a label of each kind."""

    name = "solids"
    channels = 1
    size = 16
    fields = {
        "shape": Field((), "int64", "shape", ("cube", "ball", "cone")),
        "row": Field((), "int64", "row"),
        "lit": Field((), "bool", "whether there is light"),
        "position": Field((2,), "float32", "position"),
        "height": Field((), "float32", "height"),
    }

    def sample_labels(self, random):
        return {
            "shape": random.integers(2),
            "row": random.integers(4),
            "lit": random.random() < 0.5,
            "position": random.random(2),
            "height": random.random(),
        }

    def render(self, labels, *, masks=False):
        row = self.check_labels(labels)["row"]
        return Scenes((40 * row[:, None, None, None] + np.zeros((1, 1, 16, 16))).astype(np.uint8), labels)


class TestAsPictures:
    def test_classes_become_attributes_with_their_names_and_numbers_are_named(self, tmp_path):
        scenes = render_to(tmp_path, Solids(), 60)
        (tmp_path / "sheet.png").write_bytes(b"a contact sheet is no picture of the data")
        pictures = open_pictures(tmp_path)
        assert pictures.event_shape == (1, 16, 16)
        assert {name: some.names for name, some in pictures.labels.items()} == {
            "shape": ("cube", "ball", "cone"),
            "row": ("0", "1", "2", "3"),
            "lit": ("no", "yes"),
        }
        for name, some in pictures.labels.items():
            assert np.array_equal(some.values.numpy(), scenes.labels[name])
        assert np.array_equal(pictures.pixels[:], scenes.images)
        assert "solids (no classes: position, height)" in pictures.origin
        assert open_pictures(tmp_path, size=8, channels=3, limit=7).event_shape == (3, 8, 8)
