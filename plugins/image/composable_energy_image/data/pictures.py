"""Pictures with labels, kept as bytes: a quarter of the memory of float32, and a file that is mapped need not fit in memory at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.philox import philox
from composable_energy_image.data.labels import Labels, labels_of_numbers, labels_of_words

__all__ = ["CHANNELS", "Pictures", "to_bytes"]

CHANNELS = (1, 3)


class Pictures:
    """Pictures kept as bytes, with labels.

    Args:
        pixels: Bytes with shape $(N, C, H, W)$ in the memory or mapped from a file, with 1 or 3 channels.
        labels: The attributes by name, one value for each picture.
        origin: What they are and where they come from, in words.
        rows: Which of the pixels are the pictures, as indices in order; None for all of them.

    Attributes:
        labels: The attributes by name.
        origin: What they are and where they come from, in words.

    Raises:
        ShapeError: The shape is another, or labels are not as many as pictures.
        DtypeError: The pixels are no bytes.

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
            raise DtypeError(f"Pixels are uint8, got {pixels.dtype}; use `Pictures.from_tensors` for numbers in [0, 1].")
        _check_shape(pixels.shape)
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
        """Returns pictures that are in the memory already.

        Numbers in [0, 1] are rounded to the nearest of the 256 values that a byte has.

        Args:
            images: Numbers in [0, 1] or bytes, with shape $(N, C, H, W)$ and 1 or 3 channels.
            labels: Attributes by name, one value for each picture: truth values, integers with -1 where unknown, or words, read as in
                a table.

        Raises:
            ShapeError: The shape is another, or labels are not as many as pictures.
            DtypeError: The images are integers other than bytes, or the labels have fractions.
            OptionError: Numbers lie outside [0, 1], or a label is out of range.
        """
        _check_shape(tuple(images.shape))
        if isinstance(images, np.ndarray):
            pixels = images if images.dtype == np.uint8 else to_bytes(torch.tensor(images))
        else:
            pixels = images.detach().cpu().numpy() if images.dtype == torch.uint8 else to_bytes(images.detach())
        return cls(pixels, {name: _labels(name, some) for name, some in (labels or {}).items()}, "tensors")

    def __len__(self) -> int:
        return len(self._pixels) if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        told = [f"{name} ({', '.join(some.names[:8])}{', ...' if len(some.names) > 8 else ''})" for name, some in self.labels.items()]
        told = [*told[:4], f"{len(told) - 4} more"] if len(told) > 5 else told
        labels = f"labels: {', '.join(told)}" if told else "no labels"
        return f"{len(self):,} pictures of {tuple(self.event_shape)} from {self.origin}, {labels}"

    @property
    def event_shape(self) -> torch.Size:
        """The shape $(C, H, W)$ of one picture."""
        return torch.Size(self._pixels.shape[1:])

    @property
    def pixels(self) -> np.ndarray:
        """All bytes, with shape $(N, C, H, W)$; of a choice by index a copy, so take `images` of a few where they are many."""
        return self._pixels if self._rows is None else self._pixels[self._rows.numpy()]

    def images(self, index: Tensor) -> Tensor:
        """Returns some pictures in float32 in [0, 1], with shape $(B, C, H, W)$.

        Args:
            index: Which, int64 with shape $(B,)$; the pictures are on its device.

        Raises:
            IndexError: There is no such picture.
        """
        rows = index.cpu() if self._rows is None else self._rows[index.cpu()]
        chosen = np.ascontiguousarray(self._pixels[rows.numpy()])
        return torch.from_numpy(chosen).to(index.device).float().div_(255)

    def take(self, index: Tensor | slice) -> Pictures:
        """Returns some of the pictures, in the order of an index; no pixel is copied.

        Args:
            index: A slice, indices as int64, or truth values, one for each picture.

        Raises:
            IndexError: There is no such picture.
        """
        if isinstance(index, slice):
            index = torch.tensor(range(len(self))[index], dtype=torch.int64)
        index = torch.arange(len(self))[index.cpu()]  # truth values, negative indices and those out of range as in torch
        labels = {name: some.take(index) for name, some in self.labels.items()}
        return Pictures(self._pixels, labels, self.origin, index if self._rows is None else self._rows[index])

    def split(self, share: float, seed: int = 0) -> tuple[Pictures, Pictures]:
        """Returns a share of the pictures, chosen at random, and the others, both in their order here.

        The same share and seed choose the same pictures in every version and on every machine, and a larger share holds a smaller one.

        Args:
            share: How much the first part gets, in (0, 1).
            seed: Which choice.

        Raises:
            OptionError: A part would be empty.
        """
        count = round(share * len(self)) if 0 < share < 1 else 0
        if not 0 < count < len(self):
            raise OptionError(f"share must leave pictures in both parts, got {share} of {len(self)} pictures.")
        order = philox(seed % 2**64, (torch.arange(len(self)), 0, 0, 0))[0].argsort(stable=True)
        return self.take(order[:count].sort().values), self.take(order[count:].sort().values)

    def variable(self, name: str) -> Labels:
        """Returns an attribute that can be learnt: it is there, and pictures differ in it.

        Args:
            name: Of the attribute.

        Raises:
            OptionError: There is no such attribute, or all known values are equal.
        """
        if name not in self.labels:
            near = get_close_matches(name, self.labels, n=3)
            known = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(self.labels) or 'none'}."
            raise OptionError(f"There is no attribute {name!r}: {known}")
        some = self.labels[name]
        found = some.values[some.known].unique()
        if len(found) < 2:
            what = f"is {some.names[int(found)]!r} for all pictures where it is known" if len(found) else "is unknown for all pictures"
            signs = some.binary and not some.known.all()
            hint = " Were the labels -1 and 1? As numbers -1 is unknown: write `labels > 0`." if signs else ""
            raise OptionError(f"The attribute {name!r} {what}, so there is nothing to learn: add pictures of another value.{hint}")
        return some


