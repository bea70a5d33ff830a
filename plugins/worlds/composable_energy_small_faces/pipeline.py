r"""Drawn faces at 32 pixels: the pictures, the classes, the pipeline of diffusers that was trained on them, and a judge for their size.

The pictures are those of `draw`, at 64 pixels, averaged over squares of two by two. Each attribute is a class and its absence another one;
the last class stands for any face. The judge of 64 pixels was trained on sharp faces, and misses smiles of 32 pixels, so its network was
trained again on small ones, doubled in size.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from composable_energy_faces.draw import ATTRIBUTES
from composable_energy_faces.judge import Verdict, judge
from composable_energy_faces.networks import Judge
from composable_energy_image.weights import read_weights

FOLDER = Path(__file__).parent / "weights"
"""The folder of the weights that come with the package."""

CLASSES = tuple(f"{negated}{name}" for name in ATTRIBUTES for negated in ("", "not "))
"""The classes of the pipeline, in the order of their indices."""

ANY_FACE = len(CLASSES)
"""The index of the class of any face."""

PIPELINE = FOLDER / "small-faces"
"""The folder of the pipeline, for `ce.load(f"diffusers:{PIPELINE}")`."""


def class_of(name: str, present: bool = True) -> int:
    """Returns the index of the class of an attribute, or of its absence."""
    return 2 * ATTRIBUTES.index(name) + (not present)


def shrink(images: Tensor) -> Tensor:
    """Returns pictures of half the size: the means of squares of two by two pixels."""
    return avg_pool2d(images, 2)


@cache
def load_small_judge(folder: Path = FOLDER) -> Judge:
    """Returns the judge of pictures of 32 pixels, which is loaded once."""
    return read_weights(Judge(), "judge-small", folder)


def judge_small(images: Tensor, network: Judge | None = None) -> Verdict:
    """Returns the predictions of the judge for pictures of 32 pixels."""
    with torch.no_grad():
        return judge(interpolate(images, scale_factor=2), network or load_small_judge())
