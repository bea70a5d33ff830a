"""Commands `sample` and `explain`: output files, printed terms, options, contact sheets, and messages for invalid input."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import composable_energy as ce
from composable_energy.errors import FileFormatError
from composable_energy_cli.pictures import read_points
from composable_energy_image.data import open_pictures
from composable_energy_viz.files import write_grid
from tests.campaign.files import png
from tests.third_party import At, Toys, Untaught, run

pytestmark = pytest.mark.usefixtures("toys")


def test_sample_writes_a_sheet_and_shows_the_terms(capsys: pytest.CaptureFixture[str]):
    assert run("sample", "bright & ~left=dark", "--in", "toys", "-n", "6", "--seed", "1", "--steps", "5", "-o", "grid.png") == 0
    out, err = capsys.readouterr()
    first, _, header, *rows = out.splitlines()
    assert first.startswith("grid.png: 6 draws of bright & ~left=dark in ")
    assert first.endswith("s, 5 steps of Langevin(step_size=0.2), seed 1")  # only what differs from the sampler's defaults
    assert header.split() == ["energy", "of", "mean", "lowest", "highest"] and rows[0].startswith("bright & ~left=dark  ")
    assert [row.split()[0] for row in rows[1:5]] == ["toys", "bright", "~left=dark", "left=dark"]
    assert rows[5:7] == ["", rows[6]] and rows[6].split() == ["probability", "mean", "lowest", "highest"]
    events = ["p(bright & ~left=dark | x)", "p(bright | x)", "p(~left=dark | x)", "p(left=dark | x)"]
    assert [row.rpartition(")")[0] + ")" for row in rows[7:]] == events and err == ""
    with Image.open("grid.png") as sheet:
        assert sheet.size == (10 * (3 * 16 + 4), 10 * (2 * 16 + 2))  # enlarged, so that its width is at least 512


def test_same_seed_draws_the_same_and_the_sheet_reads_back():
    for name in ("a.npy", "b.npy", "c.png"):
        assert run("sample", "toys/bright", "--seed", "7", "--steps", "3", "-n", "5", "-o", name) == 0
    assert run("sample", "toys/bright", "--seed", "8", "--steps", "3", "-n", "5", "-o", "d.npz") == 0
    a, b, d = np.load("a.npy"), np.load("b.npy"), np.load("d.npz")["samples"]
    assert a.shape == d.shape == (5, 3, 16, 16) and (a == b).all() and not (a == d).all()
    assert np.abs(read_points(Path("c.png"), [(3, 16, 16)], (0.0, 1.0)).numpy() - a).max() <= 0.5 / 255 + 1e-6


@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")  # the seed is another one each time
def test_sample_goes_on_from_a_checkpoint(capsys: pytest.CaptureFixture[str]):
    command = ["sample", "toys/bright", "--steps", "6", "-n", "3", "--checkpoint", "run", "--step-size", "0.1", "--sampler", "langevin"]
    assert run(*command, "-o", "a.npy") == run(*command, "-o", "b.npy") == 0  # no seed: that of the file
    assert (np.load("a.npy") == np.load("b.npy")).all() and run(*command, "--seed", "1", "-o", "c.npy") == 2
    assert "belongs to another call (seed was" in capsys.readouterr().err and not Path("c.npy").exists()


def test_sample_prints_json(capsys: pytest.CaptureFixture[str]):
    options = ["--step-size", "0.1", "--option", "temperature=0.5", "--clamp", "(-9, 9)", "--sharpen", "2", "--batch-size", "3"]
    assert run("sample", "bright | toys", "--in", "toys", "-n", "4", "--sampler", "langevin", "--steps", "4", "--json", *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["file"] == "samples.png" and Path("samples.png").is_file()
    events = {term["expression"]: term for term in report["terms"]}
    energies, probabilities = events["bright"]["energy"], events["bright"]["probability"]
    assert probabilities == pytest.approx([math.exp(-energy) for energy in energies])
    assert events["toys"]["probability"] is None and report["expression"] == "(bright | toys).sharpened(2)"
    assert (report["n"], report["steps"]) == (4, 4) and report["sampler"].startswith("Langevin(step_size=0.1, temperature=0.5, clamp=(-9")
    assert isinstance(report["seed"], int) and report["seconds"] > 0
    whole, *terms = report["terms"]
    assert whole["depth"] == 0 and len(whole["energy"]) == 4 and whole["mean"] == pytest.approx(sum(whole["energy"]) / 4)
    assert {term["depth"] for term in terms} == {1, 2}


def test_points_without_pictures_go_to_an_array(capsys: pytest.CaptureFixture[str]):
    assert run("sample", "plane", "--in", "toys", "--sampler", "langevin", "--option", "step_size=.1", "--steps", "2", "-o", "x.npy") == 0
    assert np.load("x.npy").shape == (16, 2) and run("sample", "plane", "--in", "toys", "-o", "x.png") == 2
    assert "Draws of shape (2,) are not images; write them to a file that ends in .npy or .npz." in capsys.readouterr().err
    with pytest.raises(UserWarning, match="1 of 8 steps of the schedule are taken"):
        run("sample", "plane", "--in", "toys", "--sampler", "smc", "--levels", "5", "--steps", "1", "-n", "3")
    assert run("sample", "plane & ~shapeless", "--in", "toys", "--steps", "2", "-o", "y.npy") == 0  # a level that has to be found
    assert run("explain", "plane & ~shapeless", "--in", "toys", "y.npy") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bright smiling"], "Expected an operator, found `smiling`; join two terms by `&` or `|`, a weight and a term by `*`.\n  bri"),
        (["bright & left=drak"], "Unknown name `left=drak`; did you mean `left=dark`?\n  bright & left=drak\n           ^^^^^^^^^\n"),
        (["toys/brigt"], "Unknown name `toys/brigt`; did you mean `toys/bright`"),
        (["bright & hg:x/y"], "No plug-in offers the loader 'hg'. Known: diffusers, hf.\n  bright & hg:x/y\n           ^^^^^^\n"),
        (["bright/2"], "Unknown name `bright/2`; a division has spaces around it: `bright / 2`."),
        (["bright & ~bright"], "No point fulfils bright & ~bright"),
        (["bright", "--in", "toyz"], "No plug-in offers the energy 'toyz'. Did you mean 'toys'?"),
        (["bright", "-n", "1e9"], "-n 1000000000: 1,000,000,000 points of shape (3, 16, 16) need at least 3.1 TB of memory"),
        (["bright", "--option", "step=2"], "langevin has no option --step; it takes --step-size, --temperature"),
        (["bright", "--sampler", "annealed", "--stps", "3"], "Did you mean --steps?"),
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
    assert run("sample", *(arguments if "--in" in arguments else [*arguments, "--in", "toys"])) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("composable-energy: error: ") and "Traceback" not in err and message in err
    assert not list(Path().iterdir())  # nothing was written


def test_a_folder_that_takes_no_file_is_found_before_sampling(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("os.access", lambda *_: False)
    assert run("sample", "toys/bright", "-o", "a.npy") == 2 and "or no file can be written to it" in capsys.readouterr().err


def test_one_name_is_one_energy():
    """Else `A | ~A` would be two events."""
    assert run("sample", "bright | ~toys/bright", "--in", "toys", "--steps", "1") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smaple"], "invalid choice: 'smaple'. Did you mean 'sample'?"),
        (["new-plugin", "--kind", "samplr", "x"], "Did you mean 'sampler'?"),
        (["sample"], "the following arguments are required: EXPR"),
        (["sample", "a", "-n", "inf"], "argument -n: takes a whole number of at least 1, got 'inf'"),
        (["sample", "a", "--seed", "18446744073709551616"], "argument --seed: takes a whole number from -9223372036854775808 to 184467440"),
        (["sample", "a", "--step-size", "-o", "a.npy"], "unrecognized arguments: --step-size"),
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
        assert capsys.readouterr().err.count(message) == 2 and run(*command, "--untrained") == 0
        np.save("one.npy", np.zeros(2))
        assert run("explain", "untaught", "one.npy") == 0  # its energies are what they are


def test_conditions_are_numbers_or_rows_of_numbers(capsys: pytest.CaptureFixture[str]):
    fast = ["--sampler", "langevin", "--step-size", ".01", "--steps", "200", "-n", "50", "--seed", "0"]
    with ce.register("energy", "at", At):
        for text, center in (("y=3", (3, 3)), ("y=-2,4", (-2, 4))):
            assert run("sample", "at", "--given", text, *fast) == 0 and np.allclose(np.load("samples.npy").mean(0), center, atol=0.15)
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
    assert run("sample", "./savd") == 2 and "Unknown name `./savd`; did you mean `./saved`?" in capsys.readouterr().err
    assert run("sample", "./nowhere") == 2 and "Unknown name `./nowhere`: there is no such folder." in capsys.readouterr().err
    ce.get("energy", "toys/bright").save("many/~one")
    assert run("sample", "./many") == 2
    assert "Unknown name `./many`: it holds several energies; write ./many/~one, or --in ./many." in capsys.readouterr().err
    assert run("sample", "~one", "--in", "many") == 2 and "`one`; did you mean `'~one'`?" in capsys.readouterr().err
    assert run("sample", "'~one'", "--in", "many", "--steps", "1") == 0
    Path("saved", "energy.safetensors").write_text("{")
    assert run("sample", "./saved") == 2 and capsys.readouterr().err.startswith("composable-energy: error: ")


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
        assert run("sample", *arguments) == 2 and "reached a non-finite point, energy or gradient of cliff" in capsys.readouterr().err
        assert run("sample", *arguments, "--option", "on_divergence=keep") == 0
    count = len(np.load("x.npy"))
    assert 0 < count < 64 and f"x.npy: {count} draws (of 64; the others diverged) of cliff in" in capsys.readouterr().out


def test_explain_resizes_pictures_and_shows_shares(capsys: pytest.CaptureFixture[str]):
    Image.new("L", (40, 30), 240).save("light.png")
    Image.new("RGB", (5, 9), "black").save("dark.png")
    assert run("explain", "bright | (left=dark & toys)", "light.png", "dark.png", "--in", "toys") == 0
    header, *rows = capsys.readouterr().out.splitlines()
    second = rows.index("")
    assert rows[second - 1].split()[0] == "toys" and header.split() == ["energy", "of", "light.png", "dark.png", "share"]
    assert rows[second + 1].split() == ["probability", "light.png", "dark.png"]
    shown = dict(row.rsplit(maxsplit=2)[:2] for row in rows[second + 2 :])
    expected = Toys().load("bright").explain(torch.full((1, 3, 16, 16), 240 / 255))
    assert {"p(bright | x)", "p(left=dark | x)", "p((bright | left=dark & toys) | x)"} < shown.keys()
    assert float(shown["p(bright | x)"]) == pytest.approx(float(expected.probability), abs=1e-3)  # pyright: ignore[reportArgumentType]
    assert run("explain", "bright", "light.png", "dark.png", "--in", "toys", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["points"] == ["light.png", "dark.png"]
    name = {term["expression"]: term["energy"] for term in report["terms"][1:]}
    assert name["bright"][0] == pytest.approx(expected.terms[1].energy.item(), abs=1e-5) and name["bright"][1] > name["bright"][0] + 1


def test_explain_takes_a_sheet_apart_and_sums_up_many(capsys: pytest.CaptureFixture[str]):
    images = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    write_grid(Path("sheet.png"), images, (0.0, 1.0), {})
    np.save("images.npy", (images * 255).round().numpy() / 255)
    report = []
    for name in ("sheet.png", "images.npy"):
        assert run("explain", "bright", name, "--in", "toys", "--json") == 0
        report.append(json.loads(capsys.readouterr().out)["terms"][0]["energy"])
    assert len(report[0]) == 7 and report[0] == pytest.approx(report[1], abs=1e-5)
    assert run("explain", "bright", "sheet.png", "--in", "toys") == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["energy", "of", "mean", "lowest", "highest"]


def test_explain_takes_latents_and_noise_levels(capsys: pytest.CaptureFixture[str]):
    np.save("one.npy", np.zeros(4))
    np.save("two.npy", np.ones((1, 2)))
    assert run("explain", "toys", "one.npy", "--json") == 0 and json.loads(capsys.readouterr().out)["terms"][0]["energy"] == [0.0]
    for options, sigma in ([], 0.05), (["--sigma", "2"], 2.0):
        assert run("explain", "toys/noisy", "two.npy", "--json", *options) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["expression"] == f"noisy.at({sigma:g})" and report["terms"][0]["energy"] == pytest.approx([1 / (1 + sigma**2)])


@pytest.mark.slow
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
        ("bright", "text.png", "text.png cannot be read as a picture"),
        ("bright", "text.npy", "text.npy is not an array of numbers"),
        ("bright", "pickled.npy", "pickled.npy is not an array of numbers"),
        ("bright", "complex.npy", "complex.npy is not an array of numbers: Cannot cast array data from dtype('complex128')"),
        ("plane", "several.npz", "several.npz is not an array of numbers: of its arrays a, b none is named samples."),
        ("plane", "empty.npy", "empty.npy has points of shape (0, 2)"),
        ("bright", "five.npy", "five.npy has points of shape (5,); the energy takes (n, 3, 16, 16) or (n, 4)."),
        ("plane", "grey.png", "grey.png is an image, and the energy takes points of shape (2,); give them as an .npy file."),
        ("shapeless", "grey.png", "shapeless has no event_shape, so no points can be read for it."),
    ],
)
def test_mistakes_in_files(expression: str, name: str, message: str, capsys: pytest.CaptureFixture[str]):
    Path("text.png").write_text("no picture")
    Path("text.npy").write_text("no array")
    np.save("pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save("complex.npy", np.ones(2, dtype=complex))
    np.save("empty.npy", np.zeros((0, 2)))
    np.save("five.npy", np.zeros(5))
    np.savez("several.npz", a=np.zeros((3, 2)), b=np.zeros((3, 2)))
    Image.new("L", (4, 4)).save("grey.png")
    assert run("explain", expression, name, "--in", "toys") == 2 and f"composable-energy: error: {message}" in capsys.readouterr().err


def test_sheet_that_was_cut_is_one_picture():
    write_grid(Path("sheet.png"), torch.rand(4, 3, 8, 8), (0.0, 1.0), {})
    with Image.open("sheet.png") as sheet:
        text = PngInfo()
        text.add_text("composable-energy", sheet.info["composable-energy"])
        sheet.crop((0, 0, 10, 10)).save("cut.png", pnginfo=text)
        for name, n, columns, picture in (("lying.png", 10**15, 1, sheet), ("packed.png", 64**2, 64, Image.new("L", (64, 64)))):
            text = PngInfo()
            text.add_text("composable-energy", json.dumps({"n": n, "columns": columns, "height": 1, "width": 1, "gap": 0}))
            picture.save(name, pnginfo=text)
    with pytest.raises(FileFormatError, match=r"4,096 pictures, and 1,365 of this size at most"):
        read_points(Path("packed.png"), [(3, 128, 128)], (0.0, 1.0))
    for name in ("cut.png", "lying.png"):
        assert read_points(Path(name), [(3, 8, 8)], (0.0, 1.0)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_read_as_for_training(tmp_path: Path, channels: int):
    """Upright, cropped at the centre, 16 bits scaled, and white where they are transparent."""
    values, camera = np.arange(8 * 20 * 4, dtype=np.uint16).reshape(8, 20, 4) * 102, Image.Exif()
    camera[0x0112] = 6
    Image.fromarray(values[..., 0]).save(tmp_path / "1.png")
    Image.fromarray((values // 257).astype(np.uint8)).save(tmp_path / "2.png", exif=camera)
    expected = open_pictures(tmp_path, size=8, channels=channels).images(torch.arange(2)).double()
    for name, picture in zip(("1.png", "2.png"), expected, strict=True):
        assert torch.allclose(read_points(tmp_path / name, [(channels, 8, 8)], (0.0, 1.0)), picture, atol=1e-6)
    rows = b"".join(b"\0" + row.tobytes() for row in (values[..., :channels] // 16).astype(">u2"))
    (tmp_path / "12.png").write_bytes(png(20, 8, rows, kind=channels - 1, bits=16))
    with pytest.warns(UserWarning, match="none above 4,095 of 65,535"):
        read_points(tmp_path / "12.png", [(channels, 8, 8)], (0.0, 1.0))
