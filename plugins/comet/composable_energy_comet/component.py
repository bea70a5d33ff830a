r"""The interface of energies of one component of a picture, its coordinates, and quadratic energies with closed-form minima.

A *pose* is three numbers: the centre $p$ of a component (down, right) and its spread $s > 0$, in coordinates of pixels from -1 to 1.

Notation: $x$ are pictures in [0, 1] with shape $(B, C, S, S)$, $z$ latents with shape $(B, K, D)$ of $K$ components, or $(B, D)$ of one.
"""

import inspect
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import composable_energy as ce
from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.options import check_choice, check_integer
from composable_energy.sampling import Noise

POSE = 3
"""Numbers in a pose."""

_LEAST_VARIANCE = 0.01  # keeps the spread positive
_LEAST = -40.0  # a logarithm below any rounding; smaller ones have subnormal numbers or gradients, which slow convolutions down


def check_side(name: str, value: Any, least: int = 16) -> int:
    """Returns a height and width in pixels, a power of two of at least `least`, or raises `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or value & (value - 1):
        some = ", ".join(str(least << i) for i in range(3))
        raise OptionError(f"{name} must be {some} or another power of two, as networks halve pictures; got {value!r}.")
    return value


def coordinate_grid(size: int) -> Tensor:
    """Returns the coordinates of pixels, down and right, with shape $(2, S, S)$."""
    line = torch.linspace(-1, 1, size)
    return torch.stack(torch.meshgrid(line, line, indexing="ij"))


def estimate_pose(attention: Tensor, places: Tensor) -> Tensor:
    """Returns the mean and the spread of attention with shape $(B, N)$ to places with shape $(N, 2)$; the pose has shape $(B, 3)$."""
    centre = attention @ places
    variance = attention @ places.square() - centre.square()
    return torch.cat([centre, (variance.clamp(min=0).mean(1, keepdim=True) + _LEAST_VARIANCE).sqrt()], 1)


def relative_coordinates(pose: Tensor, places: Tensor) -> Tensor:
    """Returns coordinates relative to poses, $(g - p) / 2 s$ and $e^{-|g - p|^2 / 2 s^2}$, with shape $(B, 3, S, S)$."""
    centre, spread = pose[:, :2, None, None], pose[:, 2:, None, None]
    offset = (places - centre) / spread
    return torch.cat([offset / 2, (-offset.square().sum(1, keepdim=True) / 2).clamp(min=_LEAST).exp()], 1)


def options_of(module: nn.Module) -> dict[str, Any]:
    """Returns the arguments of a module's constructor, which it keeps as attributes of their names."""
    return {name: getattr(module, name) for name in inspect.signature(type(module)).parameters}


COORDINATES = ("relative", "absolute", "none")
"""The coordinates that an energy reads: relative to its component, those of the picture, or none."""


