r"""A Gaussian mixture of codes whose components belong to combinations of attributes: base and attributes as one closed density.

The density of codes with noise and the posterior of attributes are consistent at each level by construction, so chains find no place
between two kinds of pictures where each attribute alone is likely. It needs many pictures of each combination.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.options import check_integer
from composable_energy_image.noise_conditioning import level_column

_ROWS = 150  # pictures for each full covariance, at least
_SWEEPS = 8  # of k-means
_VARIANCE = 1e-2  # added to all directions
_FEW = 0.2  # least variance of a group of few pictures
_UNSEEN = math.log(1e-6)  # the probability of combinations without pictures


class CodeMixture(ce.Energy):
    r"""The energy $-\log \sum_j w_j \, \mathcal N(z; m_j, C_j + \sigma^2 I)$ of codes with shape $(B, D)$; it is normalized.

    Args:
        code: Numbers $D$ in a code.
        components: Gaussians $J$.
    """

    STEPS: ClassVar[int] = 12
    """Steps of expectation and maximization in `fit`."""

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor
    groups: Tensor

    def __init__(self, code: int, components: int) -> None:
        super().__init__()
        self.event_shape = (code,)
        self.register_buffer("log_weights", torch.full((components,), -math.log(components)))
        self.register_buffer("means", torch.zeros(components, code))  # along the axes of each component
        self.register_buffer("variances", torch.ones(components, code))
        self.register_buffer("axes", torch.eye(code).repeat(1, components))
        self.register_buffer("groups", torch.zeros(components, dtype=torch.int64))

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Returns energies with shape $(B,)$ of codes with shape $(B, D)$ at levels with shape $()$ or $(B,)$."""
        return -self.log_joint(x, sigma).logsumexp(1)

    def log_joint(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Returns the log weight and density of each component, with shape $(B, J)$; see `forward`."""
        variances = self.variances + level_column(sigma, x)[..., None].square()
        scales = variances.rsqrt()
        if len(scales) == 1:  # one level, as in sampling: scaled axes make squared distances in two operations
            z = torch.addmm(-(self.means * scales).flatten(), x, self.axes * scales.flatten()).unflatten(1, self.means.shape)
        else:
            z = ((x @ self.axes).unflatten(1, self.means.shape) - self.means) * scales
        constants = variances.log().sum(2) + x.shape[1] * math.log(2 * math.pi)
        return self.log_weights - (z.square().sum(2) + constants) / 2

    @torch.no_grad()
    def fit(self, codes: Tensor, groups: Tensor, components: Mapping[int, int], seed: int) -> None:
        """Fits components to the codes of each group, by expectation and maximization.

        Args:
            codes: Codes of pictures, with shape $(N, D)$.
            groups: The group of each, with shape $(N,)$.
            components: The number of components of each group.
            seed: Seeds the start.
        """
        parts = []
        for group, count in components.items():
            own = codes[groups == group].double().cpu()
            weights, means, covariances = _fit_gaussians(own, count, torch.Generator().manual_seed(seed + group))
            parts.append((weights.log() + math.log(len(own) / int((groups >= 0).sum())), means, covariances))
        log_weights, means, covariances = (torch.cat(some) for some in zip(*parts, strict=True))
        variances, axes = torch.linalg.eigh(covariances)
        self.log_weights.copy_(log_weights)
        self.means.copy_(torch.einsum("jd,jde->je", means, axes))
        self.variances.copy_(variances)
        self.axes.copy_(axes.transpose(0, 1).flatten(1))
        self.groups.copy_(torch.tensor([group for group, count in components.items() for _ in range(count)]))


class MixtureHeads(nn.Module):
    r"""Logits of the combinations of attributes given a code at a noise level: their posterior in a `CodeMixture`.

    Args:
        outputs: Combinations $K$. Those without a component have probability $10^{-6}$.
        code: Numbers $D$ in a code.
        components: Gaussians of the mixture.
        sigma_min: The default noise level.
    """

    def __init__(self, outputs: int, *, code: int, components: int, sigma_min: float = 0.05) -> None:
        super().__init__()
        self.outputs, self.sigma_min = check_integer("outputs", outputs), sigma_min
        self.mixture = CodeMixture(check_integer("code", code), check_integer("components", components))

    def forward(self, z: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Returns logits with shape $(B, K)$ of codes with shape $(B, D)$ at levels with shape $()$ or $(B,)$."""
        joint, groups = self.mixture.log_joint(z, self.sigma_min if sigma is None else sigma), self.mixture.groups
        peaks = joint.new_full((len(z), self.outputs), -math.inf)
        peaks = peaks.scatter_reduce(1, groups.expand(len(z), -1), joint.detach(), "amax")
        seen, sums = peaks > -math.inf, torch.zeros_like(peaks).index_add(1, groups, (joint - peaks[:, groups]).exp())
        own = torch.where(seen, sums, 1).log() + torch.where(seen, peaks, 0)
        return torch.where(seen, own, joint.logsumexp(1, keepdim=True) + _UNSEEN)


def divide_components(groups: Tensor, total: int) -> dict[int, int]:
    """Returns the number of components of each group, of about `total`: in proportion, at least one, and 150 rows for each of more.

    Rows with group -1 belong to none.
    """
    names, counts = groups[groups >= 0].unique(return_counts=True)
    share = total / int(counts.sum())
    return {group: max(1, min(round(share * rows), rows // _ROWS)) for group, rows in zip(names.tolist(), counts.tolist(), strict=True)}


def _fit_gaussians(rows: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Returns weights, means and covariances of Gaussians, fitted to rows with shape $(N, D)$ in float64."""
    floor = _VARIANCE * torch.eye(rows.shape[1], dtype=rows.dtype)
    if len(rows) < 2 * rows.shape[1]:  # too few for a covariance
        variance = rows.var(0, correction=0).mean().clamp(min=_FEW)
        return rows.new_ones(1), rows.mean(0, keepdim=True), variance * torch.eye(rows.shape[1], dtype=rows.dtype)[None] + floor
    shares = _cluster(rows, count, generator)
    weights, means, covariances = _maximize(rows, shares, floor)
    for _ in range(CodeMixture.STEPS if count > 1 else 0):
        factors = torch.linalg.cholesky(covariances)
        white = torch.linalg.solve_triangular(factors, (rows - means[:, None]).mT, upper=False)
        joint = weights.log()[:, None] - white.square().sum(1) / 2 - factors.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
        weights, means, covariances = _maximize(rows, joint.softmax(0), floor)
    return weights, means, covariances


def _maximize(rows: Tensor, shares: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the Gaussians of rows with shape $(N, D)$ that belong to each of $J$ by shares with shape $(J, N)$."""
    total = shares.sum(1).clamp(min=1e-9)
    means = shares @ rows / total[:, None]
    centered = (rows - means[:, None]) * shares.sqrt()[..., None]
    return total / len(rows), means, centered.mT @ centered / total[:, None, None] + floor


def _cluster(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns which of `count` clusters each row belongs to, as shares with shape $(J, N)$, by k-means from distant rows."""
    centers = rows[torch.randint(len(rows), (1,), generator=generator)]
    while len(centers) < count:
        distance = torch.cdist(rows, centers).amin(1).square()
        centers = torch.cat([centers, rows[torch.multinomial(distance + 1e-12, 1, generator=generator)]])
    shares = rows.new_zeros(count, len(rows))
    for _ in range(_SWEEPS):
        nearest = torch.cdist(rows, centers).argmin(1)
        shares = nn.functional.one_hot(nearest, count).mT.to(rows.dtype)
        centers = torch.where(shares.any(1, keepdim=True), shares @ rows / shares.sum(1, keepdim=True).clamp(min=1), centers)
    return shares
