"""`composable-energy train` and `recipes`: from pictures on disk to samples, and messages for invalid input."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import composable_energy as ce
from composable_energy_cli import main
from composable_energy_cli.names import build_energy
from composable_energy_faces.draw import ATTRIBUTES, draw
from composable_energy_training import Recipe

# Small enough for seconds: the network, its pictures, and the run.
SMALL = ["data.size=16", "model.size=16", "model.width=4", "chains.steps=2", "objective.buffer=16", "training.batch_size=4"]


def train(*words: str, recipe: str = "cd-small", out: str = "out", changes: list[str] = SMALL) -> int:
    said = {word.partition("=")[0] for word in words}
    own = [word for change in changes if change.partition("=")[0] not in said for word in ("--set", change)]
    return main(["train", "--recipe", recipe, "--data", "faces", "--out", out, *own, *words])


@pytest.fixture(autouse=True)
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve drawn faces as a user would have them: pictures and a table."""
    monkeypatch.chdir(tmp_path)
    folder, drawn = Path("faces"), draw(12, size=16)
    folder.mkdir()
    lines = ["file," + ",".join(ATTRIBUTES)]
    for i, (image, attributes) in enumerate(zip(drawn.images, drawn.attributes.tolist(), strict=True)):
        Image.fromarray(image.permute(1, 2, 0).mul(255).round().byte().numpy()).save(folder / f"{i}.png")
        lines.append(f"{i}.png," + ",".join(map(str, attributes)))
    (folder / "attributes.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_faces_in_a_folder_become_an_energy_that_is_drawn_from(capsys: pytest.CaptureFixture[str]):
    assert train("--steps", "3", "--seed", "1") == 0
    told = capsys.readouterr().out
    assert told.startswith("out/energy: cd-small in ")
    energy = ce.load("out/energy")
    assert energy.recommended == ce.Recommendation("langevin", {"step_size": 20.0, "temperature": 1.25e-6, "clamp": [0.0, 1.0]})
    draws = energy.sample(2, steps=2, seed=0)
    assert draws.shape == (2, 3, 16, 16) and 0 <= draws.min() < draws.max() <= 1
    assert main([*shlex.split(told.splitlines()[-1])[1:], "-n", "2", "--steps", "2", "-o", "draws.png"]) == 0
    assert Path("draws.png").is_file()


@pytest.mark.full
def test_the_same_command_goes_on_and_ends_as_if_nothing_had_happened():
    assert train("--steps", "2") == 0 and train("--steps", "4") == 0 and train("--steps", "4", out="whole") == 0
    x = torch.rand(3, 3, 16, 16)
    assert torch.equal(ce.load("out/energy")(x), ce.load("whole/energy")(x)) and not torch.equal(ce.load("out/energy")(x), torch.zeros(3))


def test_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(*_: object, **__: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("composable_energy_image.EnergyRecipe.run", interrupted)
    assert train("--steps", "1") == 130 and "the same command resumes from it" in capsys.readouterr().err


def test_the_command_that_is_shown_joins_no_values_of_one_attribute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(self: Recipe, data: Path, out: Path, **_: object) -> Path:
        for name in ("base", "hair=black", "hair=red", "not bald"):
            ce.load("plane/ring").save(out / name)
        return out

    monkeypatch.setattr("composable_energy_image.EnergyRecipe.run", run)
    assert train() == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[2:] == ["hair=red & 'not bald'", "--in", "./out"] and build_energy(words[2], words[4]).conditions == set()


@pytest.mark.full
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "mine.toml"], "There is no file"),
        (["--data", "empty"], "holds no pictures"),
        (["--out", "faces/0.png"], "is a file; give a folder"),
        (["--out", "./faces/"], "is the folder of the pictures"),
        (["--set", "optimizer.raet=1e-3"], "no setting 'optimizer.raet'. Did you mean 'optimizer.rate'? Known: optimizer.rate, "),
        (["--set", "optimiser.rat=1e-3"], "Did you mean 'optimizer'? Known: augmentation, chains, data"),
        (["--set", "data.labels=nowhere.csv"], "error: data.labels: there is no file 'nowhere.csv'; it names the CSV of attributes"),
        (["--data", "plain", "--set", "objective.condition=male"], "a CSV with the columns `file` and `male` to the folder, or name one"),
        (["--set", "objective.name=contrastive"], "'contrastive'. Did you mean 'noise-contrastive' or 'contrastive-divergence'"),
        (["--set", "model.size=0"], "size must be a whole number of at least 1"),
        (["--set", "objective.condition=smiling"], "smiling has 2 values, model.labels is None: set model.labels=2"),
        (["--set", "model.labels=2"], "no attribute is named: set objective.condition"),
        (["--seed", "1", "--set", "training.seed=2"], "training.seed is given twice"),
        (["--labels", "nowhere.csv"], "error: --labels: there is no file 'nowhere.csv'; it names the CSV of attributes"),
        (["--device", "tpu9"], "There is no device 'tpu9'; this machine has cpu"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_left_behind(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    Path("empty").mkdir()
    Path("plain").mkdir()
    shutil.copy("faces/0.png", "plain/0.png")
    assert train(*words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    *log, error = told.err.splitlines()  # the trainer may have said what it was about to do
    assert len(log) <= 1 and error.startswith("composable-energy: error: ") and message in error and not Path("out/energy").exists()


def test_recipes_lists_them_with_needs_and_costs(capsys: pytest.CaptureFixture[str]):
    assert main(["recipes"]) == 0
    told = capsys.readouterr().out
    assert {"cd-small", "igebm-cifar10", "jem-cifar10"} <= set(told.splitlines())
    assert "  needs: CIFAR-10 (binary version) and a GPU" in told.splitlines()

    def broken() -> Recipe:
        raise RuntimeError("no good")

    with ce.register("recipe", "broken", broken):
        assert main(["recipes", "--json"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert "no good" in rows["broken"]["error"] and rows["cd-small"].keys() == {"name", "about", "source", "needs", "cost"}
        assert main(["recipes"]) == 0 and "broken  failed: " in capsys.readouterr().out


def test_recipes_shows_the_file_of_one(capsys: pytest.CaptureFixture[str]):
    assert main(["recipes", "igebm-cifar10"]) == 0
    told = capsys.readouterr().out
    assert "step = 10.0              # x - step * gradient" in told
    Path("shown.toml").write_text(told)
    assert main(["recipes", "shown.toml", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert main(["recipes", "igebm-cifar10", "--json"]) == 0
    assert shown["settings"] == json.loads(capsys.readouterr().out)["settings"] and shown["settings"]["optimizer"]["milestones"] == []
