"""The noise of noise-contrastive estimation by its name in recipes, fitted to pictures."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from composable_energy.errors import OptionError
from composable_energy.sampling.noise import Noise
from composable_energy_image.data import Pictures, Preparation
from composable_energy_training import FlowNoise, GaussianNoise, NoiseDistribution

FittedNoise = Literal["gaussian", "flow"]
"""The name of a noise in recipes."""

_PICTURES = 5000  # are enough for the noise, which need not be close to the data


def fit_noise(pictures: Pictures, preparation: Preparation, seed: int, device: torch.device, name: str) -> NoiseDistribution:
    """Returns a noise that is fitted to the first 5,000 pictures, prepared as for training.

    Args:
        pictures: The data.
        preparation: Their preparation, which should dequantize them: constant pixels have no density.
        seed: The seed of the preparation and of the flow.
        device: Device of the noise.
        name: `"gaussian"`, or `"flow"` for a normalizing flow behind the Gaussian.

    Raises:
        OptionError: There is no such noise.
    """
    if name not in get_args(FittedNoise):
        raise OptionError(f"objective.noise takes 'gaussian' or 'flow', got {name!r}.")
    rows = torch.arange(min(_PICTURES, len(pictures)))
    x = preparation(pictures.images(rows).cpu(), Noise(seed, range(len(rows))).child("noise"))
    return (GaussianNoise.fit(x) if name == "gaussian" else FlowNoise.fit(x, seed=seed)).to(device)
