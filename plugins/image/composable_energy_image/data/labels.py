"""Labels: one attribute of all pictures, as indices with names; read from words and from numbers by the same rules everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy.errors import DtypeError, OptionError, ShapeError

__all__ = ["BINARY", "Labels", "labels_of_numbers", "labels_of_words"]

BINARY = ("no", "yes")
_PAIRS = (("0", "1"), ("-1", "1"), ("no", "yes"), ("false", "true"))


@dataclass(frozen=True, eq=False)
class Labels:
    """One attribute of all pictures.

    Attributes:
        values: Indices into `names`, int64 with shape $(N,)$; -1 where the value is unknown.
        names: What the indices mean; a binary attribute has `("no", "yes")`.

    Raises:
        ShapeError: `values` is no row of numbers.
        DtypeError: It is not int64.
        OptionError: A value is no index of a name, or a name stands twice.

    Example:
        >>> import torch
        >>> Labels(torch.tensor([1, 0, -1]), ("no", "yes")).binary
        True
    """

    values: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.values.ndim != 1:
            raise ShapeError(f"Labels have shape (N,), one number for each picture, got {tuple(self.values.shape)}.")
        if self.values.dtype != torch.int64:
            raise DtypeError(f"Labels are int64, got {self.values.dtype}; write `values.long()`.")
        if len(set(self.names)) < len(self.names):
            raise OptionError(f"Each name of a label stands once, got {', '.join(self.names)}.")
        wrong = (self.values < -1) | (self.values >= len(self.names))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise OptionError(
                f"Labels with {len(self.names)} names are 0 to {len(self.names) - 1}, or -1 where unknown, "
                f"got {int(self.values[row])} for picture {row}."
            )

    @property
    def binary(self) -> bool:
        """Whether the attribute is one of no and yes."""
        return self.names == BINARY

    @property
    def known(self) -> Tensor:
        """Where the value is known, with shape $(N,)$."""
        return self.values >= 0

    def take(self, index: Tensor | slice) -> Labels:
        """Returns the labels of some pictures."""
        return Labels(self.values[index], self.names)


def labels_of_words(words: Sequence[str]) -> Labels:
    """Returns the labels that a column of text tells.

    A column of 0 and 1, -1 and 1, no and yes, or false and true (in capitals or not) is binary. Any other is categorical: integers in
    their order, words sorted. Empty is unknown. What spreadsheets make of integers beside empty cells, such as 1.0, counts as integer.

    Raises:
        OptionError: All are empty, some are numbers and others words, or a number is no integer.
    """
    words = [_plain(word) for word in words]
    known = set(words) - {""}
    if not known:
        raise OptionError("all values are empty: fill it, or leave it out.")
    for pair in _PAIRS:
        if {word.lower() for word in known} <= set(pair):
            return _indexed([word.lower() for word in words], pair, BINARY)
    numbers = {word for word in known if _is_number(word)}
    if numbers and numbers != known:
        raise OptionError(f"numbers such as {min(numbers)!r} beside words such as {min(known - numbers)!r}: write all as one of them.")
    broken = sorted(word for word in numbers if not _is_integer(word))
    if broken:
        raise OptionError(f"{broken[0]!r} is no integer: an attribute has classes; write in which class each number falls.")
    names = tuple(sorted(known, key=int) if numbers else sorted(known))
    return _indexed(words, names, names)


def labels_of_numbers(values: Tensor) -> Labels:
    """Returns the labels that integers or truth values tell.

    Truth values and numbers of 0 and 1 are binary, others are indices into the names "0", "1" and so on; -1 is unknown.

    Raises:
        ShapeError: They are no row of numbers.
        DtypeError: They are neither integers nor truth values.
        OptionError: One is below -1.
    """
    if values.is_floating_point() or values.is_complex():
        raise DtypeError(f"Labels are integers or truth values, got {values.dtype}; write `labels.long()`.")
    values = values.detach().cpu().long()
    most = int(values.max()) if values.numel() else 0
    return Labels(values, BINARY if most <= 1 else tuple(map(str, range(most + 1))))


def _plain(word: str) -> str:
    word = word.strip()
    if _is_number(word) and not _is_integer(word) and float(word).is_integer():
        return str(int(float(word)))
    return str(int(word)) if _is_integer(word) else word


def _is_number(word: str) -> bool:
    """Whether a word is a number in digits; `float` takes "nan" and "1_2" too, which are words here."""
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word and any(letter.isdigit() for letter in word)


def _is_integer(word: str) -> bool:
    return word.lstrip("+-").isdecimal() and _is_number(word)


def _indexed(words: Sequence[str], known: Sequence[str], names: tuple[str, ...]) -> Labels:
    place = {word: index for index, word in enumerate(known)} | {"": -1}
    return Labels(torch.tensor([place[word] for word in words], dtype=torch.int64), names)
