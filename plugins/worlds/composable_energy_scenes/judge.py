"""The judge: a network that evaluates samples; it is trained on other renders than the energies."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from composable_energy.errors import ShapeError
from composable_energy_scenes.one_object import COLORS
from composable_energy_scenes.renderer import KINDS

_CHUNK = 250
_WIDTHS = (3, 24, 48, 64, 96)
_SIZE = 64


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
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(_WIDTHS):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.read = nn.Sequential(nn.Flatten(), nn.Linear(_WIDTHS[-1] * 16, 64), nn.SiLU(), nn.Linear(64, 5 + len(KINDS) + len(COLORS)))

    def forward(self, images: Tensor) -> Tensor:
        """Returns position, size and light, then logits of shape and color, with shape $(B, 16)$."""
        return self.read(self.body(images * 2 - 1))

    def features(self, images: Tensor) -> Tensor:
        """Returns pooled features with shape $(B, 96)$, for Frechet distances."""
        return self.body(images * 2 - 1).mean((2, 3))


@torch.no_grad()
def judge_images(images: Tensor, judge: Judge) -> Verdict:
    """Returns a judge's predictions for pictures.

    Args:
        images: Pictures in [0, 1] with shape $(B, 3, 64, 64)$.
        judge: The judge.

    Raises:
        ShapeError: The pictures have another shape.
    """
    if images.shape[1:] != (3, _SIZE, _SIZE):
        raise ShapeError(f"The judge takes pictures of shape (B, 3, {_SIZE}, {_SIZE}), got {tuple(images.shape)}.")
    output = torch.cat([judge(part) for part in images.split(_CHUNK)])
    shape, color = output[:, 5:].split([len(KINDS), len(COLORS)], 1)
    return Verdict(output[:, :2], output[:, 2], output[:, 3:5], shape.argmax(1), color.argmax(1))
