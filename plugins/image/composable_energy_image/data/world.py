"""The interface of worlds: they draw labels from a seed, and render pictures and masks of labels."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.options import check_integer


@dataclass(frozen=True)
class Field:
    """The declaration of a label.

    Attributes:
        shape: Shape of one picture's value; () for a number.
        dtype: `float32`, `int64` or `bool`.
        description: Its meaning, with unit and range.
        values: Names of the classes 0, 1, ... of a categorical label.
    """

    shape: tuple[int, ...]
    dtype: str
    description: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scenes:
    """Pictures of a world.

    Attributes:
        images: Bytes with shape $(N, C, H, W)$.
        labels: An array with shape $(N, *)$ for each field of the world.
        masks: Bytes with shape $(N, H, W)$: 0 for the background, $i$ for the $i$-th object; None if not requested.
    """

    images: np.ndarray
    labels: Mapping[str, np.ndarray]
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)


class World(ABC):
    """Abstract world: a distribution of pictures with known labels.

    The labels of picture `i` of a seed do not depend on the batch.

    Attributes:
        name: Name in the registry.
        channels: Channels $C$ of the pictures.
        size: Height and width of the pictures.
        fields: Declarations of the labels, by name.
    """

    name: str
    channels: int = 3
    size: int = 64
    fields: Mapping[str, Field] = MappingProxyType({})

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the constructor that are attributes of the same name; a folder of pictures is identified by them."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters if hasattr(self, name)}

    @abstractmethod
    def sample_labels(self, random: np.random.Generator) -> Mapping[str, Any]:
        """Returns the labels of one picture by its random generator: a value for each field."""

    @abstractmethod
    def render(self, labels: Mapping[str, np.ndarray], *, masks: bool = False) -> Scenes:
        """Returns the pictures of labels, an array with shape $(N, *)$ for each field, and with `masks` their masks.

        Raises:
            OptionError: A field is missing, or a value is out of range.
            ShapeError: An array does not have the shape of its field, or the length of the others.
        """

    def labels(self, n: int, seed: int = 0, start: int = 0) -> dict[str, np.ndarray]:
        """Returns the labels of pictures `start` to `start + n` of a seed; pictures of different seeds are independent.

        Raises:
            OptionError: A number is negative or not whole.
        """
        for name, value in (("n", n), ("seed", seed), ("start", start)):
            check_integer(name, value, least=0)
        keys = (np.array([seed, index], np.uint64) for index in range(start, start + n))
        drawn = [self.sample_labels(np.random.Generator(np.random.Philox(key=key))) for key in keys]
        return {name: np.array([one[name] for one in drawn], field.dtype).reshape(n, *field.shape) for name, field in self.fields.items()}

    def draw(self, n: int, seed: int = 0, start: int = 0, *, masks: bool = False) -> Scenes:
        """Returns pictures `start` to `start + n` of a seed, with their labels and, if requested, `masks`; for errors see `labels`."""
        return self.render(self.labels(n, seed, start), masks=masks)

    def check_labels(self, labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns labels as arrays with the dtypes of their fields, for `render`.

        Raises:
            OptionError: A field is missing or unknown, or a class is out of range.
            ShapeError: An array does not have the shape of its field, or the length of the others.
            DtypeError: An array cannot be converted to the dtype of its field.
        """
        if differing := sorted(labels.keys() ^ self.fields.keys()):
            raise OptionError(f"The world {self.name!r} has labels {', '.join(self.fields)}; missing or unknown: {', '.join(differing)}.")
        found = {name: np.asarray(labels[name]) for name in self.fields}
        n = next((len(array) for array in found.values() if array.ndim), 0)
        for name, field in self.fields.items():
            if (array := found[name]).shape != (n, *field.shape):
                wanted = ", ".join(map(str, ("N", *field.shape)))
                raise ShapeError(f"The label {name!r} must have shape ({wanted}), N = {n}; got {array.shape}.")
            if not np.can_cast(array.dtype, field.dtype, "same_kind"):
                raise DtypeError(f"The label {name!r} must be {field.dtype}, got {array.dtype}.")
            found[name] = array.astype(field.dtype, copy=False)
            if field.values and array.size and not 0 <= array.min() <= array.max() < len(field.values):
                raise OptionError(f"The label {name!r} must be 0 to {len(field.values) - 1}, got {array.min()} to {array.max()}.")
            if field.dtype == "float32" and not np.isfinite(array).all():
                raise OptionError(f"The label {name!r} must be finite, got NaN or infinity.")
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size} pixels, labels: {', '.join(self.fields)})"
