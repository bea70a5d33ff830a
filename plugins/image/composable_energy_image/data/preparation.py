"""What is done to pictures before a network sees them: flips, shifts and noise that hides the steps between bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.noise import Noise

__all__ = ["Preparation"]

_FLIP, _DOWN, _ACROSS, _DEQUANTIZE = range(4)


@dataclass(frozen=True)
class Preparation:
    r"""Random changes of a batch, each of which is off unless it is asked for.

    Each row is changed by the numbers of its own chain at the step of the noise: the same keys give the same pictures, however the
    rows are divided over calls or processes. The numbers are those of the noise's child "preparation", so they meet no other use of it.

    Args:
        flip: Whether to mirror a picture with probability 1/2, left to right.
        dequantize: What to add, as bytes leave gaps that a density could fill with spikes. `"uniform"` fills each gap: a pixel
            $x = k / 255$ becomes $(k + u) / 256$ with $u$ uniform in $[0, 1]$ (Du & Mordatch, 2019). A number is the standard
            deviation of Gaussian noise, which may leave $[0, 1]$ (0.03 in JEM, Grathwohl et al., 2020). `"none"` adds nothing.
        padding: By how many pixels to shift at most, in each direction; what comes in is mirrored at the border.

    Raises:
        OptionError: An option is out of range.

    References:
        Implicit generation and modeling with energy-based models (Du & Mordatch, 2019), https://arxiv.org/abs/1903.08689
        Your classifier is secretly an energy based model (Grathwohl et al., 2020), https://arxiv.org/abs/1912.03263

    Example:
        >>> import torch
        >>> from composable_energy.noise import Noise
        >>> prepare = Preparation(flip=True, dequantize="uniform")
        >>> images, noise = torch.rand(6, 3, 8, 8), Noise(seed=0, chains=range(6), step=1)
        >>> torch.equal(prepare(images, noise)[4:], prepare(images[4:], noise.for_chains(range(4, 6))))
        True
    """

    flip: bool = False
    dequantize: Literal["none", "uniform"] | float = "none"
    padding: int = 0

    def __post_init__(self) -> None:
        number = isinstance(self.dequantize, (int, float)) and not isinstance(self.dequantize, bool)
        if self.dequantize not in ("none", "uniform") and not (number and 0 < self.dequantize < math.inf):
            raise OptionError(f"dequantize must be 'none', 'uniform' or a positive standard deviation, got {self.dequantize!r}.")
        if not isinstance(self.padding, int) or self.padding < 0:
            raise OptionError(f"padding must be a number of pixels, 0 or more, got {self.padding!r}.")

    def __call__(self, images: Tensor, noise: Noise) -> Tensor:
        """Returns the changed pictures; the given ones stay as they are.

        Args:
            images: Pictures in $[0, 1]$, with shape $(B, C, H, W)$.
            noise: Whose chains are the rows, at the step of the training.

        Raises:
            ShapeError: They are no pictures, not as many as chains, or no larger than the padding.
            DtypeError: They are not floating.
        """
        if images.ndim != 4 or min(images.shape[2:]) <= self.padding:
            larger = f" larger than the padding of {self.padding}" if self.padding else ""
            raise ShapeError(f"Preparation takes pictures of shape (B, C, H, W){larger}, got {tuple(images.shape)}.")
        if not images.is_floating_point():
            raise DtypeError(f"Preparation takes floating pictures in [0, 1], got {images.dtype}; write `images.float() / 255`.")
        noise = noise.child("preparation")
        if self.flip:
            mirrored = noise.uniform(images, _FLIP) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        if self.padding:
            images = self._shift(images, noise)
        if self.dequantize == "uniform":
            filled = torch.special.ndtr(noise.normal(images, _DEQUANTIZE))
            return filled.add_(images, alpha=255).div_(256)
        if self.dequantize == "none":
            return images
        return noise.add_normal_(images.clone(), float(self.dequantize), _DEQUANTIZE)

    def _shift(self, images: Tensor, noise: Noise) -> Tensor:
        size, device = self.padding, images.device
        wide = torch.nn.functional.pad(images, (size,) * 4, mode="reflect")
        down, across = (noise.uniform(images, stream).mul(2 * size + 1).long().clamp_(max=2 * size) for stream in (_DOWN, _ACROSS))
        rows = down[:, None] + torch.arange(images.shape[2], device=device)
        columns = across[:, None] + torch.arange(images.shape[3], device=device)
        row, channel = torch.arange(len(images), device=device), torch.arange(images.shape[1], device=device)
        return wide[row[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
