"""Command `explain`, and reading and writing of contact sheets."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import composable_energy as ce
from composable_energy.errors import FileFormatError
from composable_energy_cli.pictures import read_points
from composable_energy_image.data import open_pictures
from composable_energy_viz.files import write_grid
from tests.toys import Toys, run

pytestmark = pytest.mark.usefixtures("toys")


def test_explain_resizes_pictures_and_shows_shares(capsys: pytest.CaptureFixture[str]):
    Image.new("L", (40, 30), 240).save("light.png")
    Image.new("RGB", (5, 9), "black").save("dark.png")
    assert run("explain", "bright | (left=dark & toys)", "light.png", "dark.png", "--in", "toys") == 0
    header, *rows = capsys.readouterr().out.splitlines()
    second = rows.index("")
    assert rows[second - 1].split()[0] == "toys"
    assert header.split() == ["energy", "of", "light.png", "dark.png", "share"]
    assert rows[second + 1].split() == ["probability", "light.png", "dark.png"]
    shown = dict(row.rsplit(maxsplit=2)[:2] for row in rows[second + 2 :])
    expected = Toys().load("bright").explain(torch.full((1, 3, 16, 16), 240 / 255))
    assert {"p(bright | x)", "p(left=dark | x)", "p((bright | left=dark & toys) | x)"} < shown.keys()
    assert float(shown["p(bright | x)"]) == pytest.approx(float(expected.probability), abs=1e-3)  # pyright: ignore[reportArgumentType]
    assert run("explain", "bright", "light.png", "dark.png", "--in", "toys", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["points"] == ["light.png", "dark.png"]
    name = {term["expression"]: term["energy"] for term in report["terms"][1:]}
    assert name["bright"][0] == pytest.approx(expected.terms[1].energy.item(), abs=1e-5)
    assert name["bright"][1] > name["bright"][0] + 1


def test_explain_takes_a_sheet_apart_and_sums_up_many(capsys: pytest.CaptureFixture[str]):
    images = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    write_grid(Path("sheet.png"), images, (0.0, 1.0), {})
    np.save("images.npy", (images * 255).round().numpy() / 255)
    report = []
    for name in ("sheet.png", "images.npy"):
        assert run("explain", "bright", name, "--in", "toys", "--json") == 0
        report.append(json.loads(capsys.readouterr().out)["terms"][0]["energy"])
    assert len(report[0]) == 7
    assert report[0] == pytest.approx(report[1], abs=1e-5)
    assert run("explain", "bright", "sheet.png", "--in", "toys") == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["energy", "of", "mean", "lowest", "highest"]


def test_explain_takes_latents_and_noise_levels(capsys: pytest.CaptureFixture[str]):
    np.save("one.npy", np.zeros(4))
    np.save("two.npy", np.ones((1, 2)))
    assert run("explain", "toys", "one.npy", "--json") == 0
    assert json.loads(capsys.readouterr().out)["terms"][0]["energy"] == [0.0]
    for options, sigma in ([], 0.05), (["--sigma", "2"], 2.0):
        assert run("explain", "toys/noisy", "two.npy", "--json", *options) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["expression"] == f"noisy.at({sigma:g})"
        assert report["terms"][0]["energy"] == pytest.approx([1 / (1 + sigma**2)])


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
    Image.new("L", (4, 4)).save("grey.png")
    assert run("explain", expression, name, "--in", "toys") == 2
    assert f"composable-energy: error: {message}" in capsys.readouterr().err


def test_sheet_that_was_cut_is_one_picture():
    write_grid(Path("sheet.png"), torch.rand(4, 3, 8, 8), (0.0, 1.0), {})
    with Image.open("sheet.png") as sheet:
        from PIL.PngImagePlugin import PngInfo

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
