r"""A library of single angles: histograms of each angle of each amino acid, as noise for training and as candidates for prediction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number
from composable_energy_molecules.angles import wrap
from composable_energy_molecules.data import SideChains
from composable_energy_molecules.residues import ANGLES, CONTEXT, RESIDUES, angle_mask


class AngleLibrary(nn.Module):
    r"""The density $q(\chi \mid \text{amino acid})$ with independent angles, each constant on bins, and positive everywhere.

    Args:
        bins: The number of bins of an angle.

    Example:
        >>> from composable_energy_molecules import AngleLibrary, generate
        >>> library = AngleLibrary().fit(generate(1000))
        >>> library.draw(generate(5).context, torch.rand(5, 3, 4)).shape
        torch.Size([5, 3, 4])
    """

    shares: Tensor

    def __init__(self, bins: int = 36) -> None:
        super().__init__()
        self.bins = check_integer("bins", bins)
        self.register_buffer("shares", torch.full((len(RESIDUES), ANGLES, bins), 1 / bins))

    def fit(self, data: SideChains, uniform: float = 0.1) -> AngleLibrary:
        """Counts the angles of side chains; amino acids without data stay uniform.

        Args:
            data: Complete side chains.
            uniform: The share of a uniform density, which is mixed in.

        Returns:
            The library itself.

        Raises:
            OptionError: An angle is unknown, or the share is not in (0, 1).
        """
        check_number("uniform", uniform, above=0, below=1)
        if not bool(data.chi.isfinite().all()):
            raise OptionError("A library needs complete side chains: use `data.complete()`.")
        self.shares.fill_(1 / self.bins)
        for residue in data.context[:, 2].long().unique().tolist():
            angles = data.chi[data.context[:, 2] == residue]
            for angle in range(RESIDUES[residue].angles):
                counts = torch.bincount(self._bins(angles[:, angle]), minlength=self.bins)
                self.shares[residue, angle] = (1 - uniform) * counts / len(angles) + uniform / self.bins
        return self

    def log_prob(self, chi: Tensor, context: Tensor) -> Tensor:
        r"""Returns log densities of the angles that the amino acids have, with shape $(B, K)$.

        Args:
            chi: Angles, with shape $(B, K, 4)$.
            context: Contexts, with shape $(B, 5)$.
        """
        shares = self.shares[context[:, 2].long()].to(chi)
        found = shares.gather(2, self._bins(chi).transpose(1, 2)).transpose(1, 2)
        log_p = (found * self.bins / (2 * math.pi)).log()
        return torch.where(angle_mask(context)[:, None], log_p, 0.0).sum(-1)

    def draw(self, context: Tensor, uniforms: Tensor) -> Tensor:
        r"""Returns draws, with shape $(B, K, 4)$; 0 beyond the angles of an amino acid.

        Args:
            context: Contexts, with shape $(B, 5)$.
            uniforms: Uniform numbers in $[0, 1]$, with shape $(B, K, 4)$, one for each angle.

        Raises:
            OptionError: The shapes do not fit.
        """
        if uniforms.ndim != 3 or uniforms.shape[2] != ANGLES or context.shape != (len(uniforms), CONTEXT):
            raise OptionError(
                f"Uniform numbers need shape (B, K, {ANGLES}), got {tuple(uniforms.shape)} for contexts {tuple(context.shape)}."
            )
        shares = self.shares[context[:, 2].long()].to(uniforms)
        ends = shares.cumsum(2).contiguous()
        u = uniforms.transpose(1, 2).contiguous()
        index = torch.searchsorted(ends, u, right=True).clamp(max=self.bins - 1)
        inside = ((u - (ends - shares).gather(2, index)) / shares.gather(2, index)).clamp(0, 1)
        chi = wrap((index + inside) * (2 * math.pi / self.bins) - math.pi).transpose(1, 2)
        return torch.where(angle_mask(context)[:, None], chi, 0.0)

    def _bins(self, chi: Tensor) -> Tensor:
        return ((wrap(chi) + math.pi) * (self.bins / (2 * math.pi))).long().clamp(0, self.bins - 1)
