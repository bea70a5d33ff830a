"""Random pictures, with and without labels, and their files, for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from composable_energy_image.data import Labels, Pictures

RANDOM = np.random.default_rng(0)


def random_pixels(*shape: int) -> np.ndarray:
    """Returns random bytes."""
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> np.ndarray:
    """Writes pixels to an image file, and returns them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def channels_first(pixels: np.ndarray) -> np.ndarray:
    """Returns the pixels of an image with shape $(C, H, W)$."""
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]


def pictures_of(count: int, size: int = 16, channels: int = 3, seed: int = 0) -> Pictures:
    """A bright or a dark square on the left or on the right, in one of three colors."""
    generator = torch.Generator().manual_seed(seed)
    truth = {name: torch.randint(values, (count,), generator=generator) for name, values in (("bright", 2), ("left", 2), ("tint", 3))}
    images = 0.4 + 0.1 * torch.rand(count, channels, size, size, generator=generator)
    for image, bright, left, tint in zip(images, *truth.values(), strict=True):
        start = 2 if left else size // 2
        image[:, 4:-4, start : start + size // 2 - 2] = float(bright)
        image[tint % channels, :3] = 1.0
    words = {"tint": Labels(truth["tint"], ("blue", "green", "red"))}
    return Pictures.from_tensors(images, {"bright": truth["bright"], "left": truth["left"], **words})
