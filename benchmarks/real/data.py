"""Sets of real pictures, each in three parts: for the library, for an independent judge, and held out from both.

What a judge learns of a picture are its *marks*, such as the digit. The attributes of expressions follow from marks and pixels by the same
function for pictures whose marks are known and for those that a judge sees.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_letters, ascii_lowercase

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.real.fetch import FAMILIES, REAL
from composable_energy.errors import FileFormatError
from composable_energy_image.data import open_pictures

Marks = Mapping[str, Tensor]
Attributes = dict[str, Tensor]
FASHION = {"footwear": (5, 7, 9), "upper": (0, 2, 4, 6), "dress": (3,), "trousers": (1,), "bag": (8,)}
DIGITS = {"even": (0, 2, 4, 6, 8), "has_loop": (0, 6, 8, 9), "prime": (2, 3, 5, 7), "above4": (5, 6, 7, 8, 9)}
CATEGORIES = {"serif": (0,), "monospaced": (2,), "handwritten": (3,)}  # places in `FAMILIES`
TYPE_MARKS = {"letter": 26, "capital": 2, "bold": 2, "italic": 2, "category": len(FAMILIES)}
FASHION_PART, DIGIT_PARTS, FAMILY_PARTS = 30_000, (6_200, 9_000), (24, -6)  # ends of the library's part and the judge's
FEW = 1_400  # digits of the smallest set
SIZE, CAPITAL, BASELINE = 64, 28, 44  # pixels of a letter's picture, of the height of an H, and from the upper edge to its foot


@dataclass(frozen=True)
class Part:
    """Pictures, bytes with shape $(N, 1, H, W)$, and their marks, int64 with shape $(N,)$ each."""

    pixels: Tensor
    marks: Marks

    @property
    def images(self) -> Tensor:
        """The pictures in [0, 1]."""
        return self.pixels.float() / 255

    def take(self, rows: Tensor | slice) -> Part:
        """Returns some of the pictures."""
        return Part(self.pixels[rows], {name: values[rows] for name, values in self.marks.items()})


@dataclass(frozen=True)
class RealSet:
    """A set in three parts.

    Attributes:
        sizes: The number of values of each mark.
        attributes: The function from pictures in [0, 1] and their marks to attributes, booleans with shape $(N,)$.
        words: A word for each value of the marks that are attributes themselves.
    """

    name: str
    sizes: Mapping[str, int]
    attributes: Callable[[Tensor, Marks], Attributes]
    words: Mapping[str, str]
    library: Part
    judge: Part
    held_out: Part

    def truths(self, images: Tensor, marks: Marks) -> Attributes:
        """Returns whether each picture has each attribute, with shape $(N,)$, such as `even` and `digit=3`."""
        named = {f"{mark}={word}": marks[mark] == value for mark, words in self.words.items() for value, word in enumerate(words)}
        return {**self.attributes(images, marks), **named}

    def write_library(self, path: Path) -> Path:
        """Writes the library's part with its attributes, as `open_pictures` reads them."""
        part = self.library
        labels = {name: values.numpy() for name, values in self.attributes(part.images, part.marks).items()}
        labels |= {mark: np.array(list(words))[part.marks[mark].numpy()] for mark, words in self.words.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=part.pixels.numpy(), **labels)  # pyright: ignore[reportArgumentType]
        return path


def open_set(name: str, folder: Path = REAL, seed: int = 0) -> RealSet:
    """Returns a set of `SETS`, divided by a seed.

    Raises:
        FileFormatError: The set was not downloaded.
    """
    source = folder / name.rpartition("-")[2]
    if not source.is_dir():
        raise FileFormatError(f"There is no folder {source} with the pictures of {name!r}; run `make real-data`.")
    return SETS[name](source, seed)


def open_fashion(folder: Path, seed: int) -> RealSet:
    """Returns Fashion-MNIST; its train file is divided in halves, its test file is held out."""
    files = {part: open_pictures(folder, part=part) for part in ("train", "test")}
    train, test = (Part(torch.tensor(file.pixels), {"kind": file.labels["class"].values}) for file in files.values())
    train = train.take(shuffled(len(train.pixels), seed))
    parts = train.take(slice(FASHION_PART)), train.take(slice(FASHION_PART, None)), test
    return RealSet("fashion", {"kind": 10}, fashion_attributes, {}, *parts)


