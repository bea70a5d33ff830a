"""Segmentation baselines without learning, to report beside a model's score."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.options import check_integer, import_extra
from composable_energy_comet.metrics.inputs import Array, as_labels, as_tensor


def kmeans_labels(images: Array, counts: int | Sequence[int] | Array, seed: int = 0) -> Tensor:
    """Returns labels of pixels by color alone: k-means in each picture, with the true number of segments of each, or of all.

    On saturated colors over black it is nearly perfect, so a model that scores no better may have learnt colors only.

    Args:
        images: Bytes or floating numbers, with shape $(B, C, H, W)$.
        seed: Seed of the initial centres. The labels of picture `i` do not depend on later pictures.

    Returns:
        Labels, int64 with shape $(B, H, W)$. A picture with fewer colors than segments has as many labels as colors.

    Raises:
        OptionError: A pixel is not finite, or an option is out of range.

    Example:
        >>> kmeans_labels(torch.tensor([[[[0.0, 0.1], [0.9, 1.0]]]]), 2).unique(return_counts=True)
        (tensor([0, 1]), tensor([2, 2]))
    """
    if (pictures := as_tensor("images", images)).ndim != 4:
        raise ShapeError(f"`images` must have shape (B, C, H, W), got {tuple(pictures.shape)}; of one picture write `x.unsqueeze(0)`.")
    if not pictures.is_floating_point() and pictures.dtype != torch.uint8:
        raise DtypeError(f"`images` must be bytes or floating numbers, got {pictures.dtype}.")
    if not pictures.isfinite().all():
        raise OptionError("`images` must be finite, got NaN or infinity.")
    seed, numbers = check_integer("seed", seed, least=0), _check_counts(counts, len(pictures))
    kmeans = import_extra("sklearn.cluster", "metrics").KMeans
    found = torch.zeros(len(pictures), *pictures.shape[2:], dtype=torch.int64)
    for i, (picture, segments) in enumerate(zip(pictures, numbers, strict=True)):
        colors = picture.flatten(1).T.double().numpy()
        if (clusters := min(segments, len(np.unique(colors, axis=0)))) > 1:
            state = int(np.random.SeedSequence((seed, i)).generate_state(1)[0])
            assigned = kmeans(clusters, n_init=10, random_state=state).fit_predict(colors)
            found[i] = torch.from_numpy(assigned).reshape(found.shape[1:])
    return found


def quadrant_labels(n: int, size: int) -> Tensor:
    """Returns labels of $n$ square pictures that ignore them, int64 with shape $(n, S, S)$: the four quadrants, 0 to 3.

    On scenes with two to four separate objects they have an FG-ARI of .61 to .67, because objects seldom share a quadrant.

    Example:
        >>> quadrant_labels(1, 2)
        tensor([[[0, 1],
                 [2, 3]]])
    """
    half = (torch.arange(check_integer("size", size)) >= size // 2).long()
    return (2 * half[:, None] + half).repeat(check_integer("n", n), 1, 1)


def territory_labels(predicted: Array) -> Tensor:
    """Returns one label map, repeated for each picture: the most frequent predicted label at each position.

    The closer its score is to that of the predictions, the more the components segment fixed regions and not objects.

    Example:
        >>> territory_labels(torch.tensor([[0, 2, 2], [1, 2, 0], [1, 2, 1]]))
        tensor([[1, 2, 0],
                [1, 2, 0],
                [1, 2, 0]])
    """
    if not len(maps := as_labels("predicted", predicted)):
        raise ShapeError(f"`predicted` must have at least one picture, got {tuple(maps.shape)}.")
    return maps.mode(0).values.expand_as(maps).clone()


def _check_counts(counts: Any, n: int) -> list[int]:
    """Returns the number of segments of each picture."""
    if isinstance(counts, Tensor | np.ndarray):
        numbers = as_tensor("counts", counts)
        if numbers.is_floating_point() or numbers.dtype == torch.bool:
            raise DtypeError(f"`counts` must be whole numbers, got {numbers.dtype}; write `.long()`.")
        counts = numbers.tolist()
    if isinstance(counts, str) or not isinstance(counts, Sequence):
        counts = [counts] * n
    if len(counts) != n:
        raise ShapeError(f"`counts` must have a number for each picture, got {len(counts)} for {n}.")
    return [check_integer("counts", count) for count in counts]
