"""`composable-energy render`: pictures of a world in a folder, a contact sheet, and messages for invalid input."""

from __future__ import annotations

import io
import json
import sys
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


def test_the_sheet_shows_the_first_pictures():
    assert main(["render", "sprites", "-n", "70", "-o", "out", "--quiet"]) == 0
    drawn = ce.get("world", "sprites").draw(64).images
    np.testing.assert_array_equal(tiles(Path("out") / render.SHEET, 64, 64), drawn.transpose(0, 2, 3, 1).repeat(3, 3))


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


def test_json_tells_what_there_is(capsys: pytest.CaptureFixture[str]):
    assert main(["render", "sprites", "-n", "0", "-o", "out", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["world"], told["folder"], told["n"]) == ("sprites", "out", 0)
    assert told["labels"] == {"shape": [], "scale": [], "orientation": [2], "position": [2]}
    assert not (Path("out") / render.SHEET).exists()


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]):
    assert main(["render", "tetris", "-n", "2", "-o", "out", "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(["render", "tetris", "-n", "3", "-o", "out"]) == 0
    assert "3/3" in sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("composable_energy_image.data.render_to", interrupted)
    assert main(["render", "tetris", "-n", "3", "-o", "out"]) == 130
    assert "the same command resumes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tetri", "-n", "3", "-o", "out"], "No plug-in offers the world 'tetri'. Did you mean 'tetris'?"),
        (["tetris", "-n", "3", "-o", "out", "--size", "36"], "multiple of the number of cells, 5 or more; got 36 pixels"),
        (["tetris", "-n", "3", "-o", "out", "--option", "count=3"], "got (count)"),
        (["tetris", "-n", "3", "-o", "out", "--count", "3"], "got (count)"),
        (["tetris", "-n", "1e12", "-o", "out"], "1,000,000,000,000 pictures need "),
        (["unrendered", "-n", "3", "-o", "out"], "This world needs a renderer"),
        (["tetris", "-n", "3", "-o", "out", "--size", "35", "--option", "size=35"], "An option is given twice"),
        (["tetris", "-n", "3", "-o", "file"], "-o file is a file; give a folder"),
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tetris", "-o", "out"], "required: -n"),
        (["tetris", "-n", "2"], "required: -o"),
        (["tetris", "-n", "two", "-o", "out"], "argument -n: takes a whole number of at least 0, got 'two'"),
        (["tetris", "-n", "-3", "-o", "out"], "argument -n: takes a whole number of at least 0, got '-3'"),
        (["tetris", "-n", "3", "-o", "out", "--seed", "-1"], "argument --seed: takes a whole number of at least 0, got '-1'"),
        (["tetris", "-n", "2", "-o", "out", "--option", "count"], "written NAME=VALUE, got 'count'"),
    ],
)
def test_mistakes_in_the_arguments(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["render", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_plugins_lists_the_worlds(capsys: pytest.CaptureFixture[str]):
    assert main(["plugins"]) == 0
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("worlds")]
    assert {name for _, name in rows} >= {"colored-sprites", "objects", "one-object", "room", "sprites", "tetris"}


@pytest.mark.slow
def test_what_it_renders_is_trained_on_and_the_log_of_a_file_has_the_precision(capsys: pytest.CaptureFixture[str]):
    assert main(["render", "one-object", "-n", "6", "-o", "out", "--quiet"]) == 0
    small = [
        "model.width=4",
        "model.labels=3",
        "chains.steps=2",
        "objective.buffer=8",
        "training.batch_size=4",
        "data.size=32",
        "model.size=32",
    ]
    words = [word for change in small for word in ("--set", change)]
    assert main(["train", "--recipe", "compositional-scenes", "--data", "out", "--out", "run", "--steps", "2", *words]) == 0
    assert "float32 on cpu" in capsys.readouterr().err
    energy = ce.load("run/energy").given(y=2)
    assert energy.sample(1, seed=0, steps=2).shape == (1, 3, 32, 32)


def test_the_folder_is_printed_with_escapes(capsys: pytest.CaptureFixture[str]):
    assert main(["render", "tetris", "-n", "1", "-o", "o\x1b[2Jut"]) == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err and r"o\x1b[2Jut" in shown.out
