r"""The energy of COMET: a small convolutional network that is told the latent of a component."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import composable_energy as ce
from composable_energy_comet.component import ComponentEnergy
from composable_energy_comet.options import one_of, positive, whole
from composable_energy_comet.places import POSE, seen_from
from composable_energy_comet.silu import silu

__all__ = ["ConvEnergy"]


class ConvEnergy(ComponentEnergy):
    r"""$E(x, z)$ by convolutions: three residual blocks whose gains and offsets are linear in $z$, the mean over the picture, and a number.

    With relative coordinates a second convolution beside the first reads where pixels are as seen from the component, $(g - p) / 2s$ and
    $e^{-|g - p|^2 / 2 s^2}$ with the pose $(p, s)$; with absolute ones the first reads coordinates $g$ beside colors. What does not depend
    on $z$ is computed once for all components of a picture.

    A step of size 1 down the sum of components is what training made of it: the learnt size of a step is a scale of the energy, so energies
    that were trained apart go down together.

    Args:
        size: Height and width of pictures.
        channels: Of pictures.
        latent: Numbers of a component, without its pose.
        filters: Of the first two blocks; the third has twice as many.
        coordinates: `"relative"`, `"absolute"` or `"none"`.
        stem: How the first convolution halves a picture: `"pool"` after it, or by a `"stride"` of 2, which is cheaper.
        step: The size of a step of the descent before training, which learns it.
        iterations: Steps of the descent.
        start: `"image"` or `"uniform"`.

    Raises:
        OptionError: An option is out of range.

    References:
        Unsupervised learning of compositional energy concepts (Du et al., 2021), https://arxiv.org/abs/2111.03042, appendix A: 64 filters,
        absolute coordinates, `start="uniform"`. Its normalization layers are made and never called, so there are none.
    """

    def __init__(
        self,
        size: int = 32,
        channels: int = 3,
        latent: int = 16,
        *,
        filters: int = 32,
        coordinates: Literal["relative", "absolute", "none"] = "relative",
        stem: Literal["pool", "stride"] = "pool",
        step: float = 100.0,
        iterations: int = 3,
        start: Literal["image", "uniform"] = "image",
    ) -> None:
        told = {"size": size, "channels": channels, "latent": latent, "coordinates": coordinates}
        super().__init__("comet-conv", **told, start=start)
        self.filters, self.step, self.iterations = whole("filters", filters), positive("step", step), whole("iterations", iterations)
        self.recommended = ce.Recommendation("inner-descent", {"iterations": iterations}, threads=1)
        self.stem = one_of("stem", stem, ("pool", "stride"))
        reads = channels + 2 * (coordinates == "absolute")
        self.read = nn.Conv2d(reads, filters, 3, 1, 1) if stem == "pool" else nn.Conv2d(reads, filters, 4, 2, 1)
        if coordinates == "relative":
            self.place = nn.Conv2d(POSE, filters, 3, 1, 1, bias=False) if stem == "pool" else nn.Conv2d(POSE, filters, 4, 2, 1, bias=False)
        else:
            self.place = None
        self.blocks = nn.ModuleList(_Block(filters, outputs, latent) for outputs in (filters, filters, 2 * filters))
        self.tell = nn.Linear(2 * filters, 1)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def energies(self, x: Tensor, z: Tensor) -> Tensor:
        told, pose = self.split(z)
        components = z.shape[1]
        h = self.read(torch.cat([x, self.places.expand(len(x), -1, -1, -1)], 1) if self.coordinates == "absolute" else x)
        if self.place is not None and pose is not None:
            h = h.repeat_interleave(components, 0) + self.place(seen_from(pose, self.places))
        h = silu(h)
        if self.stem == "pool":
            h = F.avg_pool2d(h, 2)
        for block in self.blocks:
            h = block(h, told)
        return self.step * self.log_scale.exp() * self.tell(h.mean((2, 3))).view(len(x), components)

    def config(self) -> dict[str, Any]:
        return {**self.shared_config(), **{name: getattr(self, name) for name in ("filters", "stem", "step", "iterations")}}


class _Block(nn.Module):
    """A residual block whose gains and offsets are linear in the latent, and which halves a picture."""

    def __init__(self, filters: int, outputs: int, latent: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(filters, filters, 3, 1, 1), nn.Conv2d(filters, filters, 3, 1, 1)
        self.last = nn.Conv2d(filters, outputs, 3, 1, 1)
        self.told = nn.Linear(latent, 4 * filters)
        nn.init.normal_(self.second.weight, 0, 1e-5)
        nn.init.zeros_(self.second.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Returns features with shape $(B K, \\cdot, \\cdot, \\cdot)$; x has $B$ rows, if no component changed it yet, or $B K$."""
        gain, offset, gain2, offset2 = self.told(z)[:, :, None, None].chunk(4, 1)
        h = self.first(x)
        if len(h) != len(z):
            h, x = h.repeat_interleave(len(z) // len(h), 0), x.repeat_interleave(len(z) // len(x), 0)
        h = silu(h * (1 + gain) + offset)
        h = silu(self.second(h) * (1 + gain2) + offset2) + x
        return F.avg_pool2d(silu(self.last(h)), 2)
