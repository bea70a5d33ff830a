"""Labelled pictures stored as bytes: a quarter of the memory of float32, and memory-mapped files need not fit in memory.

Labels are one attribute of all pictures, as indices with names, and are made from words and numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from typing import Any
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.sampling.noise import key_of, philox
from composable_energy_viz.files import check_range

BINARY = ("no", "yes")
_PAIRS = (("0", "1"), ("-1", "1"), ("no", "yes"), ("false", "true"))


@dataclass(frozen=True, eq=False)
class Labels:
    """One attribute of all pictures.

    Attributes:
        values: Indices into `names`, int64 with shape $(N,)$; -1 where the value is unknown.
        names: Names of the values; `("no", "yes")` for a binary attribute.

    Raises:
        ShapeError: `values` is not one-dimensional.
        DtypeError: `values` is not int64.
        OptionError: A value is not the index of a name, or a name occurs twice.

    Example:
        >>> import torch
        >>> Labels(torch.tensor([1, 0, -1]), ("no", "yes")).binary
        True
    """

    values: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.values.ndim != 1:
            raise ShapeError(f"Labels must have shape (N,), one number for each picture, got {tuple(self.values.shape)}.")
        if self.values.dtype != torch.int64:
            raise DtypeError(f"Labels must be int64, got {self.values.dtype}; write `values.long()`.")
        if len(set(self.names)) < len(self.names):
            raise OptionError(f"Names of labels must be distinct, got {', '.join(self.names)}.")
        if (wrong := (self.values < -1) | (self.values >= len(self.names))).any():
            row = int(wrong.nonzero()[0])
            raise OptionError(f"Labels are 0 to {len(self.names) - 1}, or -1 where unknown, got {int(self.values[row])} for picture {row}.")

    @property
    def binary(self) -> bool:
        """Whether the attribute has the values no and yes."""
        return self.names == BINARY

    @property
    def known(self) -> Tensor:
        """Whether each value is known, with shape $(N,)$."""
        return self.values >= 0

    def take(self, index: Tensor | slice) -> Labels:
        """Returns the labels of some pictures."""
        return Labels(self.values[index], self.names)


_MOST_CLASSES = 1_000_000
_MOST_FRACTIONS, _NEAR = 1000, 0.02  # distinct ones, and their distance from multiples, since files round
_INTEGER = re.compile(r"[+-]?\d{1,999}")  # Python converts no more than 4,300 digits
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def check_spellings(names: Sequence[str]) -> Sequence[str]:
    """Returns names of values or attributes; raises `OptionError` if two are one to a reader, or to a file system that ignores case."""
    seen: dict[str, str] = {}
    for name in names:
        if (key := " ".join(normalize("NFKC", name).casefold().split())) in seen:
            raise OptionError(f"{seen[key]!r} and {name!r} are alike, except for case, spaces or accents' form: rename one.")
        seen[key] = name
    return names


def labels_from_words(words: Sequence[str]) -> Labels:
    """Returns the labels in a column of text.

    A column of 0 and 1, -1 and 1, no and yes, or false and true (in any case) is binary. Any other is categorical: integers in numeric
    order, words sorted. Empty cells are unknown; `NA`, `nan` and `?` are refused. Integers that a spreadsheet wrote as 1.0 count as
    integers, fractions as their multiples.
    """
    words = [_normalize(word) for word in words]
    if not (known := set(words) - {""}):
        raise OptionError("all values are empty: fill the column, or leave it out.")
    if missing := sorted(word for word in known if word.lower() in ("na", "n/a", "nan", "null", "?")):
        raise OptionError(f"{missing[0]!r} often means unknown: leave such cells empty, or write that class in another way.")
    if all(re.fullmatch(r"[+-]?\d+,\d+", word) for word in known):
        raise OptionError(f"{min(known)!r} has a decimal comma: write numbers with a point, and names in another way.")
    for pair in _PAIRS:
        if {word.lower() for word in known} <= set(pair):
            return _as_labels([word.lower() for word in words], pair, BINARY)
    if (numbers := {word for word in known if _NUMBER.fullmatch(word)}) and numbers != known:
        raise OptionError(f"numbers such as {min(numbers)!r} beside words such as {min(known - numbers)!r}: use only one of them.")
    broken = sorted(word for word in numbers if not _INTEGER.fullmatch(word))
    if broken:
        values = torch.tensor([float(word or -1) for word in words], dtype=torch.float64)
        if "-1" not in known and (classes := _classes(values)) is not None:
            return labels_from_numbers(classes)
        raise OptionError(f"{broken[0][:40]!r} is not an integer: an attribute has classes, so write the class of each number.")
    names = tuple(sorted(known, key=int) if numbers else check_spellings(sorted(known)))
    return _as_labels(words, names, names)


def labels_from_numbers(values: Tensor) -> Labels:
    """Returns the labels in a tensor of integers or booleans.

    Booleans, and integers of 0 and 1, are binary. Other integers are indices into the names "0", "1" and so on; -1 is unknown. Fractions
    from 0 to 1, multiples of $1 / (k - 1)$ with both ends and half of the $k$ values among them, are the integers from 0 to $k - 1$.
    """
    if values.is_floating_point() and (fractions := _classes(values.detach().cpu().double())) is not None:
        values = fractions
    if values.is_floating_point() or values.is_complex():
        raise DtypeError(f"Labels must be integers or booleans, got {values.dtype}; write `labels.long()`.")
    values = values.detach().cpu().long()
    if (most := int(values.max()) if values.numel() else 0) >= _MOST_CLASSES:
        raise OptionError(f"a label is {most}, and at most {_MOST_CLASSES - 1} is read: number the classes from 0.")
    return Labels(values, BINARY if most <= 1 else tuple(map(str, range(most + 1))))


def _classes(values: Tensor) -> Tensor | None:
    """Returns the integers 0 to $k - 1$ of multiples of $1 / (k - 1)$, and -1 where the value is; None for other numbers."""
    if not 2 <= len(found := values[values != -1].unique()) <= _MOST_FRACTIONS or found[0] != 0 or found[-1] != 1:
        return None
    most = next((m for m in range(len(found) - 1, 2 * len(found)) if (found * m - (found * m).round()).abs().max() <= _NEAR), None)
    return None if most is None else torch.where(values == -1, values, (values * most).round()).long()


def _normalize(word: str) -> str:
    """Returns a word without spaces around it, and integers in one form; a spreadsheet writes 1 as 1.0."""
    word = word.strip()
    if _INTEGER.fullmatch(word):
        return str(int(word))
    return str(int(Decimal(word))) if _NUMBER.fullmatch(word) and float(word).is_integer() else word  # floats round above 2^53


def _as_labels(words: Sequence[str], known: Sequence[str], names: tuple[str, ...]) -> Labels:
    index_of = {word: index for index, word in enumerate(known)} | {"": -1}
    return Labels(torch.tensor([index_of[word] for word in words], dtype=torch.int64), names)


CHANNELS = (1, 3)


class Pictures:
    """Labelled pictures, stored as bytes.

    Args:
        pixels: Bytes with shape $(N, C, H, W)$ and 1 or 3 channels, in memory or memory-mapped.
        labels: Attributes by name, one value for each picture.
        origin: A description of the pictures and their source.
        rows: Indices of the pictures in `pixels`, in order; None for all of them.

    Raises:
        ShapeError: The pixels have another shape, or the number of labels differs.
        DtypeError: The pixels are not bytes.
        OptionError: Two attributes have the same name but for case or spaces.

    Example:
        >>> import torch
        >>> pictures = Pictures.from_tensors(torch.rand(4, 1, 8, 8), {"round": [0, 1, 1, 0]})
        >>> pictures
        4 pictures of (1, 8, 8) from tensors, labels: round (no, yes)
        >>> pictures.images(torch.tensor([2, 0])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, pixels: np.ndarray, labels: Mapping[str, Labels], origin: str = "arrays", rows: Tensor | None = None) -> None:
        if pixels.dtype != np.uint8:
            raise DtypeError(f"Pixels must be uint8, got {pixels.dtype}; use `Pictures.from_tensors` for numbers in [0, 1].")
        _check_shape(pixels.shape)
        check_spellings([*labels])
        self.labels = dict(labels)
        self.origin = origin
        self._pixels, self._rows = pixels, rows
        for name, some in labels.items():
            if len(some.values) != len(self):
                raise ShapeError(f"There are {len(self)} pictures and {len(some.values)} labels {name!r}; give one for each picture.")

    @classmethod
    def from_tensors(
        cls, images: Tensor | np.ndarray, labels: Mapping[str, Tensor | np.ndarray | Sequence[Any] | Labels] | None = None
    ) -> Pictures:
        """Returns pictures from tensors or arrays in memory.

        Numbers in [0, 1] are rounded to the nearest of 256 values.

        Args:
            images: Numbers in [0, 1] or bytes, with shape $(N, C, H, W)$ and 1 or 3 channels.
            labels: Attributes by name, one value for each picture: booleans, integers with -1 for unknown, or words as in a table.

        Raises:
            ShapeError: The images have another shape, or the number of labels differs.
            DtypeError: The images are integers other than bytes, or the labels are not whole numbers.
            OptionError: Numbers lie outside [0, 1], or a label is out of range.
        """
        _check_shape(tuple(images.shape))
        if isinstance(images, np.ndarray):
            pixels = images if images.dtype == np.uint8 else to_bytes(torch.tensor(images))
        else:
            pixels = images.detach().cpu().numpy() if images.dtype == torch.uint8 else to_bytes(images.detach())
        return cls(pixels, {name: _to_labels(name, some) for name, some in (labels or {}).items()}, "tensors")

    def __len__(self) -> int:
        return len(self._pixels) if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        listed = [f"{name} ({', '.join(some.names[:8])}{', ...' if len(some.names) > 8 else ''})" for name, some in self.labels.items()]
        listed = [*listed[:4], f"{len(listed) - 4} more"] if len(listed) > 5 else listed
        labels = f"labels: {', '.join(listed)}" if listed else "no labels"
        return f"{len(self):,} pictures of {tuple(self.event_shape)} from {self.origin}, {labels}"

    @property
    def event_shape(self) -> torch.Size:
        return torch.Size(self._pixels.shape[1:])

    @property
    def pixels(self) -> np.ndarray:
        """All bytes, with shape $(N, C, H, W)$. A subset by index is copied; use `images` for a few of many pictures."""
        return self._pixels if self._rows is None else self._pixels[self._rows.numpy()]

    def images(self, index: Tensor) -> Tensor:
        """Returns pictures by index in float32 in [0, 1], with shape $(B, C, H, W)$, on the device of the index.

        Raises:
            IndexError: An index is out of range.
        """
        rows = index.cpu() if self._rows is None else self._rows[index.cpu()]
        return torch.from_numpy(np.ascontiguousarray(self._pixels[rows.numpy()])).to(index.device).float().div_(255)

    def take(self, index: Tensor | slice) -> Pictures:
        """Returns a subset of the pictures, in the order of the index (a slice, int64 or booleans), without copying pixels.

        Raises:
            IndexError: An index is out of range.
        """
        if isinstance(index, slice):
            index = torch.tensor(range(len(self))[index], dtype=torch.int64)
        index = torch.arange(len(self))[torch.as_tensor(index).cpu()]  # resolves booleans and negative indices, and checks the range
        labels = {name: some.take(index) for name, some in self.labels.items()}
        return Pictures(self._pixels, labels, self.origin, index if self._rows is None else self._rows[index])

    def split(self, share: float, seed: int = 0) -> tuple[Pictures, Pictures]:
        """Returns a random share of the pictures, in (0, 1), and the rest, both in their order here.

        The same share and seed select the same pictures on every machine, and a larger share contains a smaller one.

        Raises:
            OptionError: A part would be empty.
        """
        count = round(share * len(self)) if 0 < share < 1 else 0
        if not 0 < count < len(self):
            raise OptionError(f"share must leave pictures in both parts, got {share} of {len(self)} pictures.")
        order = philox(key_of(seed), (torch.arange(len(self)), 0, 0, 0))[0].argsort(stable=True)
        return self.take(order[:count].sort().values), self.take(order[count:].sort().values)

    def variable(self, name: str) -> Labels:
        """Returns the labels of an attribute that can be learnt: it exists, and its values vary.

        Raises:
            OptionError: There is no such attribute, or all known values are equal.
        """
        if name not in self.labels:
            near = get_close_matches(name, self.labels, n=3)
            if not self.labels:
                raise OptionError(
                    f"There is no attribute {name!r}: {self.origin} has no labels. Add a CSV with the columns `file` and `{name}` to the "
                    f"folder, or name one by `labels` (`data.labels` of a recipe, --labels of the command `train`)"
                    f"{', or put the pictures of each class into a sub-folder' * (name == 'class')}."
                )
            known = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(self.labels)}."
            raise OptionError(f"There is no attribute {name!r}: {known}")
        some = self.labels[name]
        if len(found := some.values[some.known].unique()) < 2:
            what = f"is {some.names[int(found)]!r} for all pictures where it is known" if len(found) else "is unknown for all pictures"
            signs = some.binary and not some.known.all()
            hint = " Were the labels -1 and 1? As numbers -1 is unknown: write `labels > 0`." if signs else ""
            raise OptionError(f"The attribute {name!r} {what}, so there is nothing to learn: add pictures with another value.{hint}")
        return some


