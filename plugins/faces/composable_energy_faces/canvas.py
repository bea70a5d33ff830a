r"""Painting by signed distances, and random numbers keyed by name.

A shape is a signed distance $d(x, y)$, negative inside, with opacity $\mathrm{clamp}(1/2 - d / \text{pixel}, 0, 1)$, which antialiases its
edges at any resolution.
"""

import math
import zlib

import torch
from torch import Tensor


class HashedRandom:
    """Stateless random numbers of faces: a hash (splitmix64) of seed, index and name."""

    def __init__(self, seed: int, index: Tensor) -> None:
        self.count = len(index)
        self._key = _mix(index ^ _mix(torch.tensor(seed)))

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Returns numbers in [low, high) with shape (B, 1, 1)."""
        bits = _mix(self._key ^ _mix(torch.tensor(zlib.crc32(name.encode()))))
        return low + (high - low) * _shifted(bits, 40).float().mul(2.0**-24).view(-1, 1, 1)

    def integer(self, name: str, count: int) -> Tensor:
        """Returns integers from 0 to count - 1 with shape (B,)."""
        return (self.uniform(name).flatten() * count).long()

    def color(self, name: str, low: float, high: float, saturation: float) -> Tensor:
        """Returns colors with shape (B, 3): any hue, a grey between low and high, and at most this saturation."""
        hue = self.uniform(f"{name} hue").flatten(1) + torch.tensor([[0.0, 1 / 3, 2 / 3]])
        strength = saturation * self.uniform(f"{name} saturation", 0.3).flatten(1)
        return (self.uniform(f"{name} grey", low, high).flatten(1) + strength * (2 * math.pi * hue).cos()).clamp(0, 1)


def _shifted(bits: Tensor, count: int) -> Tensor:
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = bits + (0x9E3779B97F4A7C15 - (1 << 64))
    bits = (bits ^ _shifted(bits, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    bits = (bits ^ _shifted(bits, 27)) * (0x94D049BB133111EB - (1 << 64))
    return bits ^ _shifted(bits, 31)


class Canvas:
    """A batch of pictures to paint on, and the face coordinates of their pixels."""

    def __init__(self, numbers: HashedRandom, size: int) -> None:
        line = (torch.arange(size) + 0.5) * (2 / size) - 1
        angle, scale = numbers.uniform("tilt", -0.10, 0.10), numbers.uniform("scale", 0.94, 1.06)
        across = (line.view(1, 1, -1) - numbers.uniform("shift x", -0.06, 0.06)) / scale
        down = (line.view(1, -1, 1) - numbers.uniform("shift y", -0.03, 0.06)) / scale
        self.x = across * angle.cos() + down * angle.sin()
        self.y = down * angle.cos() - across * angle.sin()
        self.side = self.x.abs()  # mirrored coordinate: one shape in it paints both sides
        self.height = line.view(1, -1, 1)
        self.pixel = 2 / size / scale
        self.image = torch.zeros(numbers.count, 3, size, size)

    def paint(self, color: Tensor, distance: Tensor, opacity: Tensor | float = 1.0) -> None:
        alpha = (0.5 - distance / self.pixel).clamp_(0, 1).mul_(opacity)
        self.image.lerp_(color[:, :, None, None].expand(*self.image.shape[:2], 1, 1), alpha.unsqueeze(1))


def ellipse(x: Tensor, y: Tensor, width: Tensor | float, height: Tensor | float) -> Tensor:
    """Returns the signed distance to an ellipse around the origin with these half axes, exact along the shorter one."""
    smaller = torch.minimum(torch.as_tensor(width), torch.as_tensor(height))
    return ((x / width).square_().add_((y / height).square_()).sqrt_() - 1) * smaller


def stroke(x: Tensor, y: Tensor, end: tuple[Tensor | float, Tensor | float], radius: Tensor | float) -> Tensor:
    """Returns the signed distance to a round stroke from the origin to `end`."""
    right, down = (torch.as_tensor(part) for part in end)
    along = ((x * right + y * down) / (right * right + down * down)).clamp_(0, 1)
    return ((x - along * right).square_() + (y - along * down).square_()).sqrt_() - radius
