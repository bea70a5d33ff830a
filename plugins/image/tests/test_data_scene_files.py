"""Worlds in folders: interrupted rendering gives the same pictures, other worlds and damage are refused; `composable-energy render`."""

import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled, FileFormatError, StorageError
from composable_energy_cli import main
from composable_energy_image.commands import render
from composable_energy_image.data import Field, Scenes, World, open_pictures, open_scenes, render_to, scene_files
from composable_energy_scenes import Tetris
from tests.refusals import refused


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
def small_parts_here(monkeypatch, tmp_path):
    monkeypatch.setattr(scene_files, "PART", 10)
    monkeypatch.chdir(tmp_path)


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
    refused(KeyboardInterrupt, None, render_to, tmp_path, Stopped(), 35, masks=True)
    refused(FileFormatError, "has 20 of 35 pictures: render them with `composable-energy render", open_scenes, tmp_path)
    with (tmp_path / "images.npy").open("ab") as file:
        file.write(b"half of a picture")
    rest = Dots()
    same(render_to(tmp_path, rest, 35, masks=True), Dots().draw(35, masks=True))
    assert rest.rendered == 16  # the first of them only tells how large the files become
    (tmp_path / "world.json").write_text((tmp_path / "world.json").read_text().replace('"done": 35', '"done": 0'))
    (tmp_path / "labels.npz").unlink()  # as if it had stopped at once
    same(render_to(tmp_path, rest, 35, masks=True), Dots().draw(35, masks=True))


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
    refused(FileFormatError, f"holds other pictures: {message}", render_to, tmp_path, world, n, **options)
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
    refused(KeyboardInterrupt, None, render_to, tmp_path, Stopped(), 35, masks=True)
    for finished in (False, True):
        if finished:
            render_to(tmp_path, Dots(), 35, masks=True)
        whole = (tmp_path / name).read_bytes()
        DAMAGE[damage](tmp_path / name)
        if finished or name != "world.json":
            refused(FileFormatError, None, open_scenes, tmp_path)
        refused(FileFormatError, f"(?=.*{name}).*(Delete the folder|holds other)", render_to, tmp_path, Dots(), 35, masks=True)
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).write_bytes(whole)


@pytest.mark.skipif(sys.platform != "linux", reason="a disk that is always full")
def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("composable_energy_image.data.scene_files._IMAGES", "/dev/full")
    refused(StorageError, r"No space left on device.*Free some space", render_to, tmp_path, Dots(), 35)


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
        shape, row = random.integers(2), random.integers(4)
        return {"shape": shape, "row": row, "lit": random.random() < 0.5, "position": random.random(2), "height": random.random()}

    def render(self, labels, *, masks=False):
        return Scenes((40 * self.check_labels(labels)["row"][:, None, None, None] + np.zeros((1, 1, 16, 16))).astype(np.uint8), labels)


def test_classes_become_attributes_with_their_names_and_numbers_are_named(tmp_path):
    scenes = render_to(tmp_path, Solids(), 60)
    (tmp_path / "sheet.png").write_bytes(b"a contact sheet is no picture of the data")
    pictures = open_pictures(tmp_path)
    assert pictures.event_shape == (1, 16, 16)
    names = {name: some.names for name, some in pictures.labels.items()}
    assert names == {"shape": ("cube", "ball", "cone"), "row": ("0", "1", "2", "3"), "lit": ("no", "yes")}
    for name, some in pictures.labels.items():
        assert np.array_equal(some.values.numpy(), scenes.labels[name])
    assert np.array_equal(pictures.pixels[:], scenes.images) and "solids (no classes: position, height)" in pictures.origin
    assert open_pictures(tmp_path, size=8, channels=3, limit=7).event_shape == (3, 8, 8)


class Unrendered(Tetris):
    def render(self, labels: Mapping[str, np.ndarray], *, masks: bool = False) -> Scenes:
        raise ExtraNotInstalled("This world needs a renderer that is not installed.")


def test_pictures_labels_and_masks_are_in_the_folder(capsys: pytest.CaptureFixture[str]):
    assert main(["render", "tetris", "-n", "20", "-o", "out/tetris", "--seed", "4", "--size", "28", "--masks"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("out/tetris: 20 pictures of tetris, 3 x 28 x 28, with masks, in ") and "labels: shape, color, cell" in told
    scenes, drawn = open_scenes(Path("out/tetris")), ce.get("world", "tetris", size=28).draw(20, seed=4, masks=True)
    np.testing.assert_array_equal(scenes.images, drawn.images)
    np.testing.assert_array_equal(scenes.masks, drawn.masks)
    np.testing.assert_array_equal(scenes.labels["cell"], drawn.labels["cell"])
    assert eval(told.splitlines()[-1].strip(), {"open_scenes": open_scenes}).images.shape == (20, 3, 28, 28)


def tiles(path: Path, wide: int, high: int) -> np.ndarray:
    """The tiles of a sheet whose columns are full, with shape (n, high, wide, 3)."""
    sheet = np.asarray(Image.open(path).convert("RGB"))
    rows = [sheet[top : top + high] for top in range(0, len(sheet), high + 2)]
    return np.stack([row[:, left : left + wide] for row in rows for left in range(0, sheet.shape[1], wide + 2)])


def test_the_sheet_shows_each_mask_beside_its_picture():
    assert main(["render", "tetris", "-n", "12", "-o", "out", "--masks", "--quiet"]) == 0
    drawn = ce.get("world", "tetris").draw(12, masks=True)
    assert drawn.masks is not None
    shown = tiles(Path("out") / render.SHEET, 70, 35)
    np.testing.assert_array_equal(shown[:, :, :35], drawn.images.transpose(0, 2, 3, 1))
    for mask, colored in zip(drawn.masks, shown[:, :, 35:], strict=True):
        assert not colored[mask == 0].any()
        own = [np.unique(colored[mask == k], axis=0) for k in (1, 2, 3)]
        assert all(len(colors) == 1 for colors in own) and len(np.unique(np.concatenate(own), axis=0)) == 3


def test_options_of_the_world_can_be_said():
    assert main(["render", "colored-sprites", "-n", "5", "-o", "out", "--option", "count=[1,1]", "--quiet"]) == 0
    assert open_scenes(Path("out")).labels["present"].tolist() == [[True]] * 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tetri", "-n", "3", "-o", "out"], "No plug-in offers the world 'tetri'. Did you mean 'tetris'?"),
        (["tetris", "-n", "3", "-o", "out", "--count", "3"], "got (count)"),
        (["tetris", "-n", "1e12", "-o", "out"], "1,000,000,000,000 pictures need "),
        (["unrendered", "-n", "3", "-o", "out"], "This world needs a renderer"),
        (["tetris", "-n", "3", "-o", "out", "--size", "35", "--option", "size=35"], "size is given twice"),
        (["tetris", "-n", "3", "-o", "."], "holds other files, file, other, and no world.json"),
        (["tetris", "-n", "3", "-o", "other"], "holds other pictures: n 2 instead of 3"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_left_behind(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    Path("file").write_text("")
    assert main(["render", "tetris", "-n", "2", "-o", "other", "--quiet"]) == 0
    with ce.register("world", "unrendered", Unrendered):
        assert main(["render", *words]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith("composable-energy: error: ") and message in told.err and not Path("out").exists()
