"""The networks that evaluate pictures: the judge of one object, and the detector of several."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from composable_energy_image.layers import halving_convolutions
from composable_energy_image.metrics import check_pictures, features_of
from composable_energy_scenes.one_object import COLORS
from composable_energy_scenes.renderer import KINDS

_SIZE = 64
GRID = 8  # cells of the floor on each side, for the detector
CELL = 2 / GRID  # objects are further apart than a cell's diagonal, so a cell holds at most one
_THRESHOLD = 0.1  # an object at a corner of four cells may have probability 1/4 in each; chosen on renders of seed 5
_LEAST_DISTANCE = 0.3


@dataclass(frozen=True)
class Verdict:
    """The judge's predictions for pictures.

    Attributes:
        position: Positions with shape $(B, 2)$.
        size: Sizes with shape $(B,)$.
        light: Cosine and sine of the lamp's azimuth, with shape $(B, 2)$.
        shape: Classes with shape $(B,)$.
        color: Classes with shape $(B,)$.
    """

    position: Tensor
    size: Tensor
    light: Tensor
    shape: Tensor
    color: Tensor


class Judge(nn.Module):
    """A convolutional network that predicts position, size, light, shape and color of pictures of `one-object`; 187,136 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*halving_convolutions(3, 24, 48, 64, 96))
        self.read = nn.Sequential(nn.Flatten(), nn.Linear(96 * 16, 64), nn.SiLU(), nn.Linear(64, 5 + len(KINDS) + len(COLORS)))

    def forward(self, images: Tensor) -> Tensor:
        """Returns position, size and light, then logits of shape and color, with shape $(B, 16)$."""
        return self.read(self.body(images * 2 - 1))

    def features(self, images: Tensor) -> Tensor:
        """Returns pooled features with shape $(B, 96)$, for Frechet distances."""
        return self.body(images * 2 - 1).mean((2, 3))


@torch.no_grad()
def judge_images(images: Tensor, judge: Judge) -> Verdict:
    """Returns a judge's predictions for pictures in [0, 1] with shape $(B, 3, 64, 64)$."""
    output = features_of(judge, check_pictures("The judge", judge, images, (3, _SIZE, _SIZE)))
    shape, color = output[:, 5:].split([len(KINDS), len(COLORS)], 1)
    return Verdict(output[:, :2], output[:, 2], output[:, 3:5], shape.argmax(1), color.argmax(1))


class Detector(nn.Module):
    """A convolutional network that predicts, for each cell of the floor, whether it holds an object, and its position; 273,968 weights."""

    middles: Tensor

    def __init__(self) -> None:
        super().__init__()
        refine = [nn.Conv2d(64, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.SiLU(), nn.Conv2d(64, 16, 1), nn.SiLU()]
        self.read = nn.Sequential(*halving_convolutions(3, 24, 48, 64), *refine, nn.Flatten(), nn.Linear(16 * 64, 3 * GRID**2))
        rows, columns = torch.meshgrid(*[(torch.arange(GRID) + 0.5) * CELL - 1] * 2, indexing="ij")
        self.register_buffer("middles", torch.stack([columns, rows], 2).flatten(0, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits of objects in cells, with shape $(B, 64)$, and positions of the objects, with shape $(B, 64, 2)$."""
        output = self.read(images * 2 - 1).unflatten(1, (GRID**2, 3))
        return output[..., 0], self.middles + CELL * output[..., 1:]


@torch.no_grad()
def detect_objects(images: Tensor, detector: Detector) -> list[Tensor]:
    """Returns the positions of the objects in each picture, $(B, 3, 64, 64)$ in [0, 1], with shape $(k, 2)$, in order of confidence.

    Of two detections closer than .3 only the more confident counts, because an object at the border of two cells may be detected in both.
    """
    found = []
    for part in check_pictures("The detector", detector, images, (3, _SIZE, _SIZE)).split(250):
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
