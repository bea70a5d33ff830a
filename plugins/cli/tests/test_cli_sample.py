"""Command `sample`: output files, printed terms, options, and messages for invalid input."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import composable_energy as ce
from composable_energy_cli.pictures import read_points
from tests.toys import Noisy, Untaught, run

pytestmark = pytest.mark.usefixtures("toys")


def test_sample_writes_a_sheet_and_shows_the_terms(capsys: pytest.CaptureFixture[str]):
    assert run("sample", "bright & ~left=dark", "--in", "toys", "-n", "6", "--seed", "1", "--steps", "5", "-o", "grid.png") == 0
    out, err = capsys.readouterr()
    first, _, header, *rows = out.splitlines()
    assert first.startswith("grid.png: 6 draws of bright & ~left=dark in ")
    assert first.endswith("s, 5 steps of Langevin(step_size=0.2), seed 1")  # only what differs from the sampler's defaults
    assert header.split() == ["energy", "of", "mean", "lowest", "highest"]
    assert rows[0].startswith("bright & ~left=dark  ")
    assert [row.split()[0] for row in rows[1:5]] == ["toys", "bright", "~left=dark", "left=dark"]
    assert rows[5:7] == ["", rows[6]] and rows[6].split() == ["probability", "mean", "lowest", "highest"]
    events = ["p(bright & ~left=dark | x)", "p(bright | x)", "p(~left=dark | x)", "p(left=dark | x)"]
    assert [row.rpartition(")")[0] + ")" for row in rows[7:]] == events
    assert err == ""
    with Image.open("grid.png") as sheet:
        assert sheet.size == (10 * (3 * 16 + 4), 10 * (2 * 16 + 2))  # enlarged, so that its width is at least 512


def test_same_seed_draws_the_same_and_the_sheet_reads_back():
    for name in ("a.npy", "b.npy", "c.png"):
        assert run("sample", "toys/bright", "--seed", "7", "--steps", "3", "-n", "5", "-o", name) == 0
    assert run("sample", "toys/bright", "--seed", "8", "--steps", "3", "-n", "5", "-o", "d.npz") == 0
    a, b, d = np.load("a.npy"), np.load("b.npy"), np.load("d.npz")["samples"]
    assert a.shape == d.shape == (5, 3, 16, 16)
    assert (a == b).all() and not (a == d).all()
    tiles = read_points(Path("c.png"), [(3, 16, 16)], (0.0, 1.0))
    assert np.abs(tiles.numpy() - a).max() <= 0.5 / 255 + 1e-6


@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")  # the seed is another one each time
def test_sample_goes_on_from_a_checkpoint(capsys: pytest.CaptureFixture[str]):
    command = ["sample", "toys/bright", "--steps", "6", "-n", "3", "--checkpoint", "run.safetensors", "--option", "step_size=0.1"]
    command += ["--sampler", "langevin"]
    assert run(*command, "-o", "a.npy") == run(*command, "-o", "b.npy") == 0  # no seed: that of the file
    assert (np.load("a.npy") == np.load("b.npy")).all()
    assert run(*command, "--seed", "1", "-o", "c.npy") == 2
    assert "belongs to another call (seed was" in capsys.readouterr().err and not Path("c.npy").exists()


def test_sample_prints_json(capsys: pytest.CaptureFixture[str]):
    options = ["--option", "step_size=0.1", "--option", "temperature=0.5", "--sharpen", "2", "--batch-size", "3"]
    assert run("sample", "bright | toys", "--in", "toys", "-n", "4", "--sampler", "langevin", "--steps", "4", "--json", *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["file"] == "samples.png" and Path("samples.png").is_file()
    events = {term["expression"]: term for term in report["terms"]}
    energies, probabilities = events["bright"]["energy"], events["bright"]["probability"]
    assert probabilities == pytest.approx([math.exp(-energy) for energy in energies])
    assert events["toys"]["probability"] is None
    assert report["expression"] == "(bright | toys).sharpened(2)"
    assert (report["n"], report["steps"]) == (4, 4)
    assert report["sampler"].startswith("Langevin(step_size=0.1, temperature=0.5")
    assert isinstance(report["seed"], int) and report["seconds"] > 0
    whole, *terms = report["terms"]
    assert whole["depth"] == 0 and len(whole["energy"]) == 4
    assert whole["mean"] == pytest.approx(sum(whole["energy"]) / 4)
    assert {term["depth"] for term in terms} == {1, 2}


def test_points_without_pictures_go_to_an_array(capsys: pytest.CaptureFixture[str]):
    assert run("sample", "plane", "--in", "toys", "--sampler", "langevin", "--option", "step_size=.1", "--steps", "2", "-o", "x.npy") == 0
    assert np.load("x.npy").shape == (16, 2)
    assert run("sample", "plane", "--in", "toys", "-o", "x.png") == 2
    assert "Draws of shape (2,) are not images; write them to a file that ends in .npy or .npz." in capsys.readouterr().err
    assert run("sample", "plane", "--in", "toys", "--sampler", "langevin", "--step-size", ".1", "--steps", "1", "-n", "3") == 0
    assert np.load("samples.npy").shape == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bright smiling"], "Expected an operator, found `smiling`; join two terms by `&` or `|`, a weight and a term by `*`.\n  bri"),
        (["bright & left=drak"], "Unknown name `left=drak`; did you mean `left=dark`?\n  bright & left=drak\n           ^^^^^^^^^\n"),
        (["toys/brigt"], "Unknown name `toys/brigt`; did you mean `toys/bright`"),
        (["bright/2"], "Unknown name `bright/2`; a division has spaces around it: `bright / 2`."),
        (["bright & ~bright"], "No point fulfils bright & ~bright"),
        (["bright", "--in", "toyz"], "No plug-in offers the energy 'toyz'. Did you mean 'toys'?"),
        (["bright", "-n", "1e9"], "-n 1000000000: 1,000,000,000 points of shape (3, 16, 16) need at least 3.1 TB of memory"),
        (["bright", "--option", "step=2"], "langevin has no option --step; it takes --step-size, --temperature"),
        (["bright", "--step-size", "-1"], "error: --step-size must be a positive number, got -1."),
        (["bright", "--clamp", "a", "--option", "max-gradient=0"], "--clamp must be (lowest, highest), got 'a'."),
        (["bright", "-o", "a.gif"], "-o takes a file that ends in .png, .jpg, .jpeg, .webp, .npy, .npz, got 'a.gif'."),
        (["bright", "--range", "1", "0"], "--range takes two increasing numbers, such as -1 1, got 1 0."),
        (["bright", "--sigma", "0.1"], "bright does not depend on a noise level; leave out --sigma."),
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


def test_one_name_is_one_energy():
    """Else `A | ~A` would be two events."""
    assert run("sample", "bright | ~toys/bright", "--in", "toys", "--steps", "1") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smaple"], "invalid choice: 'smaple'"),
        (["sample"], "the following arguments are required: EXPR"),
        (["sample", "a", "-n", "inf"], "argument -n: takes a whole number of at least 1, got 'inf'"),
        (["sample", "a", "--seed", "18446744073709551616"], "argument --seed: takes a whole number from -9223372036854775808 to 184467440"),
        (["sample", "a", "--step-size"], "unrecognized arguments: --step-size"),
        (["sample", "a", "--given", "y=1,x"], "a condition is written NAME=NUMBER or NAME=NUMBER,NUMBER,..., got 'y=1,x'"),
        (["sample", "a", "--option", "step"], "an option is written NAME=VALUE, got 'step'"),
    ],
)
def test_mistakes_in_the_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "usage:" not in error and len(error.splitlines()) == 2


def test_an_untrained_network_is_sampled_on_request_only(capsys: pytest.CaptureFixture[str]):
    command = ["sample", "untaught", "--steps", "1", "-n", "1", "--sampler", "langevin", "--step-size", ".1"]
    with ce.register("energy", "untaught", Untaught):
        assert run(*command) == run(*command[:1], "bright | untaught", "--in", "toys") == 2
        message = "untaught is not trained: it is a network with random weights, and its draws mean nothing. Train one"
        assert capsys.readouterr().err.count(message) == 2
        assert run(*command, "--untrained") == 0
        np.save("one.npy", np.zeros(2))
        assert run("explain", "untaught", "one.npy") == 0  # its energies are what they are


class At(Noisy):
    """A Gaussian around `y`."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 50 * (x - y.reshape(len(y), -1)).square().sum(1)


