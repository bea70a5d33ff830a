"""`composable-energy render`: pictures of a world in a folder, a contact sheet, and messages for invalid input."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled
from composable_energy_cli import main
from composable_energy_image.commands import render
from composable_energy_image.data import Scenes, open_scenes
from composable_energy_scenes import Tetris

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")


class Unrendered(Tetris):
    def render(self, labels: Mapping[str, np.ndarray], *, masks: bool = False) -> Scenes:
        raise ExtraNotInstalled("This world needs a renderer that is not installed.")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_pictures_labels_and_masks_are_in_the_folder(capsys: pytest.CaptureFixture[str]):
    assert main(["render", "tetris", "-n", "20", "-o", "out/tetris", "--seed", "4", "--size", "28", "--masks"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("out/tetris: 20 pictures of tetris, 3 x 28 x 28, with masks, in ")
    assert "labels: shape, color, cell" in told
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
        assert all(len(colors) == 1 for colors in own)
        assert len(np.unique(np.concatenate(own), axis=0)) == 3


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
    assert told.err.startswith("composable-energy: error: ") and message in told.err
    assert not Path("out").exists()
