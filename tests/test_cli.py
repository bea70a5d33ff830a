"""The command line: each command, each mistake with its message and exit code."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import composable_energy as ce
from composable_energy.cli import main, sample
from composable_energy.cli.pictures import read_points
from composable_energy.errors import ExpressionError, FileFormatError, PluginLoadError, ShapeError
from composable_energy.grids import layout, write_grid
from tests.strangers import install


class Tiles(torch.nn.Module):
    """Four numbers to a picture of 16 x 16 in quarters, and back."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        quarters = torch.sigmoid(z).view(-1, 1, 2, 2)
        return quarters.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.logit(x[:, 0, 4::8, 4::8].flatten(1).clamp(0.001, 0.999))


class AnyTiles(ce.Energy):
    """The base of the toys."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Tiles()
        self.name = "toys"
        self.event_shape = torch.Size([4])
        self.recommended = ce.Recommendation("langevin", {"step_size": 0.2})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().sum(1) / 2


class Noisy(ce.Energy):
    def __init__(self) -> None:
        super().__init__()
        self.event_shape = torch.Size([2])
        self.name = "noisy"

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x.square().sum(1) / (2 * (1 + torch.as_tensor(sigma) ** 2))


def corners(x: torch.Tensor) -> torch.Tensor:
    return 3 * x[:, :2]


class Toys(ce.EnergyFamily):
    loaded: list[str | None] = []

    def __init__(self) -> None:
        self.base = AnyTiles()

    def members(self) -> tuple[str, ...]:
        return ("bright", "left=dark", "plane", "noisy", "shapeless")

    def load(self, member: str | None) -> ce.Energy:
        self.loaded.append(member)
        if member == "noisy":
            return Noisy()
        if member == "plane":
            return ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0), name="plane")
        if member == "shapeless":
            return ce.as_energy(lambda x: x.square().flatten(1).sum(1), name="shapeless")
        if member is None:
            return self.base
        column = self.members().index(member)
        return ce.ClassifierEnergy(corners, 1, self.base, columns=slice(column, column + 1), name=member)


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Toys.loaded.clear()
    with ce.register("energy", "toys", Toys):
        yield


def run(*arguments: str) -> int:
    return main(arguments)


def python(*arguments: str, **options) -> subprocess.Popen[str]:
    """Starts the command in a process of its own, with this process's path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "composable_energy", *arguments]
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, **options)


# sample -------------------------------------------------------------------------------------------------------------------------------


def test_sample_writes_a_sheet_and_shows_the_terms(capsys: pytest.CaptureFixture[str]):
    assert run("sample", "bright & ~left=dark", "--in", "toys", "-n", "6", "--seed", "1", "--steps", "5", "-o", "grid.png") == 0
    out, err = capsys.readouterr()
    first, _, header, *rows = out.splitlines()
    assert (
        first.startswith("grid.png: 6 draws of bright & ~left=dark in ")
        and "Langevin(step_size=0.2" in first
        and first.endswith(", seed 1")
    )
    assert header.split() == ["energy", "of", "mean", "lowest", "highest"]
    assert rows[0].startswith("bright & ~left=dark  ")
    assert [row.split()[0] for row in rows[1:]] == ["toys", "bright", "~left=dark", "left=dark"]
    assert err == ""
    with Image.open("grid.png") as sheet:
        assert sheet.size == (3 * 16 + 4, 2 * 16 + 2)


def test_same_seed_draws_the_same_and_the_sheet_reads_back():
    for name in ("a.npy", "b.npy", "c.png"):
        assert run("sample", "toys/bright", "--seed", "7", "--steps", "3", "-n", "5", "-o", name) == 0
    assert run("sample", "toys/bright", "--seed", "8", "--steps", "3", "-n", "5", "-o", "d.npz") == 0
    a, b, d = np.load("a.npy"), np.load("b.npy"), np.load("d.npz")["samples"]
    assert a.shape == d.shape == (5, 3, 16, 16)
    assert (a == b).all() and not (a == d).all()
    tiles = read_points(Path("c.png"), [(3, 16, 16)], (0.0, 1.0))
    assert np.abs(tiles.numpy() - a).max() <= 0.5 / 255 + 1e-6


