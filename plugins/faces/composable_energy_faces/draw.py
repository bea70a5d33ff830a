r"""Drawn faces: a small world with known, independent, balanced attributes.

A face is painted from back to front in coordinates $x$, to the right, and $y$, down: -1 to 1 at the edges without tilt, scale or shift.

Every number of a face is a hash of (seed, index of the face, name of the number). So face 17 of seed 3 does not depend on how many faces
are drawn with it, and a new nuisance factor does not change the others.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.options import check_integer
from composable_energy_faces.portrait import HashedRandom, paint_face

ATTRIBUTES = ("male", "smiling", "glasses", "hat", "old")
"""The binary attributes, in the order of the columns; each has probability 1/2, independently."""

HAIR_COLORS = ("black", "brown", "blond", "red")
"""The values of the attribute hair, each with probability 1/4."""

VALUES = {**dict.fromkeys(ATTRIBUTES, 2), "hair": len(HAIR_COLORS)}
"""The number of values of each attribute."""

_CHUNK = 64  # faces painted together, so that their maps fit into a core's cache


class DrawnFaces(NamedTuple):
    """A batch of drawn faces and their attributes.

    Attributes:
        images: The pictures, in [0, 1], with shape $(B, 3, H, H)$.
        attributes: The binary attributes, 0 or 1, in the order of `ATTRIBUTES`, with shape $(B, 5)$.
        hair: The index of the hair color in `HAIR_COLORS`, with shape $(B,)$.
    """

    images: Tensor
    attributes: Tensor
    hair: Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """Sets the number of threads to one, and restores it on exit: with more, an operation of microseconds waits for a busy core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def draw(n: int, *, seed: int = 0, start: int = 0, size: int = 64, given: Mapping[str, int] | None = None) -> DrawnFaces:
    """Draws faces `start` to `start + n - 1` of a seed, with height and width `size`, and their attributes. Seeds are independent.

    Args:
        given: Attributes to fix, such as `{"male": 1, "hair": 3}`; the rest of a face does not change.

    Raises:
        OptionError: A number is out of range, or `given` has an unknown attribute or value.

    Example:
        >>> draw(2, seed=1).images.shape
        torch.Size([2, 3, 64, 64])
    """
    for name, value, least in (("n", n, 0), ("seed", seed, 0), ("start", start, 0), ("size", size, 8)):
        check_integer(name, value, least)
    given = dict(given or {})
    for name, value in given.items():
        if name not in VALUES or value not in range(VALUES[name]):
            allowed = ", ".join(f"{key} in 0..{count - 1}" for key, count in VALUES.items())
            raise OptionError(f"Cannot fix {name}={value!r}; the attributes are {allowed}.")
    chunks = [_paint(HashedRandom(seed, some), size, given) for some in torch.arange(start, start + n).split(_CHUNK)]
    return DrawnFaces(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def _paint(numbers: HashedRandom, size: int, given: Mapping[str, int]) -> DrawnFaces:
    drawn = {name: numbers.integer(name, count) for name, count in VALUES.items()}
    drawn |= {name: torch.full_like(drawn[name], value) for name, value in given.items()}
    hair = drawn.pop("hair")
    attributes = torch.stack([*drawn.values()], 1).float()
    return DrawnFaces(paint_face(numbers, attributes, hair, size), attributes, hair)