def test_conditions_are_numbers_or_rows_of_numbers(capsys: pytest.CaptureFixture[str]):
    fast = ["--sampler", "langevin", "--step-size", ".01", "--steps", "200", "-n", "50", "--seed", "0"]
    with ce.register("energy", "at", At):
        for text, center in (("y=3", (3, 3)), ("y=-2,4", (-2, 4))):
            assert run("sample", "at", "--given", text, *fast) == 0
            assert np.allclose(np.load("samples.npy").mean(0), center, atol=0.15)
            assert run("explain", "at", "samples.npy", "--given", text) == 0
        capsys.readouterr()
        assert run("sample", "at", *fast) == run("explain", "at", "samples.npy") == 2
        assert capsys.readouterr().err.count("noisy depends on y, which has no value: add --given y=VALUE.") == 2
        assert run("sample", "at", "--given", "z=1", *fast) == 2
        assert "--given: noisy has no condition z; it depends on y." in capsys.readouterr().err


def test_a_warning_is_one_line(capsys: pytest.CaptureFixture[str]):
    def mixes(*_: object) -> None:
        warnings.warn("shares are arbitrary", UserWarning, stacklevel=2)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("default")
        patch.setattr("composable_energy_cli.sample.check_trained", mixes)
        assert run("sample", "bright", "--in", "toys", "--steps", "1") == 0
    assert capsys.readouterr().err == "composable-energy: warning: shares are arbitrary\n"