def test_sample_goes_on_from_a_checkpoint(capsys: pytest.CaptureFixture[str]):
    command = ["sample", "toys/bright", "--steps", "6", "-n", "3", "--checkpoint", "run.safetensors", "--option", "step_size=0.1"]
    command += ["--sampler", "langevin"]
    assert run(*command, "-o", "a.npy") == run(*command, "-o", "b.npy") == 0  # no seed: that of the file
    assert (np.load("a.npy") == np.load("b.npy")).all()
    assert run(*command, "--seed", "1", "-o", "c.npy") == 2
    assert "belongs to another call (seed was" in capsys.readouterr().err and not Path("c.npy").exists()


def test_sample_prints_json(capsys: pytest.CaptureFixture[str]):
    options = ["--option", "step_size=0.1", "--option", "temperature=0.5", "--best-of", "2", "--sharpen", "2", "--batch-size", "3"]
    assert run("sample", "bright | toys", "--in", "toys", "-n", "4", "--sampler", "langevin", "--steps", "4", "--json", *options) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == "samples.png" and Path("samples.png").is_file()
    assert told["expression"] == "(bright | toys).sharpened(2)"
    assert (told["n"], told["steps"], told["best_of"]) == (4, 4, 2)
    assert told["sampler"].startswith("Langevin(step_size=0.1, temperature=0.5")
    assert isinstance(told["seed"], int) and told["seconds"] > 0
    whole, *terms = told["terms"]
    assert whole["depth"] == 0 and len(whole["energy"]) == 4
    assert whole["mean"] == pytest.approx(sum(whole["energy"]) / 4)
    assert {term["depth"] for term in terms} == {1, 2}


def test_points_without_pictures_go_to_an_array(capsys: pytest.CaptureFixture[str]):
    assert run("sample", "plane", "--in", "toys", "--sampler", "langevin", "--option", "step_size=.1", "--steps", "2", "-o", "x.npy") == 0
    assert np.load("x.npy").shape == (16, 2)
    assert run("sample", "plane", "--in", "toys", "-o", "x.png") == 2
    assert "Draws of shape (2,) are not images; write them to a file that ends in .npy or .npz." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["bright smiling"],
            "Expected an operator, found `smiling`; join two terms by `&` or `|`, a weight and a term by `*`.\n  bri",
        ),
        (["bright & left=drak"], "Unknown name `left=drak`; did you mean `left=dark`?\n  bright & left=drak\n           ^^^^^^^^^\n"),
        (["toys/brigt"], "Unknown name `toys/brigt`; did you mean `toys/bright`"),
        (["toyz/bright"], "Unknown name `toyz/bright`; did you mean `toys/bright`"),
        (["bright/2"], "Unknown name `bright/2`; a division has spaces around it: `bright / 2`."),
        (["./nowhere"], "Unknown name `./nowhere`: there is no such folder."),
        (["bright & ~bright"], "No point fulfils bright & ~bright"),
        (["bright", "--in", "toyz"], "No plug-in offers the energy 'toyz'. Did you mean 'toys'?"),
        (["bright", "-n", "0"], "shape is a positive number of points or (n, *shape), all positive, got 0."),
        (["bright", "--sampler", "langevine"], "No plug-in offers the sampler 'langevine'. Did you mean 'langevin'?"),
        (["bright", "--option", "step=2"], "langevin has no option step; it takes step_size"),
        (["bright", "--option", "seed=2"], "--option seed: write --seed instead."),
        (["bright", "--option", "init=2"], "--option init: this option works in Python only."),
        (["bright", "--option", "clamp=2", "--option", "clamp=3"], "--option: each name may be given once."),
        (["bright", "--option", "step_size=big"], "step_size"),
        (["bright", "--steps", "0"], "steps must be at least 1, got 0."),
        (["bright", "--best-of", "0"], "best_of must be at least 1, got 0."),
        (["bright", "-o", "a.gif"], "-o takes a file that ends in .png, .jpg, .jpeg, .webp, .npy, .npz, got 'a.gif'."),
        (["bright", "-o", "no/a.png"], "-o no/a.png: there is no folder 'no'."),
        (["bright", "--range", "1", "0"], "--range takes two increasing numbers, such as -1 1, got 1 0."),
        (["bright", "--sigma", "0.1"], "bright does not depend on a noise level; leave out --sigma."),
        (["noisy", "--sigma", "-1", "-o", "a.npy"], "--sigma must be a positive number, got -1.0."),
        (["shapeless", "-o", "a.npy"], "shapeless does not say the shape of its points"),
        (["~plane", "-o", "a.npy"], "~plane has no lower bound"),
    ],
)
def test_mistakes_in_sample(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with_family = arguments if "--in" in arguments else [*arguments, "--in", "toys"]
    assert run("sample", *with_family) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("composable-energy: error: ") and "Traceback" not in err
    assert message in err
    assert not list(Path().iterdir())  # nothing was written


def test_a_typo_shows_before_any_weights_are_read(capsys: pytest.CaptureFixture[str]):
    assert run("sample", "bright & nothing", "--in", "toys") == 2
    assert Toys.loaded == []
    capsys.readouterr()


def test_one_name_is_one_energy():
    """Else `A | ~A` would be two events."""
    assert run("sample", "bright | ~toys/bright", "--in", "toys", "--steps", "1") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["smaple"], "invalid choice: 'smaple'"),
        (["sample"], "the following arguments are required: EXPR"),
        (["sample", "a", "-n", "many"], "invalid int value: 'many'"),
        (["sample", "a", "--option", "step"], "an option is written NAME=VALUE, got 'step'"),
        (["sample", "a", "--range", "1"], "argument --range: expected 2 arguments"),
    ],
)
def test_mistakes_in_the_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_values_of_options_are_numbers_words_or_truths():
    read = [sample._value(text) for text in ("3", "-0.5", "1e-3", "true", "None", "cosine")]
    assert read == [3, -0.5, 0.001, True, None, "cosine"] and isinstance(read[0], int)


