"""A generator that no part of the library was made for: two blobs on a ground, with uniform latents, in a file of TorchScript."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Uniform

import composable_energy as ce
from composable_energy_latent import latent, load_generator

LATENTS, _SIZE, _CHANNELS = 9, 24, 3


class Blobs(nn.Module):
    """Pictures with shape (B, 3, 24, 24) of latents in [-1, 1]: two places, two sizes, a hue for each, and the ground."""

    def __init__(self) -> None:
        super().__init__()
        axis = torch.linspace(-1, 1, _SIZE)
        self.register_buffer("grid", torch.stack(torch.meshgrid(axis, axis, indexing="ij")))

    def forward(self, z: Tensor) -> Tensor:
        places = z[:, :4].view(-1, 2, 2, 1, 1) * 0.6
        sizes = (0.22 + 0.08 * z[:, 4:6]).view(-1, 2, 1, 1)
        distance = (self.grid - places).square().sum(2).sqrt()
        masks = torch.sigmoid((sizes - distance) * 25)
        picture = (0.5 + 0.3 * z[:, 8:9]).view(-1, 1, 1, 1).expand(-1, _CHANNELS, _SIZE, _SIZE)
        for i in range(2):
            hue = torch.sigmoid(6 * z[:, 6 + i])
            color = torch.stack([hue, 0.2 + 0.0 * hue, 1 - hue], 1).view(-1, _CHANNELS, 1, 1)
            mask = masks[:, i : i + 1]
            picture = picture * (1 - mask) + color * mask
        return picture


def blob_base(folder: Path) -> ce.Energy:
    """Writes the generator to a file, and returns the base of what is read from it."""
    path = folder / "blobs.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Blobs(), torch.zeros(2, LATENTS)).save(path)
    return latent(load_generator(path, trust=True), Uniform(-torch.ones(LATENTS), torch.ones(LATENTS)), name="blobs")


def blob_labels(pictures: Tensor) -> dict[str, Tensor]:
    """Returns labels from pixels alone: more red than blue, a bright ground, and how much of the left half is covered."""
    red, blue = pictures[:, 0], pictures[:, 2]
    ground = pictures[:, :, 0, 0].mean(1)
    covered = (pictures - pictures[:, :, :1, :1]).abs().sum(1) > 0.3
    left, right = covered[:, :, : _SIZE // 2].sum((1, 2)), covered[:, :, _SIZE // 2 :].sum((1, 2))
    return {"red": (red - blue).mean((1, 2)) > 0, "bright": ground > 0.5, "left": left > right}