def to_bytes(images: Tensor) -> np.ndarray:
    """Returns numbers in [0, 1] as the nearest bytes."""
    if not images.is_floating_point():
        raise DtypeError(f"Images must be uint8, or floating in [0, 1], got {images.dtype}; write `images.to(torch.uint8)` of 0 to 255.")
    return check_range(images).float().mul(255).round_().to(torch.uint8).cpu().numpy()


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 4 or shape[1] not in CHANNELS or 0 in shape[2:]:
        hint = " Channels come second: write `images.permute(0, 3, 1, 2)`." if len(shape) == 4 and shape[3] in CHANNELS else ""
        hint = " Grey pictures have one channel: write `images[:, None]`." if len(shape) == 3 else hint
        raise ShapeError(f"Pictures must have shape (N, C, H, W) with 1 or 3 channels, got {tuple(shape)}.{hint}")


def _to_labels(name: str, some: Tensor | np.ndarray | Sequence[Any] | Labels) -> Labels:
    if isinstance(some, Labels):
        return some
    words = [] if isinstance(some, Tensor) else np.asarray(some, dtype=object)
    try:
        if np.ndim(words) == 1 and len(words) and all(isinstance(word, str) for word in words):
            return labels_from_words(list(words))
        return labels_from_numbers(_to_tensor(some))
    except (ShapeError, DtypeError, OptionError) as error:
        raise type(error)(f"Labels {name!r}: {error}") from None


def _to_tensor(some: Any) -> Tensor:
    try:
        return some if isinstance(some, Tensor) else torch.tensor(some)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"they are neither numbers nor words ({error}); write -1, or an empty word, for unknown values.") from None
