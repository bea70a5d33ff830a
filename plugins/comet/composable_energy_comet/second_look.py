"""A second look: further windows where the windows of the first glimpses do not explain the picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from composable_energy_comet.coordinates import POSE
from composable_energy_comet.glimpse_encoder import GlimpseEncoder
from composable_energy_comet.targets import TargetEnergy

_PART = 4  # errors are averaged over squares of a quarter of a window
_LEAST = 3e-4  # mean squared error that a further window has to remove
_NOWHERE = 4.0  # pictures are from -1 to 1, and windows reach less than 1.2


def look_again(encoder: GlimpseEncoder, energy: TargetEnergy, x: Tensor, z: Tensor) -> Tensor:
    """Returns latents with one more window for each picture, with shape $(B, K + 1, D)$.

    The window begins where the reconstruction is worst. It stays if it lowers the mean squared error of the picture by .0003, about that of
    a small object that was overlooked. Otherwise it is put outside of the picture, where it paints nothing. As in matching pursuit, a
    window is chosen by what the others leave; attention chooses all windows before any is painted.

    Args:
        encoder: The encoder.
        energy: The energy of its components.
        x: Pictures, with shape $(B, C, S, S)$.
        z: Latents of their components, with shape $(B, K, D)$.

    References:
        Matching pursuits with time-frequency dictionaries (Mallat & Zhang, 1993), https://doi.org/10.1109/78.258082
    """
    before = (energy.minimum(z) - x).square().mean(1)
    one = encoder.look_at(x, _worst_places(before, encoder.window // _PART))
    both = torch.cat([z, one[:, None]], 1)
    gain = (before - (energy.minimum(both) - x).square().mean(1)).flatten(1).mean(1)
    away = one.clone()
    away[:, -POSE:-1] = _NOWHERE
    return torch.cat([z, torch.where(gain[:, None] > _LEAST, one, away)[:, None]], 1)


def _worst_places(errors: Tensor, square: int) -> Tensor:
    """Returns the middles of the squares with the largest mean errors, down and right, from -1 to 1, with shape $(B, 2)$.

    Args:
        errors: Errors of pixels, with shape $(B, S, S)$.
        square: Height and width of the squares in pixels, even.
    """
    margin = square // 2 - 1
    means = F.avg_pool2d(errors[:, None], square, 2, margin)[:, 0]
    index = means.flatten(1).argmax(1)
    corner = torch.stack([index // means.shape[2], index % means.shape[2]], 1) * 2 - margin
    middle = corner.to(errors) + (square - 1) / 2
    return middle * 2 / (errors.shape[-1] - 1) - 1
