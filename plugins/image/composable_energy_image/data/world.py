"""What a world is: labels drawn from a seed, and pictures with masks of any labels."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from composable_energy.errors import DtypeError, OptionError, ShapeError

__all__ = ["Field", "Scenes", "World", "whole"]


@dataclass(frozen=True)
class Field:
    """A label of each picture.

    Attributes:
        shape: Of one picture's value; () for a number.
        dtype: `float32`, `int64` or `bool`.
        about: What it says, with its unit and range.
        values: The names of the classes 0, 1, ... of a label that has some.
    """

    shape: tuple[int, ...]
    dtype: str
    about: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scenes:
    """Pictures of a world.

    Attributes:
        images: Bytes with shape $(N, C, H, W)$.
        labels: For each field of the world an array with shape $(N, *)$.
        masks: Bytes with shape $(N, H, W)$: 0 for the background, $i$ for the $i$-th object; None if not asked for.
    """

    images: np.ndarray
    labels: Mapping[str, np.ndarray]
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)


class World(ABC):
    """Abstract world: a kind of picture whose content is known.

    Picture `i` of a seed has the same labels in whatever batch it is drawn.

    Attributes:
        name: Its name in the registry.
        channels: $C$.
        size: Height and width of its pictures.
        fields: Its labels by name.
    """

    name: str
    channels: int = 3
    size: int = 64
    fields: Mapping[str, Field] = MappingProxyType({})

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the constructor, as far as the world keeps them under their names; a folder of pictures is known by them."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters if hasattr(self, name)}

    @abstractmethod
    def one(self, random: np.random.Generator) -> Mapping[str, Any]:
        """Returns the labels of one picture: for each field a value of its shape.

        Args:
            random: The random numbers of this picture, which are nobody else's.
        """

    @abstractmethod
    def render(self, labels: Mapping[str, np.ndarray], *, masks: bool = False) -> Scenes:
        """Returns the pictures of labels: those that `labels` drew, or any others.

        Args:
            labels: An array for each field, with shape $(N, *)$.
            masks: Whether masks are wanted.

        Raises:
            OptionError: A field is missing, or a value is out of range.
            ShapeError: An array does not fit its field, or not the others.
        """

    def labels(self, n: int, seed: int = 0, start: int = 0) -> dict[str, np.ndarray]:
        """Returns the labels of pictures `start` to `start + n` of a seed.

        Args:
            n: How many.
            seed: Which; pictures of different seeds are independent.
            start: The first.

        Raises:
            OptionError: A number is not a whole one, or negative.
        """
        for name, value in (("n", n), ("seed", seed), ("start", start)):
            check_integer(name, value)
        drawn = [self.one(_random(seed, index)) for index in range(start, start + n)]
        return {name: np.array([one[name] for one in drawn], field.dtype).reshape(n, *field.shape) for name, field in self.fields.items()}

    def draw(self, n: int, seed: int = 0, start: int = 0, *, masks: bool = False) -> Scenes:
        """Returns pictures `start` to `start + n` of a seed, with their labels.

        Args:
            n: How many.
            seed: Which; pictures of different seeds are independent.
            start: The first.
            masks: Whether masks are wanted.

        Raises:
            OptionError: A number is not a whole one, or negative.
        """
        return self.render(self.labels(n, seed, start), masks=masks)

    def checked(self, labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns labels as arrays of the types of their fields; for `render`.

        Raises:
            OptionError: A field is missing or unknown, or a class is out of range.
            ShapeError: An array does not fit its field, or not the others.
            DtypeError: An array does not have numbers of its field's type.
        """
        if differing := sorted(labels.keys() ^ self.fields.keys()):
            raise OptionError(
                f"The world {self.name!r} has the labels {', '.join(self.fields)}; missing or unknown: {', '.join(differing)}."
            )
        found = {name: np.asarray(labels[name]) for name in self.fields}
        n = next((len(array) for array in found.values() if array.ndim), 0)
        for name, field in self.fields.items():
            array = found[name]
            if array.shape != (n, *field.shape):
                raise ShapeError(f"The label {name!r} has shape ({', '.join(map(str, ('N', *field.shape)))}), N = {n}; got {array.shape}.")
            if not np.can_cast(array.dtype, field.dtype, "same_kind"):
                raise DtypeError(f"The label {name!r} is {field.dtype}, got {array.dtype}.")
            found[name] = array.astype(field.dtype, copy=False)
            if field.values and array.size and not 0 <= array.min() <= array.max() < len(field.values):
                raise OptionError(f"The label {name!r} is 0 to {len(field.values) - 1}, got {array.min()} to {array.max()}.")
            if field.dtype == "float32" and not np.isfinite(array).all():
                raise OptionError(f"The label {name!r} has values that are not finite.")
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size} pixels, labels: {', '.join(self.fields)})"


def check_integer(name: str, value: object) -> None:
    """Raises `OptionError` unless a value is a whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise OptionError(f"{name} must be a whole number of at least 0, got {value!r}.")


def _random(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