def test_saved_folder_stands_in_an_expression(capsys: pytest.CaptureFixture[str]):
    """With the energies that it was made of, too: they share their base and decoder."""
    for folder in ("saved", "with space"):
        (ce.get_energy("toys/bright") & ~ce.get_energy("toys/left=dark")).save(folder)
    for name in ("./saved", "saved", f"'{Path('with space').absolute()}'"):
        assert run("sample", f"{name} | toys/left=dark", "--steps", "1", "--json") == 0
        assert json.loads(capsys.readouterr().out)["expression"] == "bright & ~left=dark | left=dark"
    assert run("sample", "./savd") == 2
    assert "Unknown name `./savd`; did you mean `./saved`?" in capsys.readouterr().err
    assert run("sample", "./nowhere") == 2
    assert "Unknown name `./nowhere`: there is no such folder." in capsys.readouterr().err
    Path("saved", "config.json").write_text("{")
    assert run("sample", "./saved") == 2
    assert capsys.readouterr().err.startswith("composable-energy: error: ")


def test_other_formats_and_ranges():
    assert run("sample", "toys", "--steps", "1", "-n", "3", "-o", "a.jpg", "--range", "-1", "1") == 0
    with Image.open("a.jpg") as sheet:
        assert sheet.size == (2 * 16 + 2, 2 * 16 + 2)
        assert all(dark >= 110 for dark, _ in sheet.getextrema())  # values from 0 up are the lighter half


def test_a_folder_is_no_file(capsys: pytest.CaptureFixture[str]):
    Path("sheets.png").mkdir()
    assert run("sample", "toys", "-o", "sheets.png") == 2
    assert "-o sheets.png is a folder; name a file." in capsys.readouterr().err


def test_draws_that_diverge_are_told(capsys: pytest.CaptureFixture[str]):
    """Energies that are not a number to the right of 1: some chains get there, and --option reaches the driver."""
    cliff = ce.as_energy(lambda x: torch.where(x < 1, x.square(), torch.nan).sum(1), name="cliff", event_shape=(1,))
    arguments = ["cliff", "-n", "64", "--seed", "0", "--steps", "20", "--sampler", "langevin", "--option", "step_size=.5", "-o", "x.npy"]
    with ce.register("energy", "cliff", lambda: cliff):
        assert run("sample", *arguments) == 2
        assert "reached a non-finite point, energy or gradient of cliff" in capsys.readouterr().err
        assert run("sample", *arguments, "--option", "on_divergence=drop") == 0
    count = len(np.load("x.npy"))
    assert 0 < count < 64
    assert f"x.npy: {count} draws (of 64; the others diverged) of cliff in" in capsys.readouterr().out


