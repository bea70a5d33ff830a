"""Closed-form mixtures of Gaussians, as leaves that are known by their scores or by their values, and expressions over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import composable_energy as ce

F64 = torch.float64


@dataclass(frozen=True)
class Mixture:
    r"""An isotropic mixture of Gaussians, with noise of level $\sigma$: variances $s_k^2 + \sigma^2$."""

    means: Tensor  # with shape $(K, d)$
    widths: Tensor  # $s_k$, with shape $(K,)$
    shares: Tensor  # with shape $(K,)$

    @classmethod
    def of(cls, means: Sequence[Sequence[float]], width: float | Sequence[float], shares: Sequence[float] | None = None) -> Mixture:
        count = len(means)
        widths = list(width) if isinstance(width, Sequence) else [width] * count
        return cls(*(torch.tensor(values, dtype=F64) for values in (means, widths, shares or [1 / count] * count)))

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns log densities, with shape $(B,)$."""
        return torch.logsumexp(self._parts(x, sigma)[0], 1)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns scores, with shape $(B, d)$."""
        logs, variances = self._parts(x, sigma)
        pulls = torch.softmax(logs, 1) / variances
        return torch.einsum("bk,bkd->bd", pulls, self.means - x[:, None])

    def energy(self, name: str, *, values: bool) -> ce.Energy:
        """Returns the energy with noise levels; without values it is known by its score alone."""
        shape = self.means.shape[1:]
        if values:
            return ce.as_energy(lambda x, sigma: -self.log_density(x, sigma), name=name, event_shape=shape)
        return ce.ScoreEnergy(self.score, name=name, event_shape=shape)

    def _parts(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variances = self.widths.square() + sigma[:, None].square()
        squares = (x[:, None] - self.means).square().sum(2)
        return self.shares.log() - squares / (2 * variances) - x.shape[1] / 2 * (2 * math.pi * variances).log(), variances


LEAVES: Mapping[str, Mixture] = {
    "base": Mixture.of([[0.0, 0.0]], 2.0),
    "A": Mixture.of([[1.5, 0.0], [-1.5, 0.0]], 0.6),
    "B": Mixture.of([[1.5, 1.0], [0.0, -2.0]], 0.7),
    "C": Mixture.of([[-1.5, 0.5]], 0.8),
    "D": Mixture.of([[0.5, 1.5], [-1.0, -1.0]], [0.5, 0.9], [0.3, 0.7]),
    "G": Mixture.of([[0.0, 0.8]], 1.2),
    "H": Mixture.of([[-2.0, -0.5], [2.0, -0.5]], 0.5, [0.8, 0.2]),
    "K": Mixture.of([[1.0, -1.2], [1.0, 1.2], [-1.2, 0.0]], 0.6),
}

EXPRESSIONS: Mapping[str, Callable[..., ce.Energy]] = {
    "A & B": lambda A, B, **_: A & B,
    "A & ~B": lambda A, B, **_: A & ~B,
    "A | B": lambda A, B, **_: A | B,
    "A ^ G": lambda A, G, **_: A ^ G,
    "A.sharpened(.3)": lambda A, **_: A.sharpened(0.3),
    "G.sharpened(2) & ~C": lambda G, C, **_: G.sharpened(2) & ~C,
    "(A & B) | (C & ~B)": lambda A, B, C, **_: (A & B) | (C & ~B),
    "(A | D) & (G | ~H)": lambda A, D, G, H, **_: (A | D) & (G | ~H),
    "~(A & ~(B | C)) & K": lambda A, B, C, K, **_: ~(A & ~(B | C)) & K,
    "((A & ~B) | (D & G)) & ~(H & K)": lambda A, B, D, G, H, K, **_: ((A & ~B) | (D & G)) & ~(H & K),
}


def expressions(*, values: bool) -> dict[str, ce.Energy]:
    """Returns the expressions over leaves relative to the base, by their names."""
    leaves = {name: leaf.energy(name, values=values) for name, leaf in LEAVES.items()}
    base = leaves.pop("base")
    concepts = {name: leaf.relative_to(base) for name, leaf in leaves.items()}
    return {name: build(**concepts) for name, build in EXPRESSIONS.items()}


def quadrants(x: Tensor) -> Tensor:
    """Returns the shares of points in the four quadrants of the first two coordinates."""
    return torch.bincount(2 * (x[:, 0] > 0) + (x[:, 1] > 0), minlength=4).double() / len(x)


def quadrant_shares(energy: ce.Energy, half_width: float = 8.0, count: int = 800) -> tuple[Tensor, float]:
    r"""Returns the shares of the quadrants, and $\log Z$, by quadrature without noise."""
    side = (torch.arange(count, dtype=F64) + 0.5) * (2 * half_width / count) - half_width
    grid = torch.cartesian_prod(side, side)
    log_density = -energy(grid, sigma=0.0)
    where = 2 * (grid[:, 0] > 0) + (grid[:, 1] > 0)
    shares = torch.zeros(4, dtype=F64).index_add_(0, where.long(), torch.softmax(log_density, 0))
    return shares, log_density.logsumexp(0).item() + 2 * math.log(2 * half_width / count)
