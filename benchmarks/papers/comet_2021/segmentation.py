"""Scores of segmentations: foreground ARI, baselines without a model, and Otsu's threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.papers.comet_2021.worlds import Scenes
from composable_energy_comet.metrics import adjusted_rand_index, kmeans_labels, quadrant_labels


def foreground_ari(masks: Tensor, labels: Tensor) -> float:
    """Returns the mean adjusted Rand index over the pixels of objects."""
    return float(adjusted_rand_index(masks, labels, foreground=True).nanmean())


def segmentation_baselines(test: Scenes) -> dict[str, float]:
    """Returns the scores of k-means on colors and of four quadrants."""
    counts = [int(masks.unique().numel()) for masks in test.masks]
    colors, size = kmeans_labels(test.images, counts), test.images.shape[-1]
    return {
        "k-means": foreground_ari(test.masks, colors),
        "k-means all-pixel": float(adjusted_rand_index(test.masks, colors).mean()),
        "quadrants": foreground_ari(test.masks, quadrant_labels(len(test.masks), size)),
    }


def otsu_threshold(maps: Tensor) -> Tensor:
    """Returns for each map the threshold that splits its values best (Otsu, 1979), with shape $(B, 1, 1)$."""
    values = maps.flatten(1).sort(1).values
    n = values.shape[1]
    below = torch.arange(1, n + 1)
    sums = values.cumsum(1)
    means, others = sums / below, (sums[:, -1:] - sums) / (n - below).clamp(min=1)
    between = (means - others).square() * below * (n - below)
    return values.gather(1, between[:, :-1].argmax(1, keepdim=True))[:, :, None]