def test_no_text_of_an_expression_gives_a_traceback(capsys: pytest.CaptureFixture[str]):
    draw = random.Random(0)
    words = ["bright", "left=dark", "toys", "plane", "2", "-1", "&", "|", "~", ">>", "*", "/", "(", ")", "'", "x.y", "$"]
    options = ["--in", "toys", "--steps", "1", "-n", "1", "-o", "x.npy", "--sampler", "langevin", "--option", "step_size=.1"]
    codes = [run("sample", *options, "--", " ".join(draw.choices(words, k=draw.randint(1, 8)))) for _ in range(200)]
    assert set(codes) == {0, 2}
    capsys.readouterr()


def test_default_family_that_fails_is_told_only_where_it_is_needed(capsys: pytest.CaptureFixture[str]):
    with ce.register("energy", "faces", Unmade):
        assert run("sample", "toys/bright", "--steps", "1") == 0
        assert run("sample", "male & toys/bright") == 2
    assert "making it raised OSError: unwritten weights" in capsys.readouterr().err


def test_single_energy_has_no_members(capsys: pytest.CaptureFixture[str]):
    with ce.register("energy", "bowl", Noisy):
        assert run("sample", "bowl/2", "--in", "toys") == 2
        assert "Unknown name `bowl/2`; a division has spaces around it: `bowl / 2`." in capsys.readouterr().err
        assert run("sample", "bright", "--in", "bowl") == 2
        assert "'bowl' is not a family and has no members." in capsys.readouterr().err


# explain ------------------------------------------------------------------------------------------------------------------------------


