"""Segmentations that have learnt nothing of objects: what a score must beat before it says anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy_comet.metrics.checking import Array, as_tensor, extra, labels, whole

__all__ = ["kmeans_labels", "quadrant_labels", "territory_labels"]


def kmeans_labels(images: Array, counts: int | Sequence[int] | Array, seed: int = 0, *, starts: int = 10) -> Tensor:
    """Labels of pixels by their colors alone: k-means in each picture, with the true number of segments.

    On saturated colors over black it is nearly right, so a model that does no better may have learnt colors.

    Args:
        images: With shape $(B, C, H, W)$, of bytes or floating numbers.
        counts: How many segments each picture has, with the background: one number for each, or one for all.
        seed: Of the starts; picture `i` has the same labels whatever follows it.
        starts: The best of so many starts is taken.

    Returns:
        Labels, int64 with shape $(B, H, W)$. A picture with fewer colors than segments has as many labels as colors.

    Raises:
        ShapeError: `images` are no pictures, or there are not as many counts.
        DtypeError: `images` or counts are no such numbers.
        OptionError: A pixel is not finite, or an option out of range.
        ExtraNotInstalled: scikit-learn is not installed.

    Example:
        >>> kmeans_labels(torch.tensor([[[[0.0, 0.1], [0.9, 1.0]]]]), 2).unique(return_counts=True)
        (tensor([0, 1]), tensor([2, 2]))
    """
    pictures = as_tensor("images", images)
    if pictures.ndim != 4:
        raise ShapeError(f"`images` must have shape (B, C, H, W), got {tuple(pictures.shape)}; of one picture write `x.unsqueeze(0)`.")
    if not pictures.is_floating_point() and pictures.dtype != torch.uint8:
        raise DtypeError(f"`images` must be bytes or floating numbers, got {pictures.dtype}.")
    if not pictures.isfinite().all():
        raise OptionError("`images` must be finite; got a pixel that is not.")
    seed, starts, numbers = whole("seed", seed, least=0), whole("starts", starts), _counts(counts, len(pictures))
    kmeans = extra("sklearn.cluster").KMeans
    found = torch.zeros(len(pictures), *pictures.shape[2:], dtype=torch.int64)
    for place, (picture, segments) in enumerate(zip(pictures, numbers, strict=True)):
        colors = picture.flatten(1).T.double().numpy()
        several = min(segments, len(np.unique(colors, axis=0)))
        if several > 1:
            state = int(np.random.SeedSequence((seed, place)).generate_state(1)[0])
            one = kmeans(several, n_init=starts, random_state=state).fit_predict(colors)
            found[place] = torch.from_numpy(one).reshape(found.shape[1:])
    return found


def quadrant_labels(n: int, size: int | tuple[int, int]) -> Tensor:
    """Labels that look at no picture: each is cut into four quarters.

    On scenes with two to four separate objects these have an FG-ARI of .61 to .67, since objects seldom share a quarter.

    Args:
        n: How many pictures.
        size: Their side in pixels, or height and width.

    Returns:
        Labels, int64 with shape $(n, H, W)$, 0 to 3.

    Raises:
        OptionError: A number is none, or below 1.

    Example:
        >>> quadrant_labels(1, 2)
        tensor([[[0, 1],
                 [2, 3]]])
    """
    n, sides = whole("n", n), size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2:
        raise OptionError(f"size must be a side, or height and width, got {size!r}.")
    height, width = (whole("size", side) for side in sides)
    below, right = torch.arange(height) >= height // 2, torch.arange(width) >= width // 2
    return (2 * below[:, None] + right.long()).expand(n, -1, -1).clone()


def territory_labels(predicted: Array) -> Tensor:
    """One map for all pictures: at each place the label that is predicted there most often.

    The nearer its score to that of the predictions, the more their components own places, not objects.

    Args:
        predicted: Labels of a set of pictures, with shape $(B, H, W)$ or $(B, P)$.

    Returns:
        That map as often as there are pictures, int64 with the same shape; of labels that are as frequent, the least.

    Raises:
        ShapeError: They have another shape, or there is no picture.
        DtypeError: Labels are no whole numbers.

    Example:
        >>> territory_labels(torch.tensor([[0, 2, 2], [1, 2, 0], [1, 2, 1]]))
        tensor([[1, 2, 0],
                [1, 2, 0],
                [1, 2, 0]])
    """
    maps = labels("predicted", predicted)
    if not len(maps):
        raise ShapeError(f"`predicted` must have a picture at least, got {tuple(maps.shape)}.")
    one, most = torch.zeros_like(maps[0]), torch.zeros_like(maps[0])
    for name in maps.unique():
        often = (maps == name).sum(0)
        one, most = torch.where(often > most, name, one), torch.maximum(often, most)
    return one.expand_as(maps).clone()


def _counts(counts: Any, n: int) -> list[int]:
    """The number of segments of each picture."""
    if isinstance(counts, Tensor | np.ndarray):
        numbers = as_tensor("counts", counts)
        if numbers.is_floating_point() or numbers.dtype == torch.bool:
            raise DtypeError(f"`counts` must be whole numbers, got {numbers.dtype}; write `.long()`.")
        counts = numbers.tolist()
    several = [whole("counts", count) for count in counts] if isinstance(counts, Sequence) else [whole("counts", counts)] * n
    if len(several) != n:
        raise ShapeError(f"`counts` must have a number for each picture, got {len(several)} for {n}.")
    return several
