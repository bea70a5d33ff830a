"""scikit-learn's digits, real handwriting of 8 x 8 pixels with 17 levels, and sets of pictures that are no such digits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from composable_energy.options import import_extra

TRAINING, HELD_OUT, LEVELS, SIZE = 1197, 200, 17, 8
LETTERS = "ACDEFGHJKLMNPQRTUVWXYadefhkmnprtuvwxy"  # without those that are written as a digit is
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif"),
    *("DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10"),
)


@dataclass(frozen=True)
class Split:
    """Pictures with shape $(n, 1, 8, 8)$ in [0, 1], and their digits, in three parts."""

    training: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def split(seed: int) -> Split:
    """Returns the 1,797 digits, divided at random into 1,197, 200 and 400."""
    found = import_extra("sklearn.datasets", "metrics").load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.from_numpy(found.images).float()[order].unsqueeze(1) / (LEVELS - 1), torch.from_numpy(found.target).long()[order]
    ends = (0, TRAINING, TRAINING + HELD_OUT, len(x))
    first, second, third = ((x[a:b], y[a:b]) for a, b in itertools.pairwise(ends))
    return Split(first, second, third)


def quantised(x: Tensor) -> Tensor:
    """Returns pictures with the 17 levels of the digits."""
    return (x.clamp(0, 1) * (LEVELS - 1)).round() / (LEVELS - 1)


def drawn(texts: Sequence[str], count: int, generator: torch.Generator) -> Tensor:
    """Returns characters drawn with fonts as the digits were scanned: 32 x 32 black or white pixels, counted in squares of 4 x 4."""
    folder = Path(import_extra("matplotlib", "viz").get_data_path()) / "fonts" / "ttf"
    pictures = []
    for _ in range(count):
        text = texts[int(torch.randint(len(texts), (), generator=generator))]
        font = FONTS[int(torch.randint(len(FONTS), (), generator=generator))]
        picture = Image.new("L", (96, 96))
        ImageDraw.Draw(picture).text((24, 12), text, fill=255, font=ImageFont.truetype(str(folder / f"{font}.ttf"), 56))
        box = picture.getbbox() or (0, 0, 96, 96)
        height = 30
        width = max(4, min(26, round((box[2] - box[0]) * height / (box[3] - box[1]))))
        fitted = torch.zeros(32, 32)
        letter = picture.crop(box).resize((width, height))
        left = (32 - width) // 2
        fitted[1 : 1 + height, left : left + width] = (torch.tensor(list(letter.tobytes())).view(height, width) > 127).float()
        pictures.append(F.avg_pool2d(fitted[None], 4))
    return torch.stack(pictures)


def textures(count: int, generator: torch.Generator) -> Tensor:
    """Returns waves of any direction, length, phase and contrast."""
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    angle, length, phase, contrast = (torch.rand(count, 1, 1, 1, generator=generator) for _ in range(4))
    along = x * (torch.pi * angle).cos() + y * (torch.pi * angle).sin()
    wave = (2 * torch.pi * (along / (2 + 6 * length) + phase)).sin()
    return 0.5 + (0.2 + 0.3 * contrast) * wave


def interpolations(x: Tensor, y: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns means of two pictures of different digits."""
    a, b = torch.randint(len(x), (2, 20 * count), generator=generator)
    kept = (y[a] != y[b]).nonzero().flatten()[:count]
    return (x[a[kept]] + x[b[kept]]) / 2


SETS: tuple[str, ...] = ("printed digits", "printed letters", "textures", "noise", "interpolations", "inverted", "constant")


def unusual_sets(x: Tensor, y: Tensor, seed: int) -> dict[str, Tensor]:
    """Returns as many pictures of each of seven kinds as there are test pictures."""
    count, generator = len(x), torch.Generator().manual_seed(seed)
    makers: dict[str, Callable[[], Tensor]] = {
        "printed digits": lambda: drawn("0123456789", count, generator),
        "printed letters": lambda: drawn(LETTERS, count, generator),
        "textures": lambda: textures(count, generator),
        "noise": lambda: torch.rand(x.shape, generator=generator),
        "interpolations": lambda: interpolations(x, y, count, generator),
        "inverted": lambda: 1 - x,
        "constant": lambda: torch.rand(count, 1, 1, 1, generator=generator).expand(x.shape),
    }
    return {name: quantised(makers[name]()).contiguous() for name in SETS}


def corrupted(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Returns pictures with a share of their pixels replaced by random levels."""
    random = quantised(torch.rand(x.shape, generator=generator))
    return torch.where(torch.rand(x.shape, generator=generator) < share, random, x)