def test_explain_resizes_pictures_and_shows_shares(capsys: pytest.CaptureFixture[str]):
    Image.new("L", (40, 30), 240).save("light.png")
    Image.new("RGB", (5, 9), "black").save("dark.png")
    assert run("explain", "bright | (left=dark & toys)", "light.png", "dark.png", "--in", "toys") == 0
    header, *_, last = capsys.readouterr().out.splitlines()
    assert last.split()[0] == "toys"
    assert header.split() == ["energy", "of", "light.png", "dark.png", "share"]
    assert run("explain", "bright", "light.png", "dark.png", "--in", "toys", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["points"] == ["light.png", "dark.png"]
    name = {term["expression"]: term["energy"] for term in told["terms"][1:]}
    light = torch.full((1, 3, 16, 16), 240 / 255)
    expected = Toys().load("bright").explain(light).terms[1].energy.item()
    assert name["bright"][0] == pytest.approx(expected, abs=1e-5)
    assert name["bright"][1] > name["bright"][0] + 1


def test_explain_takes_a_sheet_apart_and_sums_up_many(capsys: pytest.CaptureFixture[str]):
    images = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    write_grid(Path("sheet.png"), images, (0.0, 1.0), {})
    np.save("images.npy", (images * 255).round().numpy() / 255)
    told = []
    for name in ("sheet.png", "images.npy"):
        assert run("explain", "bright", name, "--in", "toys", "--json") == 0
        told.append(json.loads(capsys.readouterr().out)["terms"][0]["energy"])
    assert len(told[0]) == 7
    assert told[0] == pytest.approx(told[1], abs=1e-5)
    assert run("explain", "bright", "sheet.png", "--in", "toys") == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["energy", "of", "mean", "lowest", "highest"]


def test_explain_takes_latents_and_noise_levels(capsys: pytest.CaptureFixture[str]):
    np.save("one.npy", np.zeros(4))
    np.save("two.npy", np.ones((1, 2)))
    assert run("explain", "toys", "one.npy", "--json") == 0
    assert json.loads(capsys.readouterr().out)["terms"][0]["energy"] == [0.0]
    for options, sigma in ([], 0.05), (["--sigma", "2"], 2.0):
        assert run("explain", "toys/noisy", "two.npy", "--json", *options) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["expression"] == f"noisy.at({sigma:g})"
        assert told["terms"][0]["energy"] == pytest.approx([1 / (1 + sigma**2)])


def test_infinite_energies_are_null_in_json(capsys: pytest.CaptureFixture[str]):
    uniform = ce.as_energy(torch.distributions.Uniform(torch.zeros(2), 1.0), name="box")
    np.save("outside.npy", np.full(2, 9.0))
    with ce.register("energy", "box", lambda: uniform):
        assert run("explain", "box", "outside.npy", "--json") == 0
    assert json.loads(capsys.readouterr().out)["terms"][0]["energy"] == [None]


@pytest.mark.parametrize(
    ("expression", "name", "message"),
    [
        ("bright", "missing.png", "There is no file 'missing.png'."),
        ("bright", "text.png", "text.png cannot be read as an image"),
        ("bright", "text.npy", "text.npy is not an array of numbers"),
        ("bright", "pickled.npy", "pickled.npy is not an array of numbers"),
        ("bright", "five.npy", "five.npy has points of shape (5,); the energy takes (n, 3, 16, 16) or (n, 4)."),
        ("plane", "grey.png", "grey.png is an image, and the energy takes points of shape (2,); give them as an .npy file."),
        ("shapeless", "grey.png", "shapeless has no event_shape, so no points can be read for it."),
    ],
)
def test_mistakes_in_files(expression: str, name: str, message: str, capsys: pytest.CaptureFixture[str]):
    Path("text.png").write_text("no picture")
    Path("text.npy").write_text("no array")
    np.save("pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save("five.npy", np.zeros(5))
    Image.new("L", (4, 4)).save("grey.png")
    assert run("explain", expression, name, "--in", "toys") == 2
    assert f"composable-energy: error: {message}" in capsys.readouterr().err


def test_pictures_and_latents_do_not_mix(capsys: pytest.CaptureFixture[str]):
    np.save("latent.npy", np.zeros(4))
    Image.new("L", (4, 4)).save("grey.png")
    assert run("explain", "toys", "latent.npy", "grey.png") == 2
    assert "latent.npy and grey.png have points of different shapes" in capsys.readouterr().err


# pictures -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "expected"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (7, (3, 3)), (8, (2, 4)), (16, (4, 4)), (999, (27, 37))]
)
def test_layout_is_near_square(n: int, expected: tuple[int, int]):
    assert layout(n) == expected


def test_layout_holds_all_and_wastes_less_than_a_row():
    for n in range(1, 500):
        rows, columns = layout(n)
        assert rows * columns - columns < n <= rows * columns
        assert columns <= 2 * rows


def test_sheet_holds_each_picture_once_in_order():
    shades = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 1, 4, 4)
    write_grid(Path("shades.png"), shades, (-1.0, 1.0), {})
    with Image.open("shades.png") as sheet:
        seen = [sheet.convert("L").getpixel((i % 3 * 6 + 1, i // 3 * 6 + 1)) for i in range(6)]
    assert seen == [0, 64, 128, 191, 255, 255]  # the last place is empty
    assert torch.allclose(read_points(Path("shades.png"), [(1, 4, 4)], (-1.0, 1.0)).float(), shades, atol=1 / 255)


def test_sheet_that_was_cut_is_one_picture():
    write_grid(Path("sheet.png"), torch.rand(4, 3, 8, 8), (0.0, 1.0), {})
    with Image.open("sheet.png") as sheet:
        from PIL.PngImagePlugin import PngInfo

        text = PngInfo()
        text.add_text("composable-energy", sheet.info["composable-energy"])
        sheet.crop((0, 0, 10, 10)).save("cut.png", pnginfo=text)
        lying = PngInfo()
        lying.add_text("composable-energy", json.dumps({"n": 10**15, "columns": 1, "height": 1, "width": 1, "gap": 0}))
        sheet.save("lying.png", pnginfo=lying)
    for name in ("cut.png", "lying.png"):
        assert read_points(Path(name), [(3, 8, 8)], (0.0, 1.0)).shape == (1, 3, 8, 8)


def test_grey_pictures_of_16_bits_are_scaled():
    values = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
    Image.fromarray(values).save("bits8.png")
    Image.fromarray(values.astype(np.uint16) * 257).save("bits16.png")
    for shape in ((1, 8, 8), (3, 8, 8)):
        assert torch.equal(*(read_points(Path(name), [shape], (0.0, 1.0)) for name in ("bits8.png", "bits16.png")))


def test_reading_says_what_is_wrong():
    with pytest.raises(FileFormatError, match="There is no file"):
        read_points(Path("nothing.npy"), [(2,)], (0.0, 1.0))
    np.save("complex.npy", np.ones(2, dtype=complex))
    with pytest.raises(FileFormatError, match=r"complex.npy is not an array of numbers: Cannot cast array data from dtype\('complex128'\)"):
        read_points(Path("complex.npy"), [(2,)], (0.0, 1.0))
    for kind in (np.uint8, np.int64, np.float16, bool):
        np.save("ones.npy", np.ones(2, dtype=kind))
        assert read_points(Path("ones.npy"), [(2,)], (0.0, 1.0)).tolist() == [[1.0, 1.0]]
    np.save("empty.npy", np.zeros((0, 2)))
    with pytest.raises(ShapeError, match=r"points of shape \(0, 2\)"):
        read_points(Path("empty.npy"), [(2,)], (0.0, 1.0))


# energies, plugins, doctor ------------------------------------------------------------------------------------------------------------


class Broken(ce.EnergyFamily):
    def members(self) -> tuple[str, ...]:
        raise ZeroDivisionError("no members today")

    def load(self, member: str | None) -> ce.Energy:
        raise NotImplementedError


class Unmade(Toys):
    def __init__(self) -> None:
        raise OSError("unwritten weights")


def test_energies_lists_members_without_weights(capsys: pytest.CaptureFixture[str]):
    with (
        ce.register("energy", "bowl", lambda: Noisy()),
        ce.register("energy", "broken", Broken),
        ce.register("energy", "unwritten", Unmade),
    ):
        assert run("energies") == 0
        lines = capsys.readouterr().out.splitlines()
        assert run("energies", "--json") == 0
    told = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert Toys.loaded == []
    assert {"toys  (this session)", "  toys/left=dark", "bowl  (this session)"} <= set(lines)
    assert told["toys"]["members"] == list(Toys().members())
    assert told["bowl"]["members"] == []
    assert "making it raised OSError: unwritten weights" in told["unwritten"]["error"]
    assert told["broken"]["error"] == "listing its members raised ZeroDivisionError: no members today"


def test_plugins_lists_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert run("plugins") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["group", "name", "from", "offered", "by", "state"]
    assert any(line.split()[:2] == ["samplers", "langevin"] for line in lines)
    assert run("plugins", "--load", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    monkeypatch.setattr("composable_energy.registry.plugins", lambda load: [record("bad", "failed", "it raised")])
    assert run("plugins") == 0
    assert capsys.readouterr().out.endswith("\nacme:bad: it raised\n")
    assert {"group", "name", "value", "distribution", "version", "state", "error"} == rows[0].keys()
    assert next(row["state"] for row in rows if row["name"] == "langevin") == "ok"


def record(name: str, state: str = "ok", error: str | None = None, group: str = "samplers", value: str = "composable_energy_mcmc:X"):
    return ce.PluginRecord(f"composable_energy.{group}" if group else "", name, value, "acme", "1.0", state, error)  # pyright: ignore[reportArgumentType]


def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *rows: ce.PluginRecord) -> tuple[int, str, dict]:
    monkeypatch.setattr("composable_energy.registry.plugins", lambda load=False: list(rows))
    code = run("doctor")
    text = capsys.readouterr().out
    assert run("doctor", "--json") == code
    return code, text, json.loads(capsys.readouterr().out)


def test_doctor_is_well_where_all_is_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"composable_energy": ["composable-energy"]})
    code, text, told = doctor(monkeypatch, capsys, record("mala"), record("toys", group="energies"))
    assert code == 0 and told["problems"] == []
    assert text.rstrip().endswith("All is well.")
    assert told["versions"]["torch"] == metadata.version("torch") and told["versions"]["composable-energy"] == ce.__version__
    assert told["devices"][0].startswith("cpu (") and told["families"] == {"toys": 5}
    assert "samplers mala" in text and "family toys: 5 members" in text


def test_doctor_reports_failures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    twice = {"composable_energy_mcmc": ["composable-energy", "composable-energy-mcmc", "composable-energy"], "numpy": ["a", "b"]}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: twice)
    rows = [record("bad", "failed", "it raised"), record("two", "conflict", "also offered by b"), record("", "failed", "malformed", "", "")]
    with ce.register("energy", "broken", Broken):
        code, text, told = doctor(monkeypatch, capsys, *rows, record("broken", group="energies"))
    assert code == 1
    assert told["problems"][0].endswith("listing its members raised ZeroDivisionError: no members today")
    assert told["problems"][1:4] == ["acme:bad: it raised", "acme:two: also offered by b", "acme: malformed"]
    assert told["problems"][4].startswith(
        "the package composable_energy_mcmc is owned by composable-energy and composable-energy-mcmc: removing one deletes files"
    )
    assert len(told["problems"]) == 5
    assert all(f"Problem: {problem}" in text for problem in told["problems"])