def test_saved_folder_stands_in_an_expression(capsys: pytest.CaptureFixture[str]):
    """With the energies that it was made of, too: they share their base and decoder."""
    for folder in ("saved", "with space"):
        (ce.get("energy", "toys/bright") & ~ce.get("energy", "toys/left=dark")).save(folder)
    for name in ("./saved", "saved", f"'{Path('with space').absolute()}'"):
        assert run("sample", f"{name} | toys/left=dark", "--steps", "1", "--json") == 0
        assert json.loads(capsys.readouterr().out)["expression"] == "bright & ~left=dark | left=dark"
    assert run("sample", "./savd") == 2
    assert "Unknown name `./savd`; did you mean `./saved`?" in capsys.readouterr().err
    assert run("sample", "./nowhere") == 2
    assert "Unknown name `./nowhere`: there is no such folder." in capsys.readouterr().err
    ce.get("energy", "toys/bright").save("many/one")
    assert run("sample", "./many") == 2
    assert "Unknown name `./many`: it holds several energies; write ./many/one, or --in ./many." in capsys.readouterr().err
    Path("saved", "energy.safetensors").write_text("{")
    assert run("sample", "./saved") == 2
    assert capsys.readouterr().err.startswith("composable-energy: error: ")


def test_other_formats_and_ranges():
    assert run("sample", "toys", "--steps", "1", "-n", "3", "-o", "a.jpg", "--range", "-1", "1") == 0
    with Image.open("a.jpg") as sheet:
        assert sheet.size == (16 * (2 * 16 + 2), 16 * (2 * 16 + 2))
        assert all(dark >= 110 for dark, _ in sheet.getextrema())  # values from 0 up are the lighter half


def test_diverged_draws_are_reported(capsys: pytest.CaptureFixture[str]):
    """Energies that are not a number to the right of 1: some chains get there, and --option reaches the driver."""
    cliff = ce.as_energy(lambda x: torch.where(x < 1, x.square(), torch.nan).sum(1), name="cliff", event_shape=(1,))
    arguments = ["cliff", "-n", "64", "--seed", "0", "--steps", "20", "--sampler", "langevin", "--option", "step_size=.5", "-o", "x.npy"]
    with ce.register("energy", "cliff", lambda: cliff):
        assert run("sample", *arguments) == 2
        assert "reached a non-finite point, energy or gradient of cliff" in capsys.readouterr().err
        assert run("sample", *arguments, "--option", "on_divergence=keep") == 0
    count = len(np.load("x.npy"))
    assert 0 < count < 64
    assert f"x.npy: {count} draws (of 64; the others diverged) of cliff in" in capsys.readouterr().out
