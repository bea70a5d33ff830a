r"""A library of single angles: histograms of each angle of each amino acid, and training by noise-contrastive estimation against them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number
from composable_energy_molecules.angles import wrap
from composable_energy_molecules.energy import SideChainEnergy
from composable_energy_molecules.residues import ANGLES, CONTEXT, RESIDUES, SideChains, angle_mask
from composable_energy_training import Batch, Loss, Objective


class AngleLibrary(nn.Module):
    r"""The density $q(\chi \mid \text{amino acid})$ with independent angles, each constant on `bins`, and positive everywhere.

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
        """Counts the angles of complete side chains, and mixes in a share of a uniform density; returns itself.

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
        r"""Returns log densities of the angles that the amino acids of contexts have, with shape $(B, K)$."""
        shares = self.shares[context[:, 2].long()].to(chi)
        found = shares.gather(2, self._bins(chi).transpose(1, 2)).transpose(1, 2)
        log_p = (found * self.bins / (2 * math.pi)).log()
        return torch.where(angle_mask(context)[:, None], log_p, 0.0).sum(-1)

    def draw(self, context: Tensor, uniforms: Tensor) -> Tensor:
        r"""Returns draws by uniform numbers in $[0, 1]$, both with shape $(B, K, 4)$; 0 beyond the angles of an amino acid.

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


class SideChainContrast(Objective):
    r"""Noise-contrastive estimation by ranking: which of $K + 1$ angles belongs to the data, if $K$ come from a library $q$?

    With $f_j = -E(\chi_j \mid c) - \log q(\chi_j \mid c)$, and the data at $j = 0$,

    $$\Bigl\langle \log \sum_{j=0}^{K} e^{f_j} - f_0 \Bigr\rangle
    + \beta \Bigl\langle \bigl(\log \tfrac1K \sum_{j=1}^{K} e^{f_j}\bigr)^2 \Bigr\rangle$$

    The first part is least at the density of the data (Ma & Collins, 2018), and is the likelihood with a normaliser by importance sampling
    that Du et al. (2020) train with. It leaves a constant for each context open. The second part moves $\log Z(c)$ to 0, so that energies
    of different contexts can be compared and mixed.

    Args:
        library: The library $q$.
        negatives: $K$.
        normalize: $\beta$.

    References:
        Noise contrastive estimation and negative sampling for conditional models (Ma & Collins, 2018), https://arxiv.org/abs/1809.01812
        Energy-based models for atomic-resolution protein conformations (Du et al., 2020), https://arxiv.org/abs/2004.13167
    """

    def __init__(self, library: AngleLibrary, negatives: int = 64, normalize: float = 0.1) -> None:
        self.library, self.negatives = library, check_integer("negatives", negatives)
        self.normalize = check_number("normalize", normalize, least=0)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss. Its scalars are `contrast`, the first part, and `log_z`, the mean estimate of $\\log Z$."""
        if not isinstance(model, SideChainEnergy) or model.residues is not None:
            raise OptionError(f"This objective trains a SideChainEnergy of one residue, got {model}.")
        if "context" not in batch.labels:
            raise OptionError("The data need the label `context`: train on `(data.chi, {'context': data.context})`.")
        context = batch.labels["context"]
        like = batch.x.new_empty(len(batch.x), self.negatives, batch.x.shape[1])
        uniforms = torch.special.ndtr(batch.noise.normal(like))
        chi = torch.cat([batch.x[:, None], self.library.draw(context, uniforms)], 1)
        ratios = -model.of_each(chi, context) - self.library.log_prob(chi, context)
        contrast = (ratios.logsumexp(1) - ratios[:, 0]).mean()
        log_z = ratios[:, 1:].logsumexp(1) - math.log(self.negatives)
        value = contrast + self.normalize * log_z.square().mean()
        return Loss(value, {"contrast": contrast.detach(), "log_z": log_z.detach().mean()})
