r"""A Gaussian mixture of codes whose components belong to combinations of attributes: base and attributes as one closed density.

The density of codes with noise and the posterior of attributes are consistent at each level by construction, so chains find no place
between two kinds of pictures where each attribute alone is likely. `mixture_fitting` fits it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.options import check_integer
from composable_energy_image.noise_conditioning import level_column

_UNSEEN = -60.0  # log probability of combinations without a component; at a higher one evidence is flat where an edit begins


class CodeMixture(ce.Energy):
    r"""The energy $-\log \sum_j w_j \, \mathcal N(z; m_j, C_{g(j)} + \sigma^2 I)$ of codes with shape $(B, D)$; it is normalized.

    Args:
        code: Numbers $D$ in a code.
        components: Gaussians $J$, in runs of equal length that share a covariance.
        frames: Covariances, a divisor of $J$; 0 for one of each component.

    Raises:
        OptionError: Components do not divide into frames.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor
    groups: Tensor

    def __init__(self, code: int, components: int, frames: int = 0) -> None:
        super().__init__()
        frames = check_integer("frames", frames, 0) or components
        if components % frames:
            raise OptionError(f"{components} components do not divide into {frames} frames.")
        self.event_shape = (code,)
        self.register_buffer("log_weights", torch.full((components,), -math.log(components)))
        self.register_buffer("means", torch.zeros(components, code))  # along the axes of its covariance
        self.register_buffer("variances", torch.ones(frames, code))
        self.register_buffer("axes", torch.eye(code).repeat(1, frames))
        self.register_buffer("groups", torch.zeros(components, dtype=torch.int64))

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Returns energies with shape $(B,)$ of codes with shape $(B, D)$ at levels with shape $()$ or $(B,)$."""
        return -self.log_joint(x, sigma).logsumexp(1)

    def log_joint(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Returns the log weight and density of each component, with shape $(B, J)$; see `forward`."""
        frames, means = len(self.variances), self.means.view(len(self.variances), -1, x.shape[1])  # (G, M, D)
        variances = self.variances + level_column(sigma, x)[..., None].square()  # (1 or B, G, D)
        scales, constants = variances.rsqrt(), variances.log().sum(2) + x.shape[1] * math.log(2 * math.pi)
        if len(scales) > 1:
            z = (x @ self.axes).unflatten(1, (frames, 1, -1))
            squared = ((z - means) * scales[:, :, None]).square().sum(3)
        else:  # one level, as in sampling: scaled axes and a product save operations on all components
            centres = means * scales[0, :, None]
            first = centres[:, :1]  # of each frame; differences from it are small, and squares of small numbers lose few digits
            z = torch.addmm(-first.flatten(), x, self.axes * scales.flatten()).unflatten(1, (frames, -1))
            squared = z.square().sum(2, keepdim=True)
            if means.shape[1] > 1:
                others = centres - first
                squared = squared + others.square().sum(2) - 2 * (z.transpose(0, 1) @ others.mT).transpose(0, 1)
        return self.log_weights - ((squared + constants[..., None]) / 2).flatten(1)

    def draw(self, components: Tensor, sigma: float, normals: Tensor) -> Tensor:
        """Returns a draw of each of some components, with shape $(B,)$, at a noise level, made of normal numbers with shape $(B, D)$."""
        frames = components // (len(self.means) // len(self.variances))
        along = self.means[components] + (self.variances[frames] + sigma**2).sqrt() * normals
        return torch.einsum("dbj,bj->bd", self.axes.unflatten(1, (len(self.variances), -1))[:, frames], along)


class MixtureHeads(nn.Module):
    r"""Logits of the combinations of attributes given a code at a noise level: their posterior in a `CodeMixture`.

    Args:
        outputs: Combinations $K$. Those without a component have probability $e^{-60}$.
        code: Numbers $D$ in a code.
        components: Gaussians of the mixture.
        sigma_min: The default noise level.
        frames: Covariances of the mixture, see `CodeMixture`.
    """

    def __init__(self, outputs: int, *, code: int, components: int, sigma_min: float = 0.05, frames: int = 0) -> None:
        super().__init__()
        self.outputs, self.sigma_min = check_integer("outputs", outputs), sigma_min
        self.mixture = CodeMixture(check_integer("code", code), check_integer("components", components), frames)

    def forward(self, z: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Returns logits with shape $(B, K)$ of codes with shape $(B, D)$ at levels with shape $()$ or $(B,)$."""
        joint, groups = self.mixture.log_joint(z, self.sigma_min if sigma is None else sigma), self.mixture.groups
        peaks = joint.new_full((len(z), self.outputs), -math.inf)
        peaks = peaks.scatter_reduce(1, groups.expand(len(z), -1), joint.detach(), "amax")
        seen, sums = peaks > -math.inf, torch.zeros_like(peaks).index_add(1, groups, (joint - peaks[:, groups]).exp())
        own = torch.where(seen, sums, 1).log() + torch.where(seen, peaks, 0)
        return torch.where(seen, own, joint.logsumexp(1, keepdim=True) + _UNSEEN)
