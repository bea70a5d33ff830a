r"""Segmentation scores that do not depend on the names of labels.

Notation: $R$ are the true segments, $S$ the predicted segments, $|R|$ the number of pixels of one, $P$ the number of pixels of a picture.
"""

import torch
from torch import Tensor

from composable_energy.errors import ShapeError
from composable_energy.options import check_flag
from composable_energy_comet.metrics.inputs import Array, as_labels


def adjusted_rand_index(truth: Array, predicted: Array, *, foreground: bool = False) -> Tensor:
    r"""Returns the adjusted Rand index (ARI): the agreement on pairs of pixels, corrected for chance (Hubert & Arabie, 1985).

    With $r = \sum_R \binom{|R|}{2}$, $s = \sum_S \binom{|S|}{2}$ and $e = r s / \binom{P}{2}$, the expected agreement of random segments of
    these sizes,

    $$\mathrm{ARI} = \frac{\sum_{R, S} \binom{|R \cap S|}{2} - e}{\tfrac12 (r + s) - e} .$$

    It is 1 for equal segmentations, 0 on average by chance, and negative below chance. The formula is 0 / 0 if both have a single segment,
    or both one segment per pixel; these are equal, so the index is 1.

    Args:
        truth: Labels, as the predicted ones, with shape $(B, H, W)$ or $(B, P)$.
        foreground: Whether to evaluate only pixels whose true label is above 0 (FG-ARI), and ignore the background.

    Returns:
        One number for each picture, with shape $(B,)$; NaN if no pixel is evaluated.

    Example:
        >>> truth = torch.tensor([[0, 0, 1, 1, 2, 2]])
        >>> adjusted_rand_index(truth, torch.tensor([[5, 5, 3, 3, 3, 3]]))
        tensor([0.4444], dtype=torch.float64)
        >>> adjusted_rand_index(truth, torch.tensor([[1, 1, 1, 1, 2, 2]]), foreground=True)
        tensor([1.], dtype=torch.float64)

    References:
        Comparing partitions (Hubert & Arabie, 1985), https://doi.org/10.1007/BF01908075
    """
    found = []
    for true, other in zip(*_check_maps(truth, predicted, foreground), strict=True):
        some = true > 0 if foreground else torch.ones_like(true, dtype=torch.bool)
        _, first, second, both = _count(true[some], other[some])
        total, r, s, agreed = _pairs(some.sum()), *(_pairs(pixels).sum() for pixels in (first, second, both[2]))
        expected = r.double() * s / total
        one = torch.where((r == s) & ((r == 0) | (r == total)), 1.0, (agreed - expected) / ((r + s).double() / 2 - expected))
        found.append(torch.where(some.any(), one, torch.nan))
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.float64)


def mean_segmentation_covering(truth: Array, predicted: Array, *, foreground: bool = False) -> Tensor:
    r"""Returns the mean segmentation covering (mSC): the best overlap of each true segment with a predicted one (Arbelaez et al., 2011).

    $$\mathrm{mSC} = \frac{1}{\#R} \sum_R \max_S \frac{|R \cap S|}{|R \cup S|},$$

    with the same weight for every true segment (Engelcke et al., 2020), so a small object counts as much as the background.

    Args:
        truth: Labels, as the predicted ones, with shape $(B, H, W)$ or $(B, P)$.
        foreground: Whether to average over segments whose true label is above 0 only. Predicted segments keep all their pixels, so one that
            holds an object and half the background covers neither.

    Returns:
        One number in [0, 1] for each picture, with shape $(B,)$; NaN if no segment is evaluated.

    Example:
        >>> truth = torch.tensor([[0, 0, 1, 1, 2, 2]])
        >>> mean_segmentation_covering(truth, torch.tensor([[5, 5, 3, 3, 3, 3]]))
        tensor([0.6667], dtype=torch.float64)

    References:
        Contour detection and hierarchical image segmentation (Arbelaez et al., 2011), https://doi.org/10.1109/TPAMI.2010.161
        GENESIS (Engelcke et al., 2020), https://arxiv.org/abs/1907.13052
    """
    found = []
    for true, other in zip(*_check_maps(truth, predicted, foreground), strict=True):
        names, first, second, (of_first, of_second, both) = _count(true, other)
        union = first[of_first] + second[of_second] - both
        best = torch.zeros(len(first), dtype=torch.float64).scatter_reduce(0, of_first, both.double() / union, "amax")
        found.append(best[names > 0].mean() if foreground else best.mean())
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.float64)


def _count(truth: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Returns true labels, pixels of true and predicted segments, and segments and pixels of overlaps, so memory grows with pixels."""
    names, of_true, true = truth.unique(return_inverse=True, return_counts=True)
    _, of_found, found = predicted.unique(return_inverse=True, return_counts=True)
    pairs, pixels = (of_true * max(1, len(found)) + of_found).unique(return_counts=True)
    return names, true, found, (pairs // max(1, len(found)), pairs % max(1, len(found)), pixels)


def _pairs(count: Tensor) -> Tensor:
    return count * (count - 1) // 2


def _check_maps(truth: Array, predicted: Array, foreground: bool) -> tuple[Tensor, Tensor]:
    """Returns both with shape $(B, P)$."""
    true, found = as_labels("truth", truth), as_labels("predicted", predicted)
    if true.shape != found.shape:
        raise ShapeError(f"`truth` and `predicted` must have the same shape, got {tuple(true.shape)} and {tuple(found.shape)}.")
    check_flag("foreground", foreground)
    return true.flatten(1), found.flatten(1)
