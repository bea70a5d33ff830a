r"""Energies of one component of a picture: what the convolutional and the quadratic one have in common.

Notation: $x$ are pictures in [0, 1] with shape $(B, C, S, S)$, $z$ latents with shape $(B, K, D)$ of $K$ components, or $(B, D)$ of one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.sampling import Noise
from composable_energy_comet.options import one_of, picture_size, whole
from composable_energy_comet.places import POSE
from composable_energy_comet.places import coordinates as grid

__all__ = ["COORDINATES", "ComponentEnergy"]

COORDINATES = ("relative", "absolute", "none")
"""What energies know of places: those seen from their component, those of the picture, or nothing."""


class ComponentEnergy(ce.Energy, ABC):
    r"""Abstract energy $E(x, z)$ of pictures in which there is a component $z$; a subclass writes `energies`.

    All components share the weights. Several at once, with shape $(B, K, D)$, count by their sum $\sum_k E(x, z_k)$, which costs less than
    that of $K$ terms and is the same.

    Args:
        name: By which the registry knows it.
        size: $S$.
        channels: $C$.
        latent: Numbers of a component, without its pose.
        coordinates: What it knows of places: `"relative"` to its component, whose pose is the end of $z$; `"absolute"`, or `"none"`.
        start: Where descents begin: `"image"`, at one image with a little noise, or `"uniform"`, at noise in [0, 1].

    Attributes:
        image: The image to start at, with shape $(C, S, S)$.

    Raises:
        OptionError: An option is out of range.
    """

    image: Tensor
    places: Tensor

    def __init__(self, name: str, *, size: int, channels: int, latent: int, coordinates: str, start: str) -> None:
        super().__init__()
        self.name, self.latent = name, whole("latent", latent)
        self.size, self.channels = picture_size(size), whole("channels", channels)
        self.event_shape = (channels, size, size)
        self.coordinates = one_of("coordinates", coordinates, COORDINATES)
        self.start = one_of("start", start, ("image", "uniform"))
        self.register_buffer("image", torch.full((channels, size, size), 0.5))
        self.register_buffer("places", grid(size), persistent=False)

    @abstractmethod
    def energies(self, x: Tensor, z: Tensor) -> Tensor:
        """Returns the energy of each component, with shape $(B, K)$.

        Args:
            x: Pictures, with shape $(B, C, S, S)$.
            z: Latents, with shape $(B, K, D)$.
        """

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Returns energies with shape $(B,)$.

        Args:
            x: Pictures, with shape $(B, C, S, S)$.
            z: Latents, with shape $(B, K, D)$, or $(B, D)$ of one component.

        Raises:
            ShapeError: The latents are of other numbers.
            DtypeError: They are no real numbers.
        """
        if not z.is_floating_point():
            raise DtypeError(f"z must be latents of a floating dtype, as `encode` gives them; got {z.dtype}.")
        if z.ndim not in (2, 3) or z.shape[-1] != self.numbers:
            raise ShapeError(
                f"{self} takes latents z of {self.numbers} numbers, with shape (B, {self.numbers}) or (B, K, {self.numbers}); got "
                f"{tuple(z.shape)}. Were they encoded by another model?"
            )
        return self.energies(x, (z if z.ndim == 3 else z[:, None]).to(x.dtype)).sum(1)

    def set_image(self, images: Tensor) -> None:
        """Takes the median of images, pixel by pixel, as that to start at.

        Args:
            images: With shape $(N, C, S, S)$, in [0, 1].

        Raises:
            ShapeError: They are of another size.
            OptionError: There is none, or they are not in [0, 1].
        """
        if images.shape[1:] != self.image.shape:
            raise ShapeError(f"{self} takes images of shape {tuple(self.image.shape)}, got {tuple(images.shape[1:])}.")
        if not len(images) or not 0 <= float(images.min()) <= float(images.max()) <= 1:
            raise OptionError("The image to start at is the median of images in [0, 1]; got none, or others.")
        self.image.copy_(images.median(0).values)

    def begun(self, like: Tensor, noise: Noise, spread: float) -> Tensor:
        """Returns pictures to start a descent at, with shape $(B, C, S, S)$.

        Args:
            like: Pictures, for shape, dtype and device.
            noise: The noise of these pictures.
            spread: The deviation of the noise on the image.
        """
        drawn = noise.normal(like)
        return torch.special.ndtr(drawn) if self.start == "uniform" else self.image.to(like) + spread * drawn

    @property
    def numbers(self) -> int:
        """$D$, how many numbers a component has, with its pose."""
        return self.latent + POSE * (self.coordinates == "relative")

    def split(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns latents of all components, with shape $(B K, \\cdot)$, without and of their poses; None where they have none."""
        z = z.flatten(0, 1)
        return (z[:, : self.latent], z[:, self.latent :]) if self.coordinates == "relative" else (z, None)

    def shared_config(self) -> dict[str, Any]:
        """Returns the arguments that all such energies have, for `config`."""
        return {name: getattr(self, name) for name in ("size", "channels", "latent", "coordinates", "start")}
