"""Labelled pictures stored as bytes: a quarter of the memory of float32, and memory-mapped files need not fit in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.sampling.noise import key_of, philox
from composable_energy_image.data.labels import Labels, labels_from_numbers, labels_from_words

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
        chosen = np.ascontiguousarray(self._pixels[rows.numpy()])
        return torch.from_numpy(chosen).to(index.device).float().div_(255)

    def take(self, index: Tensor | slice) -> Pictures:
        """Returns a subset of the pictures, in the order of the index (a slice, int64 or booleans), without copying pixels.

        Raises:
            IndexError: An index is out of range.
        """
        if isinstance(index, slice):
            index = torch.tensor(range(len(self))[index], dtype=torch.int64)
        index = torch.arange(len(self))[index.cpu()]  # resolves booleans and negative indices, and checks the range
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
        found = some.values[some.known].unique()
        if len(found) < 2:
            what = f"is {some.names[int(found)]!r} for all pictures where it is known" if len(found) else "is unknown for all pictures"
            signs = some.binary and not some.known.all()
            hint = " Were the labels -1 and 1? As numbers -1 is unknown: write `labels > 0`." if signs else ""
            raise OptionError(f"The attribute {name!r} {what}, so there is nothing to learn: add pictures with another value.{hint}")
        return some


def to_bytes(images: Tensor) -> np.ndarray:
    """Returns numbers in [0, 1] as the nearest bytes."""
    if not images.is_floating_point():
        raise DtypeError(
            f"Images must be uint8, or floating in [0, 1], got {images.dtype}; for integers of 0 to 255 write `images.to(torch.uint8)`."
        )
    low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        hints = {"write `(images + 1) / 2`": -1 <= low < 0 and high <= 1, "write `images / 255`": low >= 0 and high <= 255}
        hint = next((hint for hint, fits in hints.items() if fits), "scale them")
        raise OptionError(f"Images must lie in [0, 1], got [{low:.4g}, {high:.4g}]; {hint}.")
    return images.float().mul(255).round_().to(torch.uint8).cpu().numpy()


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 4 or shape[1] not in CHANNELS or 0 in shape[2:]:
        hint = " Channels come second: write `images.permute(0, 3, 1, 2)`." if len(shape) == 4 and shape[3] in CHANNELS else ""
        hint = " Grey pictures have one channel: write `images[:, None]`." if len(shape) == 3 else hint
        raise ShapeError(f"Pictures must have shape (N, C, H, W) with 1 or 3 channels, got {tuple(shape)}.{hint}")


def _to_labels(name: str, some: Tensor | np.ndarray | Sequence[Any] | Labels) -> Labels:
    if isinstance(some, Labels):
        return some
    try:
        if not isinstance(some, Tensor) and len(some) and isinstance(some[0], str):
            return labels_from_words([str(word) for word in some])
        return labels_from_numbers(_to_tensor(some))
    except (ShapeError, DtypeError, OptionError) as error:
        raise type(error)(f"Labels {name!r}: {error}") from None


def _to_tensor(some: Any) -> Tensor:
    try:
        return some if isinstance(some, Tensor) else torch.tensor(some)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"they are neither numbers nor words ({error}); write -1, or an empty word, for unknown values.") from None