def fashion_attributes(images: Tensor, marks: Marks) -> Attributes:
    """Returns attributes of clothes: those of their kind, `bright` by the mean of the figure's pixels, `wide` by its columns."""
    figure = images[:, 0] > 0.15
    mean = (images[:, 0] * figure).sum((1, 2)) / figure.sum((1, 2)).clamp(min=1)
    columns = figure.sum(1) >= 2
    places = torch.arange(columns.shape[1])
    first, last = places.where(columns, len(places)).amin(1), places.where(columns, -1).amax(1)
    return {**one_of(marks["kind"], FASHION), "bright": mean > 0.55, "wide": last - first + 1 >= 20}


def open_digits(folder: Path, seed: int) -> RealSet:
    files = [json.loads((folder / f"{digit}.json").read_text(encoding="utf-8"))["data"] for digit in range(10)]
    pixels = [torch.tensor(values).mul(255).round().byte().view(-1, 1, 28, 28) for values in files]
    digits = torch.cat([torch.full((len(some),), digit) for digit, some in enumerate(pixels)])
    every = Part(torch.cat(pixels), {"digit": digits}).take(shuffled(len(digits), seed))
    first, second = DIGIT_PARTS
    parts = every.take(slice(first)), every.take(slice(first, second)), every.take(slice(second, None))
    return RealSet("digits", {"digit": 10}, digit_attributes, {"digit": "0123456789"}, *parts)


def open_few_digits(folder: Path, seed: int) -> RealSet:
    """Returns the digits of MNIST, of which the library has a few alone."""
    every = open_digits(folder, seed)
    return replace(every, name="few-digits", library=every.library.take(slice(FEW)))


def digit_attributes(images: Tensor, marks: Marks) -> Attributes:
    return one_of(marks["digit"], DIGITS)


def one_of(values: Tensor, groups: Mapping[str, tuple[int, ...]]) -> Attributes:
    """Returns for each group whether the values are in it, with shape $(N,)$."""
    return {name: torch.isin(values, torch.tensor(group)) for name, group in groups.items()}


def open_type(folder: Path, seed: int) -> RealSet:
    """Returns letters of fonts; each family is in one part, and each part has families of all categories."""
    found: tuple[list[tuple[Path, int]], ...] = ([], [], [])
    for category, names in enumerate(FAMILIES.values()):
        families = names.split()
        for place, row in enumerate(shuffled(len(families), seed).tolist()):
            found[sum(place >= end % len(families) for end in FAMILY_PARTS)].append((folder / families[row], category))
    return RealSet("type", TYPE_MARKS, type_attributes, {"letter": ascii_lowercase}, *(draw_families(families) for families in found))


def type_attributes(images: Tensor, marks: Marks) -> Attributes:
    """Returns attributes of letters; a sans-serif one is none of `serif`, `monospaced` and `handwritten`."""
    return {**{name: marks[name] == 1 for name in ("capital", "bold", "italic")}, **one_of(marks["category"], CATEGORIES)}


def draw_families(families: Sequence[tuple[Path, int]]) -> Part:
    """Returns all letters of families of fonts, each with its category, in the styles that it has."""
    drawn, rows = [], []
    for family, category in families:
        for file in sorted(family.glob("*.woff")):
            height = -ImageFont.truetype(file, 100).getbbox("H", anchor="ls")[1]
            font = ImageFont.truetype(file, 100 * CAPITAL / height)
            bold, italic = file.stem.startswith("700"), file.stem.endswith("italic")
            for letter in ascii_letters:
                drawn.append(draw_letter(letter, font))
                rows.append((ascii_lowercase.index(letter.lower()), letter.isupper(), bold, italic, category))
    part = Part(torch.from_numpy(np.stack(drawn))[:, None], dict(zip(TYPE_MARKS, torch.tensor(rows).T, strict=True)))
    return part.take(shuffled(len(rows), 0))  # the first ones are of all families


def draw_letter(letter: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """Returns a white letter on black, whose ink is in the middle from left to right and stands on the baseline."""
    picture = Image.new("L", (SIZE, SIZE))
    left, _, right, _ = font.getbbox(letter, anchor="ls")
    ImageDraw.Draw(picture).text((SIZE / 2 - (left + right) / 2, BASELINE), letter, 255, font=font, anchor="ls")
    return np.asarray(picture)


def shuffled(n: int, seed: int) -> Tensor:
    """Returns the numbers below n in an order that follows a seed."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


SETS: dict[str, Callable[[Path, int], RealSet]] = {
    "fashion": open_fashion,
    "type": open_type,
    "digits": open_digits,
    "few-digits": open_few_digits,
}
