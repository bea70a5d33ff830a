r"""Segmentation scores that do not depend on the names of labels.

Notation: $R$ are the true segments, $S$ the predicted segments, $|R|$ the number of pixels of one, $P$ the number of pixels of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy_comet.metrics.inputs import Array, as_labels


def adjusted_rand_index(truth: Array, predicted: Array, *, foreground: bool = False) -> Tensor:
    r"""Returns the adjusted Rand index (ARI): the agreement on pairs of pixels, corrected for chance (Hubert & Arabie, 1985).

    With $r = \sum_R \binom{|R|}{2}$, $s = \sum_S \binom{|S|}{2}$ and $e = r s / \binom{P}{2}$, the expected agreement of random segments of
    these sizes,

    $$\mathrm{ARI} = \frac{\sum_{R, S} \binom{|R \cap S|}{2} - e}{\tfrac12 (r + s) - e} .$$

    It is 1 for equal segmentations, 0 on average by chance, and negative below chance. The formula is 0 / 0 if both have a single segment,
    or both one segment per pixel; these are equal, so the index is 1.

    Args:
        truth: Labels with shape $(B, H, W)$ or $(B, P)$.
        predicted: Labels with the same shape.
        foreground: Whether to evaluate only pixels whose true label is above 0 (FG-ARI), so that predictions for the background are
            ignored.

    Returns:
        One number for each picture, with shape $(B,)$; NaN if no pixel is evaluated.

    Raises:
        ShapeError: The shapes differ, or are not those of label maps.
        DtypeError: The labels are not whole numbers.
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
    truth, predicted = _check_maps(truth, predicted, foreground)
    evaluated = truth > 0 if foreground else torch.ones_like(truth, dtype=torch.bool)
    true, found, both = _segments(truth, predicted, evaluated)
    agreed, r, s = (_sum_by_image(pairs.image, _pairs(pairs.pixels), len(truth)) for pairs in (both, true, found))
    pixels = evaluated.sum(1)
    total = _pairs(pixels)
    expected = r.double() * s / total
    index = (agreed - expected) / ((r + s).double() / 2 - expected)
    index[(r == s) & ((r == 0) | (r == total))] = 1.0
    index[pixels == 0] = torch.nan
    return index


def mean_segmentation_covering(truth: Array, predicted: Array, *, foreground: bool = False) -> Tensor:
    r"""Returns the mean segmentation covering (mSC): the best overlap of each true segment with a predicted one (Arbelaez et al., 2011).

    $$\mathrm{mSC} = \frac{1}{\#R} \sum_R \max_S \frac{|R \cap S|}{|R \cup S|},$$

    with the same weight for every true segment (Engelcke et al., 2020), so a small object counts as much as the background.

    Args:
        truth: Labels with shape $(B, H, W)$ or $(B, P)$.
        predicted: Labels with the same shape.
        foreground: Whether to average over segments whose true label is above 0 only. Predicted segments keep all their pixels, so one that
            holds an object and half the background covers neither.

    Returns:
        One number in [0, 1] for each picture, with shape $(B,)$; NaN if no segment is evaluated.

    Raises:
        ShapeError: The shapes differ, or are not those of label maps.
        DtypeError: The labels are not whole numbers.
        OptionError: `foreground` is neither True nor False.

    Example:
        >>> truth = torch.tensor([[0, 0, 1, 1, 2, 2]])
        >>> mean_segmentation_covering(truth, torch.tensor([[5, 5, 3, 3, 3, 3]]))
        tensor([0.6667], dtype=torch.float64)

    References:
        Contour detection and hierarchical image segmentation (Arbelaez et al., 2011), https://doi.org/10.1109/TPAMI.2010.161
        GENESIS (Engelcke et al., 2020), https://arxiv.org/abs/1907.13052
    """
    truth, predicted = _check_maps(truth, predicted, foreground)
    true, found, both = _segments(truth, predicted, torch.ones_like(truth, dtype=torch.bool))
    union = true.pixels[both.true] + found.pixels[both.found] - both.pixels
    best = torch.zeros(len(true.pixels), dtype=torch.float64)
    best = best.scatter_reduce(0, both.true, both.pixels.double() / union, "amax")
    counts = (true.label > 0 if foreground else torch.ones_like(true.label, dtype=torch.bool)).double()
    return _sum_by_image(true.image, best * counts, len(truth)) / _sum_by_image(true.image, counts, len(truth))


@dataclass(frozen=True)
class _Segments:
    """The segments of all pictures: the picture of each segment, its label, and its number of pixels."""

    image: Tensor
    label: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class _Overlaps:
    """Pairs of a true and a predicted segment that share pixels: the picture, the two segments, and the number of shared pixels."""

    image: Tensor
    true: Tensor
    found: Tensor
    pixels: Tensor


def _segments(truth: Tensor, predicted: Tensor, evaluated: Tensor) -> tuple[_Segments, _Segments, _Overlaps]:
    """Counts pixels. Only overlapping pairs are kept, so memory grows with pixels, not with labels."""
    image = evaluated.nonzero()[:, 0]
    (true, of_true), (found, of_found) = _find_segments(image, truth[evaluated]), _find_segments(image, predicted[evaluated])
    stride = max(1, len(found.pixels))
    pairs, pixels = (of_true * stride + of_found).unique(return_counts=True)
    first, second = pairs // stride, pairs % stride
    return true, found, _Overlaps(true.image[first], first, second, pixels)


def _find_segments(image: Tensor, label: Tensor) -> tuple[_Segments, Tensor]:
    """Returns the segments, and the segment of each pixel."""
    names, label = label.unique(return_inverse=True)
    stride = max(1, len(names))
    keys, of_pixel, pixels = (image * stride + label).unique(return_inverse=True, return_counts=True)
    return _Segments(keys // stride, names[keys % stride], pixels), of_pixel


def _sum_by_image(image: Tensor, values: Tensor, images: int) -> Tensor:
    """Returns the sum of values in each picture."""
    return values.new_zeros(images).index_add(0, image, values)


def _pairs(count: Tensor) -> Tensor:
    return count * (count - 1) // 2


def _check_maps(truth: Array, predicted: Array, foreground: bool) -> tuple[Tensor, Tensor]:
    """Returns both with shape $(B, P)$."""
    true, found = as_labels("truth", truth), as_labels("predicted", predicted)
    if true.shape != found.shape:
        raise ShapeError(f"`truth` and `predicted` must have the same shape, got {tuple(true.shape)} and {tuple(found.shape)}.")
    if not isinstance(foreground, bool):
        raise OptionError(f"foreground must be True or False, got {foreground!r}.")
    return true.flatten(1), found.flatten(1)
