r"""Layers: convolutions whose spectral norm is bounded, and gains and biases for each label.

A spectral norm here is that of the weight as PyTorch reshapes it, outputs times all the rest: it bounds the layer's Lipschitz constant up
to a factor that depends on how often a pixel is read (Miyato et al., 2018, https://arxiv.org/abs/1802.05957, section 2.1).

In training mode each evaluation makes one power iteration, as in the papers. While weights move fast it lags: norms of 1.05 are common, and
1.3 in the first steps. So the iteration goes on until it stands still at the start and whenever a layer goes from training to evaluation,
`energy.eval()`, also for weights that are averages of others. In evaluation mode nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["PerLabel", "convolution", "linear"]

_STILL, _SETTLED = 1e-6, 1e-7
"""A singular value stands still that grows by less than the first, as a fraction; once it moves, it goes on to the second."""

_LEAST, _MOST = 50, 1000
"""Power iterations at the start, where the largest singular values of random weights lie close together; and at most."""


class PerLabel(nn.Module):
    r"""One number for each channel and label, such as a gain or a bias: $s + y T$ with a table $T$ of shape $(K, C)$ that starts at zero.

    So all labels and numbers agree at the start. For whole labels this is the papers' table of gains that start at 1; for vectors it
    differs in that the vector 0 means $s$ and not 0.

    Args:
        channels: $C$.
        rows: $K$; None for one row that all images have.
        start: $s$, 1 for a gain and 0 for a bias.
    """

    def __init__(self, channels: int, rows: int | None, start: float) -> None:
        super().__init__()
        self.start = start
        self.table = nn.Parameter(torch.zeros(rows or 1, channels))

    def forward(self, y: Tensor | None) -> Tensor:
        """Returns the numbers with shape $(B, C, 1, 1)$ of label vectors with shape $(B, K)$, or $(1, C, 1, 1)$ without labels."""
        return (self.start + (self.table if y is None else y @ self.table))[:, :, None, None]


def convolution(
    inputs: int, outputs: int, size: int = 3, *, stride: int = 1, bias: bool = False, spectral: bool = True, starts_at_zero: bool = False
) -> nn.Conv2d:
    """Returns a convolution that keeps the size, or halves it with `stride=2`.

    Args:
        inputs: Channels that it reads.
        outputs: Channels that it writes.
        size: Of its kernel.
        stride: 1 or 2.
        bias: Whether it has a bias.
        spectral: Whether its weight is divided by its spectral norm.
        starts_at_zero: Whether its weight starts at N(0, 1e-10 squared), so that a residual block starts as its skip. Its weight is then
            divided by its spectral norm only where that is above 1: dividing by a norm of 1e-9 would make it 1.
    """
    layer = _Convolution(inputs, outputs, size, stride=stride, padding=(size - 1) // 2, bias=bias)
    return _prepared(layer, spectral, starts_at_zero)


def linear(inputs: int, outputs: int, *, spectral: bool) -> nn.Linear:
    """Returns a linear layer with a bias.

    Args:
        inputs: Numbers that it reads.
        outputs: Numbers that it writes.
        spectral: Whether its weight is divided by its spectral norm.
    """
    return _prepared(_Linear(inputs, outputs), spectral, False)


class _AtMostOne(nn.Module):
    """Divides a weight by its spectral norm where that is above 1, else leaves it alone.

    Args:
        unit: What divides it in any case, for its power iteration.
    """

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self.unit(weight)  # which moves u and v
        u, v = self.unit.get_buffer("_u").clone(), self.unit.get_buffer("_v").clone()
        sigma = torch.dot(u, torch.mv(weight.flatten(1), v))
        return weight / sigma.clamp(min=1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class _Convolution(nn.Conv2d):
    """A convolution that settles its spectral norm before evaluation, and can be pickled with it."""

    def train(self, mode: bool = True) -> _Convolution:
        return _switched(self, mode, super().train)

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (_Convolution, (1, 1, 1), _normalized(self)), self.__dict__


class _Linear(nn.Linear):
    """A linear layer of the same kind."""

    def train(self, mode: bool = True) -> _Linear:
        return _switched(self, mode, super().train)

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (_Linear, (1, 1), _normalized(self)), self.__dict__


def _switched(layer: Any, mode: bool, switch: Callable[[bool], Any]) -> Any:
    if layer.training and not mode and _normalized(layer):
        _settle(layer, 0)
    return switch(mode)


def _blank(cls: Callable[..., nn.Module], arguments: tuple[int, ...], normalized: bool) -> nn.Module:
    """Returns a layer for pickle to fill: PyTorch gives a layer with a parametrization a class that is made on the fly, and refuses to
    pickle it."""
    with torch.random.fork_rng(devices=[]):  # the starting values that will be filled draw random numbers
        layer = cls(*arguments)
        return spectral_norm(layer) if normalized else layer


def _prepared(layer: Any, spectral: bool, starts_at_zero: bool) -> Any:
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.zero_()
        if starts_at_zero:
            layer.weight.normal_(std=1e-10)
    if spectral:
        spectral_norm(layer)
        if starts_at_zero:
            layer.parametrizations["weight"][0] = _AtMostOne(layer.parametrizations["weight"][0])
        _settle(layer, _LEAST)
    return layer


def _normalized(layer: nn.Module) -> bool:
    return "parametrizations" in layer._modules


@torch.no_grad()
def _settle(layer: Any, least: int) -> None:
    """Iterates until the singular value stands still; vectors that are good enough stay as they are, to the bit."""
    weight = layer.parametrizations["weight"].original.flatten(1)
    if weight.is_meta:
        return
    norm = layer.parametrizations["weight"][0]
    norm = norm.unit if isinstance(norm, _AtMostOne) else norm
    u, v = norm.get_buffer("_u"), norm.get_buffer("_v")
    sigma, still = torch.dot(u, weight @ v), _STILL
    for iteration in range(_MOST):
        left = normalize(weight @ v, dim=0)
        right = weight.T @ left
        before, sigma = sigma, right.norm()
        if iteration >= least and sigma <= before * (1 + still):
            return
        still = _SETTLED
        u.copy_(left)
        v.copy_(normalize(right, dim=0))
