r"""A network of points that is conditioned on a noise level.

Notation: $z$ is a point, $\sigma$ a noise level. The inputs at level $\sigma$ are $z + \sigma \xi$ with Gaussian $\xi$ and $z$ of unit
variance, so networks read them times $c = (1 + \sigma^2)^{-1/2}$, which has unit variance at every level.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDING = 32
"""Numbers in the embedding of a noise level."""

_HIDDEN = 128


class NoiseConditionedMLP(nn.Module):
    """A residual network of points whose blocks are scaled and shifted by the noise level and an optional condition (FiLM).

    If all points share one level, as in sampling, it is embedded once. All outputs are zero before training.
    """

    frequencies: Tensor

    def __init__(self, inputs: int, outputs: int, *, width: int, blocks: int, conditions: int = 0) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequency_table(), persistent=False)
        self.embed = nn.Sequential(nn.Linear(EMBEDDING + conditions, _HIDDEN), nn.SiLU())
        self.read = nn.Linear(inputs, width)
        self.film = nn.ModuleList(nn.Linear(_HIDDEN, 2 * width) for _ in range(blocks))
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
        embedded = embed_level(sigma, self.frequencies)
        if condition is not None:
            embedded = torch.cat([embedded.expand(len(condition), -1), condition], 1)
        embedded = self.embed(embedded)
        h = self.read(points)
        for film, inner, outer in zip(self.film, self.inner, self.outer, strict=True):
            scale, shift = film(embedded).chunk(2, 1)
            h = h + outer(F.silu(torch.addcmul(shift, inner(F.silu(h)), 1 + scale)))
        return self.write(F.silu(h))


def frequency_table() -> Tensor:
    """Returns the frequencies of the embedding of noise levels, with shape $(16,)$."""
    return torch.exp(torch.linspace(math.log(0.125), math.log(5.0), EMBEDDING // 2))


def embed_level(sigma: Tensor, frequencies: Tensor) -> Tensor:
    """Returns sines and cosines of log noise levels, with shape $(B, 32)$, for levels with shape $(B, 1)$ or $(1, 1)$."""
    angles = sigma.log() * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def level_column(sigma: Tensor | float, like: Tensor) -> Tensor:
    """Returns noise levels as a column: shape $(1, 1)$ for a number, a 0-d tensor or one value expanded to a vector, else $(B, 1)$."""
    if isinstance(sigma, Tensor) and sigma.ndim == 1 and sigma.stride(0) == 0:
        sigma = sigma[:1]
    return torch.as_tensor(sigma, dtype=like.dtype, device=like.device).reshape(-1, 1)
