r"""What all energies of images have in common: the shape of their points, and the label that they may depend on.

Notation: $x$ are images in [0, 1] with shape $(B, C, H, W)$ and $H = W$, $y$ their labels, $K$ how many labels there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

import composable_energy as ce
from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy_image.options import whole

__all__ = ["ImageEnergy", "label_vectors"]


class ImageEnergy(ce.Energy, ABC):
    r"""Abstract energy of images; a subclass writes `energies`.

    With `labels` it is conditional: $E(x, y)$, where `given(y=...)` binds one label for all images or one for each, as whole numbers
    from 0 to $K - 1$, or as vectors of $K$ numbers, such as mixtures of labels or a position. Without, it does not depend on `y`.

    Args:
        name: By which the registry knows it.
        size: Height and width of an image, in pixels.
        channels: Channels of an image.
        labels: $K$; None for an unconditional energy.
    """

    def __init__(self, name: str, *, size: int, channels: int, labels: int | None) -> None:
        super().__init__()
        self.name = name
        self.labels = None if labels is None else whole("labels", labels)
        self.event_shape = (whole("channels", channels), size, size)

    @abstractmethod
    def energies(self, x: Tensor, y: Tensor | None, **conditions: Any) -> Tensor:
        """Returns energies with shape $(B,)$.

        Args:
            x: Images, with shape $(B, C, H, W)$.
            y: Label vectors, with shape $(B, K)$; None without labels.
            **conditions: Others, for an energy that says in `conditions` that it has some.
        """

    @property
    def conditions(self) -> frozenset[str]:
        return self.required_conditions

    @property
    def required_conditions(self) -> frozenset[str]:
        return frozenset() if self.labels is None else frozenset({"y"})

    def forward(self, x: Tensor, y: Tensor | None = None, **conditions: Any) -> Tensor:
        return self.energies(x, None if self.labels is None or y is None else label_vectors(y, self.labels, x), **conditions)


def label_vectors(y: Tensor, labels: int, x: Tensor) -> Tensor:
    """Returns labels as vectors with shape $(B, K)$.

    Args:
        y: Whole numbers with shape $(B,)$, or vectors with shape $(B, K)$.
        labels: How many there are, $K$.
        x: The images, for the dtype.

    Raises:
        DtypeError: Labels are no whole numbers.
        OptionError: A label is out of range.
        ShapeError: Vectors have another length.
    """
    if y.ndim == 1:
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise DtypeError(
                f"y must be labels of an integer dtype, such as torch.long, or vectors of shape (B, {labels}); got {y.dtype} of shape "
                f"{tuple(y.shape)}. Write `y.long()` if these are labels, and `y.unsqueeze(0)` if this is one vector for all images."
            )
        if not torch.compiler.is_compiling() and bool(((y < 0) | (y >= labels)).any()):
            raise OptionError(f"y must be labels from 0 to {labels - 1}, got labels from {int(y.min())} to {int(y.max())}.")
        return one_hot(y.long(), labels).to(x.dtype)
    if y.ndim != 2 or y.shape[1] != labels:
        raise ShapeError(f"y must be labels of shape (B,) or vectors of shape (B, {labels}), got {tuple(y.shape)}.")
    if y.is_complex():
        raise DtypeError(f"y must be real vectors, got {y.dtype}.")
    return y.to(x.dtype)
