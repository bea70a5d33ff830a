r"""Drawn faces: a small world whose attributes are known, independent and fair.

A face is painted from back to front in face coordinates: $x$ to the right and $y$ down, both from -1 to 1 at the edges of a picture that is
not tilted, scaled or shifted.

Every number of a face is a hash of (seed, index of the face, name of the number). So face 17 of seed 3 is the same picture whether it is
drawn alone or among a million, and a new nuisance leaves all others as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from composable_energy_faces.canvas import Numbers
from composable_energy_faces.portrait import paint_face
from composable_energy_faces.threads import one_thread

__all__ = ["ATTRIBUTES", "HAIR_COLORS", "Drawn", "draw"]

ATTRIBUTES = ("male", "smiling", "glasses", "hat", "old")
"""The binary attributes, in the order of the columns; each is a fair coin, independent of the others."""

HAIR_COLORS = ("black", "brown", "blond", "red")
"""The values of the attribute hair, each with probability 1/4."""

_CHUNK = 64  # faces painted together: their maps fit into a core's cache


class Drawn(NamedTuple):
    """A batch of drawn faces and what is true of them.

    Attributes:
        images: The pictures, in [0, 1], with shape $(B, 3, H, H)$.
        attributes: The binary attributes, 0 or 1, in the order of `ATTRIBUTES`, with shape $(B, 5)$.
        hair: The index of the hair color in `HAIR_COLORS`, with shape $(B,)$.
    """

    images: Tensor
    attributes: Tensor
    hair: Tensor


@one_thread()
def draw(n: int, *, seed: int = 0, start: int = 0, size: int = 64, given: Mapping[str, int] | None = None) -> Drawn:
    """Draws faces `start` to `start + n - 1` of a seed.

    Args:
        n: How many faces.
        seed: Which endless sequence of faces; sequences of different seeds are independent.
        start: The index of the first face in the sequence.
        size: Height and width of the pictures in pixels.
        given: Attributes to fix, such as `{"male": 1, "hair": 3}`; everything else of a face stays as it was.

    Returns:
        The pictures, with shape $(n, 3, size, size)$, and their attributes.

    Raises:
        ValueError: If a number is out of range, or `given` names an unknown attribute or value.

    Example:
        >>> draw(2, seed=1).images.shape
        torch.Size([2, 3, 64, 64])
    """
    if n < 0 or start < 0 or size < 8:
        raise ValueError(f"Expected n >= 0, start >= 0 and size >= 8, got n={n}, start={start}, size={size}.")
    given = dict(given or {})
    values = {**dict.fromkeys(ATTRIBUTES, 2), "hair": len(HAIR_COLORS)}
    for name, value in given.items():
        if name not in values or value not in range(values[name]):
            allowed = ", ".join(f"{key} in 0..{count - 1}" for key, count in values.items())
            raise ValueError(f"Cannot fix {name}={value!r}; the attributes are {allowed}.")
    chunks = [
        _paint(Numbers(seed, torch.arange(first, min(first + _CHUNK, start + n))), size, given) for first in range(start, start + n, _CHUNK)
    ]
    if not chunks:
        return Drawn(torch.zeros(0, 3, size, size), torch.zeros(0, len(ATTRIBUTES)), torch.zeros(0, dtype=torch.long))
    return Drawn(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def _paint(numbers: Numbers, size: int, given: Mapping[str, int]) -> Drawn:
    coins = [numbers.integer(name, 2) for name in ATTRIBUTES]
    for index, name in enumerate(ATTRIBUTES):
        if name in given:
            coins[index] = torch.full_like(coins[index], given[name])
    hair = numbers.integer("hair", len(HAIR_COLORS))
    if "hair" in given:
        hair = torch.full_like(hair, given["hair"])
    attributes = torch.stack(coins, 1).float()
    return Drawn(paint_face(numbers, attributes, hair, size), attributes, hair)
