r"""Augmentation of pictures: a replay buffer applies it to chains, so that they reach more modes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling import Noise

_LUMA = (0.299, 0.587, 0.114)
_YIQ = (_LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


class Augmentation:
    r"""Random crop, flip, color jitter and blur of each picture, drawn from keyed noise (Du et al., 2021).

    It is called with pictures of shape $(B, C, H, W)$ and noise, and returns pictures of the same shape.

    Args:
        crop: The smallest and the largest area of a crop, as a share of the picture's; its sides have a ratio of 3:4 to 4:3, and it is
            resized to the picture. None does not crop.
        flip: Whether to mirror half of the pictures.
        jitter: The strength $j$ of color jitter, from 0 to 1: brightness, contrast and saturation change by a factor in
            $1 \pm 0.8\, j$, hue by up to $0.2\, j$ of a turn. Saturation and hue need three channels.
        blur: The largest standard deviation of a Gaussian blur, in pixels; that of a picture is uniform between 0 and this.
        box: The lowest and the highest value of a pixel; changed colors are clamped to it.

    References:
        Improved contrastive divergence training of energy based models (Du et al., 2021), https://arxiv.org/abs/2012.01316
    """

    def __init__(
        self,
        *,
        crop: tuple[float, float] | None = (0.08, 1.0),
        flip: bool = True,
        jitter: float = 0.5,
        blur: float = 1.0,
        box: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if crop is not None and not 0 < crop[0] <= crop[1] <= 1:
            raise OptionError(f"crop must be a pair of shares with 0 < smallest <= largest <= 1, or None, got {crop}.")
        if not 0 <= jitter <= 1:
            raise OptionError(f"jitter must be in [0, 1], got {jitter}.")
        if not 0 <= blur < math.inf:
            raise OptionError(f"blur must be at least 0 pixels, got {blur}.")
        if not box[0] < box[1]:
            raise OptionError(f"box must be (lowest, highest), got {box}.")
        self.crop, self.flip, self.jitter, self.blur, self.box = crop, flip, jitter, blur, box

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        if x.ndim != 4:
            raise ShapeError(f"An augmentation takes pictures of shape (B, C, H, W), got {tuple(x.shape)}.")
        if self.crop is not None or self.flip:
            x = self._apply_crop(x, noise.child("crop"))
        if self.jitter:
            x = self._apply_jitter(x, noise.child("jitter"))
        return self._apply_blur(x, noise.child("blur")) if self.blur else x

    def _apply_crop(self, x: Tensor, noise: Noise) -> Tensor:
        smallest, largest = self.crop or (1.0, 1.0)
        area = smallest + (largest - smallest) * noise.uniform(x, 0)
        ratio = (4 / 3) ** (2 * noise.uniform(x, 1) - 1) if self.crop else torch.ones_like(area)
        width, height = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
        across, down = (1 - width) * (2 * noise.uniform(x, 2) - 1), (1 - height) * (2 * noise.uniform(x, 3) - 1)
        signed_width = torch.where(noise.uniform(x, 4) < 0.5, -width, width) if self.flip else width
        zero = torch.zeros_like(width)
        transforms = torch.stack([signed_width, zero, across, zero, height, down], 1).view(-1, 2, 3).to(x.dtype)
        grid = F.affine_grid(transforms, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _apply_jitter(self, x: Tensor, noise: Noise) -> Tensor:
        low, high = self.box
        light, contrast, saturation = (unsqueeze_to(1 + 0.8 * self.jitter * (2 * noise.uniform(x, i) - 1), x).to(x.dtype) for i in range(3))
        x = (x - low) / (high - low) * light
        x = torch.lerp(luma(x).mean((2, 3), keepdim=True), x, contrast)
        if x.shape[1] == 3:
            angle = 2 * math.pi * 0.2 * self.jitter * (2 * noise.uniform(x, 3) - 1)
            x = torch.einsum("bij,bjhw->bihw", hue_matrix(angle.to(x.dtype), saturation.view(-1)), x)
        return (x * (high - low) + low).clamp(low, high)

    def _apply_blur(self, x: Tensor, noise: Noise) -> Tensor:
        reach = math.ceil(3 * self.blur)
        sigma = (self.blur * noise.uniform(x)).clamp_min(1e-2)  # practically no blur
        away = torch.arange(-reach, reach + 1, device=x.device)
        weights = torch.softmax(-(away / sigma[:, None]).square() / 2, 1).to(x.dtype).repeat_interleave(x.shape[1], 0)
        planes = x.reshape(1, -1, *x.shape[2:])
        for kernel, pad in ((weights[:, None, None, :], (reach, reach, 0, 0)), (weights[:, None, :, None], (0, 0, reach, reach))):
            planes = F.conv2d(F.pad(planes, pad, mode="replicate"), kernel, groups=planes.shape[1])
        return planes.view_as(x)


def luma(x: Tensor) -> Tensor:
    """Returns the brightness of pictures, with shape $(B, 1, H, W)$; the mean over channels unless there are three."""
    return (x * x.new_tensor(_LUMA).view(-1, 1, 1)).sum(1, keepdim=True) if x.shape[1] == 3 else x.mean(1, keepdim=True)


def hue_matrix(angle: Tensor, saturation: Tensor) -> Tensor:
    """Returns matrices, with shape $(B, 3, 3)$, that rotate the hue and scale the saturation of RGB colors, and keep the luma."""
    yiq = angle.new_tensor(_YIQ)
    cosine, sine, zero = saturation * angle.cos(), saturation * angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([zero + 1, zero, zero, zero, cosine, -sine, zero, sine, cosine], 1).view(-1, 3, 3)
    return torch.linalg.inv(yiq) @ matrix @ yiq
