r"""The interface of energies of images, with an optional condition: a label, or real numbers.

Notation: $x$ are images in [0, 1] with shape $(B, C, H, W)$ and $H = W$, $y$ is the condition, $K$ the number of labels or numbers.
"""

import math
from abc import ABC, abstractmethod
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import composable_energy as ce
from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.options import check_choice, check_integer

_WAVES = (1, 2, 4)
"""Half periods of the sines and cosines of a number, over the range -1 to 1."""


Activation = Literal["leaky-relu", "relu", "swish"]
"""Names of activations. The leaky ReLU has slope 0.2 below zero, as in the papers."""

_ACTIVATIONS = {"leaky-relu": partial(nn.LeakyReLU, 0.2), "relu": nn.ReLU, "swish": nn.SiLU}


class ImageEnergy(ce.Energy, ABC):
    r"""Abstract energy of images. A subclass implements `energies`.

    With `labels` the energy is conditional, $E(x, y)$: `given(y=...)` binds one label for all images or one for each, as integers from 0 to
    $K - 1$, or as vectors of $K$ numbers, such as mixtures of labels. With `numbers` it is conditional on $K$ real numbers of order 1, such
    as a position: `given(y=...)` binds one row for all images, with shape $(1, K)$, or one for each. The network reads the numbers and
    sines and cosines of them. With neither, the energy does not depend on `y`.

    Args:
        name: Name in the registry.
        labels: Number of labels $K$; None for none.
        numbers: Number of real conditions $K$; None for none.

    Attributes:
        rows: Numbers in the condition that the network reads; None without a condition.

    Raises:
        OptionError: Both `labels` and `numbers` are given.
    """

    comes_trained = False

    def __init__(self, name: str, *, size: int, channels: int, labels: int | None, numbers: int | None = None) -> None:
        super().__init__()
        self.name = name
        if labels is not None and numbers is not None:
            way = "train one energy for each, and join them by `&`."
            raise OptionError(f"An energy is conditioned on a label or on numbers, got labels={labels!r}, numbers={numbers!r}: {way}")
        self.labels = None if labels is None else check_integer("labels", labels)
        self.numbers = None if numbers is None else check_integer("numbers", numbers)
        self.rows = self.labels if self.numbers is None else self.numbers * (1 + 2 * len(_WAVES))
        self.event_shape = (check_integer("channels", channels), check_integer("size", size), size)

    @abstractmethod
    def energies(self, x: Tensor, y: Tensor | None, **conditions: Any) -> Tensor:
        """Returns energies with shape $(B,)$ of images with a condition `y` of shape $(B, rows)$ or None, and others in `conditions`."""

    @property
    def conditions(self) -> frozenset[str]:
        return self.required_conditions

    @property
    def required_conditions(self) -> frozenset[str]:
        return frozenset() if self.rows is None else frozenset({"y"})

    def forward(self, x: Tensor, y: Tensor | None = None, **conditions: Any) -> Tensor:
        if y is not None and self.numbers is not None:
            y = number_features(y, self.numbers, x)
        elif y is not None:
            y = None if self.labels is None else label_vectors(y, self.labels, x)
        return self.energies(x, y, **conditions)


def label_vectors(y: Tensor, labels: int, x: Tensor) -> Tensor:
    """Returns labels as vectors with shape $(B, K)$, from integers with shape $(B,)$ or vectors with shape $(B, K)$."""
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


def number_features(y: Tensor, numbers: int, x: Tensor) -> Tensor:
    r"""Returns numbers $v$, $(B, K)$ or $(B,)$, with $\sin$ and $\cos$ of $\tfrac{\pi}{2} k v$, $k$ = 1, 2, 4, with shape $(B, 7 K)$."""
    if y.is_complex() or y.dtype == torch.bool:
        raise DtypeError(f"y must be real numbers, got {y.dtype}.")
    vectors = y[:, None] if numbers == y.ndim == 1 else y
    if vectors.ndim != 2 or vectors.shape[1] != numbers:
        raise ShapeError(
            f"y must be {numbers} number{'s' * (numbers > 1)} for each image, with shape (B, {numbers}), got {tuple(y.shape)}. Write "
            "`y.unsqueeze(0)` if this is one row for all images."
        )
    vectors = vectors.to(x.dtype)
    angles = torch.cat([vectors * (math.pi / 2 * wave) for wave in _WAVES], 1)
    return torch.cat([vectors, angles.sin(), angles.cos()], 1)


def activation_of(name: str) -> nn.Module:
    """Returns a new activation layer, and raises `OptionError` if the name is unknown."""
    return _ACTIVATIONS[check_choice("activation", name, list(_ACTIVATIONS))]()


def check_multiple(name: str, value: object, of: int, why: str) -> int:
    """Returns the value of an argument, a positive multiple of an integer; the error gives the reason."""
    if isinstance(value, bool) or not isinstance(value, int) or value < of or value % of:
        raise OptionError(f"{name} must be a multiple of {of} ({of}, {2 * of}, {3 * of}, ...), because {why}; got {value!r}.")
    return value


def recommend_langevin(
    step: float, noise: float, *, clamp: tuple[float, float] | None = (0.0, 1.0), max_gradient: float | None = None
) -> ce.Recommendation:
    r"""Returns `langevin` with a paper's steps $x' = \text{clamp}(x - \text{step}\, \nabla E(x) + \text{noise}\, \xi)$. The step size is
    $\lambda = 2\, \text{step}$ and the temperature $\text{noise}^2 / \lambda$, far below 1, so the chains nearly descend."""
    options = {"step_size": 2 * step, "temperature": noise**2 / (2 * step), "clamp": clamp, "max_gradient": max_gradient}
    return ce.Recommendation("langevin", options)
