r"""Layers: convolutions with bounded spectral norm, and gains and biases per label.

The spectral norm is that of the weight as a matrix, outputs times all the rest. It bounds the layer's Lipschitz constant up to a factor
that depends on how often a pixel is read (Miyato et al., 2018, https://arxiv.org/abs/1802.05957, section 2.1).

In training mode each evaluation makes one power iteration, as in the papers. While weights change fast the estimate lags: norms of 1.05
are common, and 1.3 in the first steps. So power iteration runs to convergence at construction, and whenever a layer switches from training
to evaluation by `energy.eval()`, also for averaged weights. In evaluation mode the estimate is constant.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrizations import spectral_norm

_CONVERGED, _CONVERGED_AFTER_MOVING = 1e-6, 1e-7
"""Relative growth of the singular value below which iteration stops: before and after the first iteration that changes the vectors."""

_LEAST, _MOST = 50, 1000
"""Power iterations at construction, where the largest singular values of random weights are close, and at most."""


class PerLabel(nn.Module):
    r"""A gain or bias per channel and label: $s + y T$ with a table $T$ of shape $(K, C)$ that starts at zero.

    So all labels start alike. For integer labels this is the papers' table of gains that start at 1. For vectors it differs: the vector 0
    gives $s$ and not 0. `rows` is $K$, None for one row for all images, and `start` is $s$, 1 for a gain and 0 for a bias.
    """

    def __init__(self, channels: int, rows: int | None, start: float) -> None:
        super().__init__()
        self.start = start
        self.table = nn.Parameter(torch.zeros(rows or 1, channels))

    def forward(self, y: Tensor | None) -> Tensor:
        """Returns values with shape $(B, C, 1, 1)$ for label vectors with shape $(B, K)$, or $(1, C, 1, 1)$ without labels."""
        return (self.start + (self.table if y is None else y @ self.table))[:, :, None, None]


def convolution(
    inputs: int, outputs: int, size: int = 3, *, stride: int = 1, bias: bool = False, spectral: bool = True, starts_at_zero: bool = False
) -> nn.Conv2d:
    """Returns a convolution that keeps the size, or halves it with `stride=2`.

    With `starts_at_zero` the weight starts at N(0, 1e-10 squared), so that a residual block starts as its skip. With `spectral` the weight
    is divided by its spectral norm; one that starts at zero only if its norm is above 1, because dividing by 1e-9 would undo the start.
    """
    return _initialize(_Convolution(inputs, outputs, size, stride=stride, padding=(size - 1) // 2, bias=bias), spectral, starts_at_zero)


def linear(inputs: int, outputs: int, *, spectral: bool) -> nn.Linear:
    """Returns a linear layer with a bias, with `spectral` divided by its spectral norm."""
    return _initialize(_Linear(inputs, outputs), spectral, False)


def halving_convolutions(*channels: int) -> list[nn.Module]:
    """Returns convolutions that halve height and width, each with a batch norm and an activation, for networks that judge pictures."""
    return [layer for pair in itertools.pairwise(channels) for layer in (nn.Conv2d(*pair, 3, 2, 1), nn.BatchNorm2d(pair[1]), nn.SiLU())]


class _AtMostOne(nn.Module):
    """A parametrization that divides a weight by its spectral norm if that is above 1; `unit`, PyTorch's own, always divides."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self.unit(weight)  # updates u and v
        u, v = self.unit.get_buffer("_u").clone(), self.unit.get_buffer("_v").clone()
        return weight / torch.dot(u, torch.mv(weight.flatten(1), v)).clamp(min=1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def _train(self: Any, mode: bool = True) -> Any:
    """Converges the spectral norm of a layer before evaluation."""
    if self.training and not mode and _normalized(self):
        _converge(self, 0)
    return nn.Module.train(self, mode)


def _reduce(self: Any) -> tuple[Any, ...]:
    """Pickles a layer with its parametrization."""
    kind, arguments = (_Linear, (1, 1)) if isinstance(self, nn.Linear) else (_Convolution, (1, 1, 1))
    return _new_layer, (kind, arguments, _normalized(self)), self.__dict__


class _Convolution(nn.Conv2d):
    train, __reduce__ = _train, _reduce


class _Linear(nn.Linear):
    train, __reduce__ = _train, _reduce


def _new_layer(cls: Callable[..., nn.Module], arguments: tuple[int, ...], normalized: bool) -> nn.Module:
    """Returns a layer for pickle to fill. PyTorch gives a parametrized layer a dynamic class, which it refuses to pickle."""
    with torch.random.fork_rng(devices=[]):  # construction draws initial values, which pickle overwrites
        layer = cls(*arguments)
        return spectral_norm(layer) if normalized else layer


def _initialize(layer: Any, spectral: bool, starts_at_zero: bool) -> Any:
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.zero_()
        if starts_at_zero:
            layer.weight.normal_(std=1e-10)
    if spectral:
        spectral_norm(layer)
        if starts_at_zero:
            layer.parametrizations["weight"][0] = _AtMostOne(layer.parametrizations["weight"][0])
        _converge(layer, _LEAST)
    return layer


def _normalized(layer: nn.Module) -> bool:
    return "parametrizations" in layer._modules


@torch.no_grad()
def _converge(layer: Any, least: int) -> None:
    """Iterates until the singular value converges; vectors that have converged already stay as they are, to the bit."""
    if (weight := layer.parametrizations["weight"].original.flatten(1)).is_meta:
        return
    norm = layer.parametrizations["weight"][0]
    norm = norm.unit if isinstance(norm, _AtMostOne) else norm
    u, v = norm.get_buffer("_u"), norm.get_buffer("_v")
    sigma, tolerance = torch.dot(u, weight @ v), _CONVERGED
    for iteration in range(_MOST):
        left = normalize(weight @ v, dim=0)
        right = weight.T @ left
        before, sigma = sigma, right.norm()
        if iteration >= least and sigma <= before * (1 + tolerance):
            return
        tolerance = _CONVERGED_AFTER_MOVING
        u.copy_(left)
        v.copy_(normalize(right, dim=0))