def to_bytes(images: Tensor) -> np.ndarray:
    """Returns numbers in [0, 1] as the nearest bytes.

    Raises:
        DtypeError: They are integers.
        OptionError: Some lie outside [0, 1].
    """
    if not images.is_floating_point():
        raise DtypeError(
            f"Images are uint8, or floating in [0, 1], got {images.dtype}; for integers of 0 to 255 write `images.to(torch.uint8)`."
        )
    low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        hints = {"write `(images + 1) / 2`": -1 <= low < 0 and high <= 1, "write `images / 255`": low >= 0 and high <= 255}
        hint = next((hint for hint, fits in hints.items() if fits), "scale them")
        raise OptionError(f"Images lie in [0, 1], got [{low:.4g}, {high:.4g}]; {hint}.")
    return images.float().mul(255).round_().to(torch.uint8).cpu().numpy()


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 4 or shape[1] not in CHANNELS or 0 in shape[2:]:
        hint = " Channels come second: write `images.permute(0, 3, 1, 2)`." if len(shape) == 4 and shape[3] in CHANNELS else ""
        hint = " Grey pictures have one channel: write `images[:, None]`." if len(shape) == 3 else hint
        raise ShapeError(f"Pictures have shape (N, C, H, W) with 1 or 3 channels, got {tuple(shape)}.{hint}")


def _labels(name: str, some: Tensor | np.ndarray | Sequence[Any] | Labels) -> Labels:
    if isinstance(some, Labels):
        return some
    try:
        if not isinstance(some, Tensor) and len(some) and isinstance(some[0], str):
            return labels_of_words([str(word) for word in some])
        return labels_of_numbers(_tensor(some))
    except (ShapeError, DtypeError, OptionError) as error:
        raise type(error)(f"Labels {name!r}: {error}") from None


def _tensor(some: Any) -> Tensor:
    try:
        return some if isinstance(some, Tensor) else torch.tensor(some)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"they are neither numbers nor words ({error}); write -1, or an empty word, where one is unknown.") from None