class ComponentEnergy(ce.Energy, ABC):
    r"""Abstract energy $E(x, z)$ of pictures that contain a component $z$. A subclass implements `energies`.

    All components share the weights. Latents with shape $(B, K, D)$ give the sum $\sum_k E(x, z_k)$, at a lower cost than $K$ terms.

    Args:
        name: Name in the registry.
        size: Height and width $S$.
        channels: Channels $C$.
        latent: Numbers in the latent of a component, without its pose.
        coordinates: Those that the network reads: `"relative"` to the component, whose pose is the end of $z$, `"absolute"`, or `"none"`.
        start: The start of descents: `"image"`, one image plus a little noise, or `"uniform"`, noise in [0, 1].

    Attributes:
        image: The start image, with shape $(C, S, S)$.
    """

    comes_trained = False
    image: Tensor
    places: Tensor

    def __init__(self, name: str, *, size: int, channels: int, latent: int, coordinates: str, start: str) -> None:
        super().__init__()
        self.name, self.latent = name, check_integer("latent", latent)
        self.size, self.channels = check_side("size", size), check_integer("channels", channels)
        self.event_shape = (channels, size, size)
        self.coordinates = check_choice("coordinates", coordinates, COORDINATES)
        self.start = check_choice("start", start, ("image", "uniform"))
        self.register_buffer("image", torch.full((channels, size, size), 0.5))
        self.register_buffer("places", coordinate_grid(size), persistent=False)

    @abstractmethod
    def energies(self, x: Tensor, z: Tensor) -> Tensor:
        """Returns the energy of each component, with shape $(B, K)$, for latents with shape $(B, K, D)$."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Returns energies with shape $(B,)$ of pictures $x$ with latents $z$."""
        if not z.is_floating_point():
            raise DtypeError(f"z must be latents of a floating dtype, as `encode` returns; got {z.dtype}.")
        if z.ndim not in (2, 3) or z.shape[-1] != self.numbers:
            raise ShapeError(
                f"{self} takes latents z of {self.numbers} numbers, with shape (B, {self.numbers}) or (B, K, {self.numbers}); got "
                f"{tuple(z.shape)}. Were they encoded by another model?"
            )
        return self.energies(x, (z if z.ndim == 3 else z[:, None]).to(x.dtype)).sum(1)

    def set_image(self, images: Tensor) -> None:
        """Sets the start image to the median of images in [0, 1], with shape $(N, C, S, S)$, pixel by pixel.

        Raises:
            OptionError: There is no image, or values lie outside [0, 1].
        """
        if images.shape[1:] != self.image.shape:
            raise ShapeError(f"{self} takes images of shape {tuple(self.image.shape)}, got {tuple(images.shape[1:])}.")
        if not len(images) or not 0 <= float(images.min()) <= float(images.max()) <= 1:
            raise OptionError("The start image is the median of images in [0, 1]; got no images, or values outside [0, 1].")
        self.image.copy_(images.median(0).values)

    def draw_start(self, like: Tensor, noise: Noise, spread: float) -> Tensor:
        """Returns the start of a descent, with the shape of pictures; `spread` is the deviation of noise around the start image."""
        drawn = noise.normal(like)
        return torch.special.ndtr(drawn) if self.start == "uniform" else self.image.to(like) + spread * drawn

    @property
    def numbers(self) -> int:
        """$D$, the numbers in a component, with its pose."""
        return self.latent + POSE * (self.coordinates == "relative")

    def split(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the latents without their poses, and the poses, each with shape $(B K, \\cdot)$; None if there are no poses."""
        z = z.flatten(0, 1)
        return (z[:, : self.latent], z[:, self.latent :]) if self.coordinates == "relative" else (z, None)

    def config(self) -> dict[str, Any]:
        return options_of(self)


class TargetEnergy(ComponentEnergy):
    r"""Abstract quadratic energy of one component, $E(x, z) = \tfrac12 \sum_p w_p(z)\, |x_p - r_p(z)|^2$. A subclass decodes $r$ and $w$.

    The sum over components has its minimum at $x_p = \sum_k w_{kp} r_{kp} / \sum_k w_{kp}$. So training needs no loop and no second
    derivatives, and the masks are $w_{kp} / \sum_j w_{jp}$.
    """

    @abstractmethod
    def decode_targets(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the targets $r$ of latents, with shape $(B, K, C, S, S)$, and log weights with shape $(B, K, 1, S, S)$."""

    def energies(self, x: Tensor, z: Tensor) -> Tensor:
        pictures, weights = self.decode_targets(z)
        return (weights.exp() * (x[:, None] - pictures).square()).flatten(2).sum(2) / 2

    def minimum(self, z: Tensor) -> Tensor:
        """Returns the pictures of lowest energy, with shape $(B, C, S, S)$, for latents with shape $(B, K, D)$."""
        return joint_minimum(*self.decode_targets(z))


def joint_minimum(pictures: Tensor, weights: Tensor) -> Tensor:
    """Returns the minimum of a sum of quadratic energies, with shape $(B, C, S, S)$. Targets have shape $(B, K, C, S, S)$, of one model or
    several, and log weights shape $(B, K, 1, S, S)$."""
    return (weights.maximum(weights.detach().amax(1, keepdim=True) + _LEAST).softmax(1) * pictures).sum(1)


_CELLS = 8  # height and width of the decoder's first grid


class QuadraticEnergy(TargetEnergy):
    r"""A quadratic energy of one component of a picture, $E(x, z) = \tfrac12 \sum_p w_p(z)\, |x_p - r_p(z)|^2$.

    Weights $w > 0$ and pictures $r$ are decoded from the latent. Decoders with masks (MONet, IODINE, slot attention) are energies of this
    kind.
    The price: compositions are mask-like, and a component that changes the whole picture, such as light, needs weight everywhere.

    Args:
        coordinates: `"relative"` or `"absolute"`. Without coordinates the decoder would paint all pixels alike.
        start: `"image"` or `"uniform"`: the start of joint descents with other energies.

    References:
        The decoder: Spatial broadcast decoder (Watters et al., 2019), https://arxiv.org/abs/1901.07017.
    """

    cells: Tensor

    def __init__(
        self,
        size: int = 32,
        channels: int = 3,
        latent: int = 16,
        *,
        filters: int = 48,
        coordinates: Literal["relative", "absolute"] = "relative",
        start: Literal["image", "uniform"] = "image",
    ) -> None:
        check_choice("coordinates", coordinates, ("relative", "absolute"))
        super().__init__("comet-quadratic", size=size, channels=channels, latent=latent, coordinates=coordinates, start=start)
        self.recommended = ce.Recommendation("descent", {"step_size": 0.1}, threads=1)
        self.filters = check_integer("filters", filters)
        self.register_buffer("cells", coordinate_grid(_CELLS), persistent=False)
        self.spread = nn.Linear(latent, filters)
        self.place = nn.Conv2d(POSE if coordinates == "relative" else 2, filters, 1)
        self.mix = nn.Conv2d(filters, filters, 3, 1, 1)
        widths = [filters] * ((size // _CELLS).bit_length() - 1) + [32]  # 1 or more
        growing = [nn.ConvTranspose2d(*pair, 4, 2, 1) for pair in pairwise(widths)]
        self.grow = nn.Sequential(*(layer for one in growing for layer in (one, nn.ReLU())))
        self.paint = nn.Conv2d(32, channels + 1, 3, 1, 1)

    def decode_targets(self, z: Tensor) -> tuple[Tensor, Tensor]:
        latent, pose = self.split(z)
        places = self.cells.expand(len(latent), -1, -1, -1) if pose is None else relative_coordinates(pose, self.cells)
        h = self.spread(latent)[:, :, None, None] + self.place(places)
        decoded = self.paint(self.grow(F.relu(self.mix(F.relu(h))))).unflatten(0, z.shape[:2])
        return decoded[:, :, :-1] + self.image, decoded[:, :, -1:]
