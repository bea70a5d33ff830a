"""The detector: a network that locates the objects of a picture, to evaluate pictures of several objects."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composable_energy.errors import ShapeError
from composable_energy_training import Batch, Loss, Objective

_GRID = 8
_CELL = 2 / _GRID  # objects are further apart than a cell's diagonal, so a cell holds at most one
_CHUNK = 250
_WIDTHS = (3, 24, 48, 64)
_THRESHOLD = 0.1  # an object at a corner of four cells may have probability 1/4 in each; chosen on renders of seed 5
_LEAST_DISTANCE = 0.3


class Detector(nn.Module):
    """A convolutional network that predicts, for each cell of the floor, whether it holds an object, and its position; 273,968 weights."""

    middles: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(_WIDTHS):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.SiLU()]
        layers += [nn.Conv2d(64, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.SiLU(), nn.Conv2d(64, 16, 1), nn.SiLU()]
        self.read = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, 3 * _GRID**2))
        rows, columns = torch.meshgrid(*[(torch.arange(_GRID) + 0.5) * _CELL - 1] * 2, indexing="ij")
        self.register_buffer("middles", torch.stack([columns, rows], 2).flatten(0, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits of objects in cells, with shape $(B, 64)$, and positions of the objects, with shape $(B, 64, 2)$."""
        output = self.read(images * 2 - 1).unflatten(1, (_GRID**2, 3))
        return output[..., 0], self.middles + _CELL * output[..., 1:]


@torch.no_grad()
def detect_objects(images: Tensor, detector: Detector) -> list[Tensor]:
    """Returns the positions of the objects in each picture, with shape $(k, 2)$, in order of confidence.

    Of two detections closer than .3 only the more confident counts, because an object at the border of two cells may be detected in both.

    Args:
        images: Pictures in [0, 1] with shape $(B, 3, 64, 64)$.
        detector: The detector.

    Raises:
        ShapeError: The pictures have another shape.
    """
    if images.shape[1:] != (3, 64, 64):
        raise ShapeError(f"The detector takes pictures of shape (B, 3, 64, 64), got {tuple(images.shape)}.")
    found = []
    for part in images.split(_CHUNK):
        logits, places = detector(part)
        found += [_suppress(places[i], logits[i].sigmoid()) for i in range(len(part))]
    return found


def _suppress(places: Tensor, confidence: Tensor) -> Tensor:
    """Non-maximum suppression."""
    kept: list[Tensor] = []
    for i in confidence.argsort(descending=True).tolist():
        if confidence[i] < _THRESHOLD:
            break
        if all((places[i] - other).norm() >= _LEAST_DISTANCE for other in kept):
            kept.append(places[i])
    return torch.stack(kept) if kept else places[:0]


class DetectionLoss(Objective):
    """The detector's objective: cross entropy of cells, plus the position error of all objects in the label `position`, padded with NaN."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        logits, places = model(batch.x)
        position = batch.labels["position"].unflatten(1, (-1, 2))
        row, which = position.isfinite().all(2).nonzero(as_tuple=True)
        truth = position[row, which]
        column, line = ((truth + 1) / _CELL).long().clamp(0, _GRID - 1).unbind(1)
        cell = line * _GRID + column
        occupied = torch.zeros_like(logits)
        occupied[row, cell] = 1.0
        entropy = F.binary_cross_entropy_with_logits(logits.float(), occupied, reduction="sum") / len(logits)
        error = (places.float()[row, cell] - truth).abs().mean()
        return Loss(entropy + 5 * error, {"cells": entropy.detach(), "off": error.detach()})
