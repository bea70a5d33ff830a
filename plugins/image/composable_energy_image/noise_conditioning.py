r"""A network that reads points and a noise level.

Notation: $z$ is a point, $\sigma$ a noise level. What is learnt at level $\sigma$ speaks of $z + \sigma \xi$, where $z$ has unit variance
and $\xi$ is Gaussian, so networks read $u = c z$ with $c = (1 + \sigma^2)^{-1/2}$, which has unit variance at every level.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NoiseConditionedMLP", "column"]

_FREQUENCIES, _EMBEDDED = 16, 128


class NoiseConditionedMLP(nn.Module):
    """A residual network that reads points and a noise level; its blocks are scaled and shifted by the level (FiLM).

    One level for the whole batch (the case when sampling) is embedded once.

    Args:
        inputs: Numbers in a point.
        outputs: Numbers returned for a point; all zero before training.
        width: Hidden units.
        blocks: Residual blocks.
        conditions: Numbers in an optional condition beside the level.
    """

    frequencies: Tensor

    def __init__(self, inputs: int, outputs: int, *, width: int, blocks: int, conditions: int = 0) -> None:
        super().__init__()
        frequencies = torch.exp(torch.linspace(math.log(0.125), math.log(5.0), _FREQUENCIES))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.embed = nn.Sequential(nn.Linear(2 * _FREQUENCIES + conditions, _EMBEDDED), nn.SiLU())
        self.read = nn.Linear(inputs, width)
        self.film = nn.ModuleList(nn.Linear(_EMBEDDED, 2 * width) for _ in range(blocks))
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.write = nn.Linear(width, outputs)
        with torch.no_grad():
            for name, parameter in self.film.named_parameters():
                parameter.mul_(0.3 if name.endswith("weight") else 1.0)
            for layer in (*self.outer, self.write):
                for parameter in layer.parameters():
                    parameter.zero_()

    def forward(self, points: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Returns values with shape $(B, outputs)$ of points with shape $(B, inputs)$ at levels with shape $(B, 1)$ or $(1, 1)$."""
        angles = sigma.log() * self.frequencies
        embedded = torch.cat([angles.sin(), angles.cos()], 1)
        if condition is not None:
            embedded = torch.cat([embedded.expand(len(condition), -1), condition], 1)
        embedded = self.embed(embedded)
        h = self.read(points)
        for film, inner, outer in zip(self.film, self.inner, self.outer, strict=True):
            scale, shift = film(embedded).chunk(2, 1)
            h = h + outer(F.silu(torch.addcmul(shift, inner(F.silu(h)), 1 + scale)))
        return self.write(F.silu(h))


def column(sigma: Tensor | float, like: Tensor) -> Tensor:
    """Returns levels as a column: $(1, 1)$ from a number, a 0-d tensor or one value expanded to a vector, else $(B, 1)$."""
    if isinstance(sigma, Tensor) and sigma.ndim == 1 and sigma.stride(0) == 0:
        sigma = sigma[:1]
    return torch.as_tensor(sigma, dtype=like.dtype, device=like.device).reshape(-1, 1)
