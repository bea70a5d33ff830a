r"""An autoencoder that separates the place of an object from its appearance, so that it can paint objects at new places.

A code has `WHERE` numbers that are measured, not learned: the column of the middle of the silhouette and the row of its foot; and `WHAT`
numbers that a network reads from a window above that foot. The decoder paints the window from *what* and puts it at *where*. The
silhouette is the part of the picture that differs from the median color; it needs one object on a plain floor, and no label.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composable_energy_image.reconstruction import picture_loss
from composable_energy_training import Batch, Loss, Objective

WHERE, WHAT = 2, 8
_SIZE, _WINDOW = 64, 40  # pixels
_ABOVE = 10  # pixels from the foot up to the middle of the window
_CONTRAST = 0.1
_FOOT = 0.9  # the share of the silhouette above the foot


class WhereAndWhat(nn.Module):
    """Pictures with shape $(B, 3, 64, 64)$ to codes of unit variance, *where* first, and back."""

    middle: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(WHERE))
        self.register_buffer("spread", torch.ones(WHERE))
        strided = ((3, 16), (16, 32), (32, 48))
        down = [layer for a, b in strided for layer in (nn.Conv2d(a, b, 4, 2, 1), nn.SiLU())]
        self.read = nn.Sequential(*down, nn.Flatten(), nn.Linear(48 * 25, WHAT), nn.BatchNorm1d(WHAT, affine=False, momentum=0.02))
        self.unfold = nn.Sequential(nn.Linear(WHAT, 128), nn.SiLU(), nn.Linear(128, 64 * 25), nn.SiLU(), nn.Unflatten(1, (64, 5, 5)))
        widths = ((64, 48), (48, 32))
        up = [layer for a, b in widths for layer in (nn.ConvTranspose2d(a, b, 4, 2, 1), nn.SiLU())]
        self.decode_window = nn.Sequential(*up, nn.Conv2d(32, 16, 3, 1, 1), nn.PixelShuffle(2))
        self.floor = nn.Sequential(nn.Linear(WHAT, 32), nn.SiLU(), nn.Linear(32, 3))

    def set_statistics(self, where: Tensor) -> None:
        """Sets the mean and spread of *where*, with shape $(N, 2)$, over the training pictures."""
        self.middle.copy_(where.mean(0))
        self.spread.copy_(where.std(0))

    @torch.no_grad()
    def normalize_what(self, batches: Iterable[Tensor]) -> None:
        """Gives *what* unit variance over all training pictures; during training, running statistics lag behind the weights."""
        *layers, norm = self.read
        raw = torch.cat([nn.Sequential(*layers)(_cut(images, silhouettes(images)) * 2 - 1) for images in batches])
        norm.get_buffer("running_mean").copy_(raw.mean(0))
        norm.get_buffer("running_var").copy_(raw.var(0))

    def encode(self, images: Tensor) -> Tensor:
        """Returns codes with shape $(B, 10)$ of pictures in [0, 1]."""
        where = silhouettes(images)
        return torch.cat([(where - self.middle) / self.spread, self.read(_cut(images, where) * 2 - 1)], 1)

    def paint(self, codes: Tensor) -> Tensor:
        """Returns pictures without clipping to [0, 1], for training."""
        where, what = codes[:, :WHERE] * self.spread + self.middle, codes[:, WHERE:]
        window = self.decode_window(self.unfold(what))
        colors, cover = _put(torch.cat([window[:, :3], window[:, 3:].sigmoid()], 1), where).split([3, 1], 1)
        return torch.lerp(self.floor(what)[:, :, None, None], colors, cover) / 2 + 0.5

    def forward(self, codes: Tensor) -> Tensor:
        """Returns the pictures, in [0, 1], of codes with shape $(B, 10)$."""
        return self.paint(codes).clamp(0, 1)


class Painting(Objective):
    """Reconstruction from codes with noise on *what*, so that similar codes give similar pictures; *what* is kept uncorrelated."""

    def __init__(self, noise: float = 0.05, decorrelation: float = 0.05) -> None:
        self.noise, self.decorrelation = noise, decorrelation

    def loss(self, model: Any, batch: Batch) -> Loss:
        where, what = model.encode(batch.x).split([WHERE, WHAT], 1)
        painted = model.paint(torch.cat([where, what + self.noise * batch.noise.normal(what)], 1))
        correlation = what.T @ what / len(what) - torch.eye(WHAT)
        return Loss(picture_loss(painted.contiguous(), batch.x) + self.decorrelation * correlation.square().mean())


@torch.no_grad()
def silhouettes(images: Tensor) -> Tensor:
    """Returns the column of the middle and the row of the foot of silhouettes, in [-1, 1], with shape $(B, 2)$.

    The foot is the row above which nine tenths of the silhouette lie: nearly the point where a ball of any size touches the floor.
    """
    plain = images.flatten(2).median(2).values[:, :, None, None]
    mask = ((images - plain).abs().amax(1) / _CONTRAST).clamp(0, 1)
    size = mask.shape[-1]
    area = mask.sum((1, 2)).clamp_min(1e-3)
    column = (mask.sum(1) * (torch.arange(size) + 0.5)).sum(1) / area
    above = F.pad(mask.sum(2).cumsum(1) / area[:, None], (1, 0))  # the share above the upper edge of each row
    last = (above[:, 1:] < _FOOT).sum(1, keepdim=True).clamp(max=size - 1)
    before, after = above.gather(1, last)[:, 0], above.gather(1, last + 1)[:, 0]
    row = last[:, 0] + (_FOOT - before) / (after - before).clamp_min(1e-6)
    return torch.stack([column, row], 1) / size * 2 - 1


def _cut(images: Tensor, where: Tensor) -> Tensor:
    """Returns the windows above the feet, with shape $(B, 3, 40, 40)$."""
    places = F.affine_grid(_frames(where, _WINDOW / _SIZE, 1.0), [len(images), 3, _WINDOW, _WINDOW], align_corners=False)
    return F.grid_sample(images, places, padding_mode="border", align_corners=False)


def _put(windows: Tensor, where: Tensor) -> Tensor:
    """Returns pictures, with shape $(B, 4, 64, 64)$, of windows at their places; zero elsewhere."""
    places = F.affine_grid(_frames(where, _SIZE / _WINDOW, -_SIZE / _WINDOW), [len(windows), 4, _SIZE, _SIZE], align_corners=False)
    return F.grid_sample(windows, places, align_corners=False)


def _frames(where: Tensor, scale: float, shift: float) -> Tensor:
    middle = where - where.new_tensor([0.0, 2 * _ABOVE / _SIZE])
    return torch.cat([torch.eye(2).expand(len(where), 2, 2) * scale, (middle * shift)[:, :, None]], 2)
