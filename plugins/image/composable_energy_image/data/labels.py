"""Labels: one attribute of all pictures, as indices with names, and their conversion from words and numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy.errors import DtypeError, OptionError, ShapeError

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
        wrong = (self.values < -1) | (self.values >= len(self.names))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise OptionError(
                f"Labels with {len(self.names)} names must be 0 to {len(self.names) - 1}, or -1 where unknown, "
                f"got {int(self.values[row])} for picture {row}."
            )

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


def labels_from_words(words: Sequence[str]) -> Labels:
    """Returns the labels in a column of text.

    A column of 0 and 1, -1 and 1, no and yes, or false and true (in any case) is binary. Any other is categorical: integers in numeric
    order, words sorted. Empty cells are unknown. Integers that a spreadsheet wrote as 1.0 count as integers, fractions as their multiples.
    """
    words = [_normalize(word) for word in words]
    known = set(words) - {""}
    if not known:
        raise OptionError("all values are empty: fill the column, or leave it out.")
    for pair in _PAIRS:
        if {word.lower() for word in known} <= set(pair):
            return _to_labels([word.lower() for word in words], pair, BINARY)
    numbers = {word for word in known if _NUMBER.fullmatch(word)}
    if numbers and numbers != known:
        raise OptionError(f"numbers such as {min(numbers)!r} beside words such as {min(known - numbers)!r}: use only one of them.")
    broken = sorted(word for word in numbers if not _INTEGER.fullmatch(word))
    if broken and (classes := _classes(torch.tensor([float(word or -1) for word in words], dtype=torch.float64))) is not None:
        return labels_from_numbers(classes)
    if broken:
        raise OptionError(f"{broken[0][:40]!r} is not an integer: an attribute has classes, so write the class of each number.")
    names = tuple(sorted(known, key=int) if numbers else sorted(known))
    return _to_labels(words, names, names)


def labels_from_numbers(values: Tensor) -> Labels:
    """Returns the labels in a tensor of integers or booleans.

    Booleans, and integers of 0 and 1, are binary. Other integers are indices into the names "0", "1" and so on; -1 is unknown. Fractions
    from 0 to 1, multiples of $1 / (k - 1)$ with both ends and half of the $k$ values among them, are the integers from 0 to $k - 1$.
    """
    fractions = _classes(values.detach().cpu().double()) if values.is_floating_point() else None
    if fractions is not None:
        values = fractions
    if values.is_floating_point() or values.is_complex():
        raise DtypeError(f"Labels must be integers or booleans, got {values.dtype}; write `labels.long()`.")
    values = values.detach().cpu().long()
    most = int(values.max()) if values.numel() else 0
    if most >= _MOST_CLASSES:
        raise OptionError(f"a label is {most}, and at most {_MOST_CLASSES - 1} is read: number the classes from 0.")
    return Labels(values, BINARY if most <= 1 else tuple(map(str, range(most + 1))))


def _classes(values: Tensor) -> Tensor | None:
    """Returns the integers 0 to $k - 1$ of multiples of $1 / (k - 1)$, and -1 where the value is; None for other numbers."""
    found = values[values != -1].unique()
    if not 2 <= len(found) <= _MOST_FRACTIONS or found[0] != 0 or found[-1] != 1:
        return None
    most = next((m for m in range(len(found) - 1, 2 * len(found)) if (found * m - (found * m).round()).abs().max() <= _NEAR), None)
    return None if most is None else torch.where(values == -1, values, (values * most).round()).long()


def _normalize(word: str) -> str:
    """Returns a word without spaces around it, and integers in one form; a spreadsheet writes 1 as 1.0."""
    word = word.strip()
    if _INTEGER.fullmatch(word):
        return str(int(word))
    return str(int(float(word))) if _NUMBER.fullmatch(word) and float(word).is_integer() else word


def _to_labels(words: Sequence[str], known: Sequence[str], names: tuple[str, ...]) -> Labels:
    index_of = {word: index for index, word in enumerate(known)} | {"": -1}
    return Labels(torch.tensor([index_of[word] for word in words], dtype=torch.int64), names)
