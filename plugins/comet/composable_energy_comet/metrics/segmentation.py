r"""Two segmentations of the same pictures: how far they agree, whatever their labels are called.

Notation: $R$ are the segments of the truth, $S$ those that were predicted, $|R|$ the pixels of one, $P$ all pixels of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy_comet.metrics.checking import Array, labels

__all__ = ["adjusted_rand_index", "mean_segmentation_covering"]


def adjusted_rand_index(truth: Array, predicted: Array, *, foreground: bool = False) -> Tensor:
    r"""Adjusted Rand index: the pairs of pixels on which both agree, against chance (Hubert & Arabie, 1985).

    With $r = \sum_R \binom{|R|}{2}$, $s = \sum_S \binom{|S|}{2}$ and $e = r s / \binom{P}{2}$, which the next sum is on average for
    segments of these sizes at random,

    $$\mathrm{ARI} = \frac{\sum_{R, S} \binom{|R \cap S|}{2} - e}{\tfrac12 (r + s) - e} .$$

    1 where both are the same up to names, 0 on average by chance, below 0 for worse. It is 0 / 0 only where both have a single segment,
    or both as many as pixels; these are the same, so it is 1.

    Args:
        truth: Labels with shape $(B, H, W)$ or $(B, P)$.
        predicted: Labels with the same shape.
        foreground: Judges only pixels whose true label is above 0 (FG-ARI); what was predicted for the background does not count then.

    Returns:
        One number for each picture, with shape $(B,)$; NaN where no pixel is judged.

    Raises:
        ShapeError: The shapes differ, or are none of label maps.
        DtypeError: Labels are no whole numbers.
        OptionError: `foreground` is neither True nor False.

    Example:
        >>> truth = torch.tensor([[0, 0, 1, 1, 2, 2]])
        >>> adjusted_rand_index(truth, torch.tensor([[5, 5, 3, 3, 3, 3]]))
        tensor([0.4444], dtype=torch.float64)
        >>> adjusted_rand_index(truth, torch.tensor([[1, 1, 1, 1, 2, 2]]), foreground=True)
        tensor([1.], dtype=torch.float64)

    References:
        Comparing partitions (Hubert & Arabie, 1985), https://doi.org/10.1007/BF01908075
    """
    truth, predicted = _maps(truth, predicted, foreground)
    judged = truth > 0 if foreground else torch.ones_like(truth, dtype=torch.bool)
    true, found, both = _segments(truth, predicted, judged)
    agreed, r, s = (_in_each(pairs.image, _pairs(pairs.pixels), len(truth)) for pairs in (both, true, found))
    pixels = judged.sum(1)
    total = _pairs(pixels)
    expected = r.double() * s / total
    index = (agreed - expected) / ((r + s).double() / 2 - expected)
    index[(r == s) & ((r == 0) | (r == total))] = 1.0
    index[pixels == 0] = torch.nan
    return index


def mean_segmentation_covering(truth: Array, predicted: Array, *, foreground: bool = False) -> Tensor:
    r"""Mean segmentation covering: how well each true segment is met by its best predicted one (Arbelaez et al., 2011).

    $$\mathrm{mSC} = \frac{1}{\#R} \sum_R \max_S \frac{|R \cap S|}{|R \cup S|},$$

    every true segment with the same weight (Engelcke et al., 2020), so a small object counts as much as the background.

    Args:
        truth: Labels with shape $(B, H, W)$ or $(B, P)$.
        predicted: Labels with the same shape.
        foreground: Leaves the background out of the mean: segments whose true label is above 0 count. Predicted segments keep all their
            pixels, so one that holds an object and half the background covers neither.

    Returns:
        One number in [0, 1] for each picture, with shape $(B,)$; NaN where no segment is judged.

    Raises:
        ShapeError: The shapes differ, or are none of label maps.
        DtypeError: Labels are no whole numbers.
        OptionError: `foreground` is neither True nor False.

    Example:
        >>> truth = torch.tensor([[0, 0, 1, 1, 2, 2]])
        >>> mean_segmentation_covering(truth, torch.tensor([[5, 5, 3, 3, 3, 3]]))
        tensor([0.6667], dtype=torch.float64)

    References:
        Contour detection and hierarchical image segmentation (Arbelaez et al., 2011), https://doi.org/10.1109/TPAMI.2010.161
        GENESIS (Engelcke et al., 2020), https://arxiv.org/abs/1907.13052
    """
    truth, predicted = _maps(truth, predicted, foreground)
    true, found, both = _segments(truth, predicted, torch.ones_like(truth, dtype=torch.bool))
    union = true.pixels[both.true] + found.pixels[both.found] - both.pixels
    best = torch.zeros(len(true.pixels), dtype=torch.float64)
    best = best.scatter_reduce(0, both.true, both.pixels.double() / union, "amax")
    counts = (true.label > 0 if foreground else torch.ones_like(true.label, dtype=torch.bool)).double()
    return _in_each(true.image, best * counts, len(truth)) / _in_each(true.image, counts, len(truth))


@dataclass(frozen=True)
class _Segments:
    """All segments of one segmentation: the picture of each, its label there, and its pixels."""

    image: Tensor
    label: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class _Overlaps:
    """All pairs of a true and a predicted segment that share pixels: the picture, the two segments, and how many pixels."""

    image: Tensor
    true: Tensor
    found: Tensor
    pixels: Tensor


def _segments(truth: Tensor, predicted: Tensor, judged: Tensor) -> tuple[_Segments, _Segments, _Overlaps]:
    """Counts pixels. Only pairs that meet are kept, so memory is that of the pixels, however many labels there are."""
    image = judged.nonzero()[:, 0]
    (true, of_true), (found, of_found) = _cut(image, truth[judged]), _cut(image, predicted[judged])
    several = max(1, len(found.pixels))
    pairs, pixels = (of_true * several + of_found).unique(return_counts=True)
    first, second = pairs // several, pairs % several
    return true, found, _Overlaps(true.image[first], first, second, pixels)


def _cut(image: Tensor, label: Tensor) -> tuple[_Segments, Tensor]:
    """Returns the segments, and of each pixel the segment."""
    names, label = label.unique(return_inverse=True)
    several = max(1, len(names))
    keys, of_pixel, pixels = (image * several + label).unique(return_inverse=True, return_counts=True)
    return _Segments(keys // several, names[keys % several], pixels), of_pixel


def _in_each(image: Tensor, values: Tensor, images: int) -> Tensor:
    """Adds values up in each picture."""
    return values.new_zeros(images).index_add(0, image, values)


def _pairs(count: Tensor) -> Tensor:
    return count * (count - 1) // 2


def _maps(truth: Array, predicted: Array, foreground: bool) -> tuple[Tensor, Tensor]:
    """Returns both with shape $(B, P)$."""
    true, found = labels("truth", truth), labels("predicted", predicted)
    if true.shape != found.shape:
        raise ShapeError(f"`truth` and `predicted` must have the same shape, got {tuple(true.shape)} and {tuple(found.shape)}.")
    if not isinstance(foreground, bool):
        raise OptionError(f"foreground must be True or False, got {foreground!r}.")
    return true.flatten(1), found.flatten(1)