def test_doctor_says_if_nothing_is_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    real = metadata.version

    def version(name: str) -> str:
        if name in ("composable-energy", "einops"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    code, _, told = doctor(monkeypatch, capsys)
    assert code == 1
    assert told["problems"][0] == "einops is not installed; install composable-energy with its dependencies"
    assert told["problems"][1].startswith("composable-energy is not installed, so its own plug-ins are not found")


def test_kernels_that_cannot_run_here_are_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    class Kernel:
        def __init__(self, answer: object) -> None:
            self.answer = answer

        def available(self) -> object:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    answers = {"acme:a": True, "acme:b": (False, "there is no GPU"), "acme:c": OSError("driver")}
    monkeypatch.setattr("composable_energy.registry.get_kernel", lambda name: Kernel(answers[name]))
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    code, text, told = doctor(monkeypatch, capsys, *(record(name, group="kernels") for name in "abc"))
    assert code == 0
    assert told["kernels"] == {"acme:a": "ready", "acme:b": "not available here: there is no GPU", "acme:c": "OSError: driver"}
    assert "kernel    acme:b: not available here: there is no GPU" in text


# exits --------------------------------------------------------------------------------------------------------------------------------


def test_interruption_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("composable_energy.cli.sample.read_expression", lambda asked: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("sample", "a") == 130
    assert capsys.readouterr() == ("", "")


def test_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ExpressionError):
        run("sample", "a &", "--traceback")
    monkeypatch.setenv("COMPOSABLE_ENERGY_TRACEBACK", "1")
    with pytest.raises(ExpressionError):
        run("sample", "a &")


def test_progress_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert run("sample", "toys", "--steps", "3") == 0
    assert "langevin" in screen.getvalue()


def test_plugin_that_does_not_load_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def failing(name: str) -> ce.Energy:
        raise PluginLoadError(f"{name} does not load")

    monkeypatch.setattr(ce, "get_energy", failing)
    assert run("sample", "toys/bright") == 2
    assert "toys/bright does not load" in capsys.readouterr().err


def test_module_runs_and_version_and_help_need_no_torch():
    process = python("--version", stdout=subprocess.PIPE)
    assert process.communicate(timeout=30) == (f"composable-energy {ce.__version__}\n", "")
    code = (
        "import sys\nfrom composable_energy.cli import main\n"
        "for arguments in (['--help'], ['sample', '--help'], ['sample']):\n"
        "    try: main(arguments)\n    except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False).returncode == 0


def test_process_ends_with_the_code_and_a_clean_message():
    process = python("sample", "male smiling", stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.splitlines()[1:] == ["  male smiling", "       ^^^^^^^"]


def test_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    process = python("plugins", "--json", stdout=write)
    os.close(read)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


def test_reader_that_goes_away_is_no_error_in_process(monkeypatch: pytest.MonkeyPatch):
    def gone(*values: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    assert run("energies") == 141


GREETING = """
    from composable_energy.cli import Command

    class Greet(Command):
        summary = "greet somebody"

        def add_arguments(self, parser):
            parser.add_argument("name")

        def run(self, arguments):
            print(f"Hello {arguments.name}")
            return 0
"""


def test_a_command_of_a_plugin(site, capsys):
    commands = {"greet": "greeting:Greet", "broken": "no_such_module:Broken", "sample": "greeting:Greet"}
    install(site, "acme-commands", {"commands": commands}, {"greeting": GREETING})
    assert main(["greet", "Ada"]) == 0
    assert capsys.readouterr().out == "Hello Ada\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    assert "greet somebody" in listed and "not usable" in listed and "draw from an expression" in listed
    assert main(["broken"]) == 2
    assert "no_such_module" in capsys.readouterr().err
