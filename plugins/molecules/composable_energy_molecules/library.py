r"""A library of single angles: histograms for training by noise-contrastive estimation, for prediction and for log densities."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number
from composable_energy_molecules.energy import SideChainEnergy
from composable_energy_molecules.residues import ANGLES, CONTEXT, RESIDUES, SideChains, angle_mask, wrap
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

    def fit(self, data: SideChains) -> AngleLibrary:
        """Counts the angles of complete side chains, and mixes in a tenth of a uniform density; returns itself.

        Raises:
            OptionError: An angle is unknown.
        """
        if not bool(data.chi.isfinite().all()):
            raise OptionError("A library needs complete side chains: use `data.complete()`.")
        self.shares.fill_(1 / self.bins)
        for residue in data.context[:, 2].long().unique().tolist():
            angles = data.chi[data.context[:, 2] == residue]
            for angle in range(RESIDUES[residue].angles):
                counts = torch.bincount(self._bins(angles[:, angle]), minlength=self.bins)
                self.shares[residue, angle] = 0.9 * counts / len(angles) + 0.1 / self.bins
        return self

    def log_prob(self, chi: Tensor, context: Tensor) -> Tensor:
        r"""Returns log densities of the angles that the amino acids of contexts have, with shape $(B, K)$."""
        found = self.shares[context[:, 2].long()].to(chi).gather(2, self._bins(chi).transpose(1, 2)).transpose(1, 2)
        return torch.where(angle_mask(context)[:, None], (found * self.bins / (2 * math.pi)).log(), 0.0).sum(-1)

    def draw(self, context: Tensor, uniforms: Tensor) -> Tensor:
        r"""Returns draws by uniform numbers in $[0, 1]$, both with shape $(B, K, 4)$; 0 beyond the angles of an amino acid.

        Raises:
            OptionError: The shapes do not fit.
        """
        if uniforms.ndim != 3 or uniforms.shape[2] != ANGLES or context.shape != (len(uniforms), CONTEXT):
            raise OptionError(f"Uniform numbers need shape (B, K, {ANGLES}), got {tuple(uniforms.shape)} for {tuple(context.shape)}.")
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
        if not isinstance(model, SideChainEnergy):
            raise OptionError(f"This objective trains a SideChainEnergy, got {model}.")
        if "context" not in batch.labels:
            raise OptionError("The data need the label `context`: train on `(data.chi, {'context': data.context})`.")
        context = batch.labels["context"]
        like = batch.x.new_empty(len(batch.x), self.negatives, batch.x.shape[1])
        chi = torch.cat([batch.x[:, None], self.library.draw(context, torch.special.ndtr(batch.noise.normal(like)))], 1)
        ratios = -model.of_each(chi, context) - self.library.log_prob(chi, context)
        contrast = (ratios.logsumexp(1) - ratios[:, 0]).mean()
        log_z = ratios[:, 1:].logsumexp(1) - math.log(self.negatives)
        return Loss(contrast + self.normalize * log_z.square().mean(), {"contrast": contrast.detach(), "log_z": log_z.detach().mean()})


_CHUNK = 64


def predict(
    energy: SideChainEnergy, context: Tensor, library: AngleLibrary, *, candidates: int = 256, steps: int = 20, seed: int = 0
) -> Tensor:
    r"""Returns the angles of low energy of one residue for each context, with shape $(B, 4)$; 0 beyond the angles of an amino acid.

    The lowest of some candidates from a library goes down the gradient; a step that goes up is halved.
    """
    check_integer("candidates", candidates)
    check_integer("steps", steps, least=0)
    generator, found = torch.Generator().manual_seed(seed), []
    for part in context.split(_CHUNK):
        chi = library.draw(part, torch.rand(len(part), candidates, ANGLES, generator=generator).to(part))
        with torch.no_grad():
            best = energy.of_each(chi, part).argmin(1)
        found.append(_descend(energy, chi[torch.arange(len(part)), best], part, steps))
    return torch.cat(found)


def _descend(energy: SideChainEnergy, chi: Tensor, context: Tensor, steps: int) -> Tensor:
    """Returns points of lower energy: steps along the gradient, at most .1 radians an angle, halved where the energy rises."""
    bound = energy.given(context=context)
    lowest, gradient = bound.with_gradient(chi)
    sizes = torch.full_like(lowest, 0.02)
    for _ in range(steps):
        tried = chi - (sizes[:, None] * gradient).clamp(-0.1, 0.1)
        energies, slope = bound.with_gradient(tried)
        better = energies < lowest
        chi, gradient = torch.where(better[:, None], tried, chi), torch.where(better[:, None], slope, gradient)
        lowest, sizes = torch.where(better, energies, lowest), torch.where(better, 1.2 * sizes, sizes / 2)
    return chi


def resample(energy: SideChainEnergy, context: Tensor, library: AngleLibrary, *, candidates: int = 1024, seed: int = 0) -> Tensor:
    r"""Returns draws by importance resampling, one for each context, with shape $(B, 4)$: starts for chains of an expression.

    Of some candidates of the library one is chosen with the probability $\propto e^{-E} / q$. This is exact for many candidates, and needs
    no chains. Angles beyond those of an amino acid are uniform.
    """
    check_integer("candidates", candidates)
    generator, found = torch.Generator().manual_seed(seed), []
    for part in context.split(_CHUNK):
        uniforms, chi, ratios = _weighed(energy, part, library, candidates, generator)
        chosen = torch.multinomial(ratios.softmax(1), 1, generator=generator)[:, 0]
        rows = torch.arange(len(part))
        found.append(torch.where(angle_mask(part), chi[rows, chosen], (2 * uniforms[rows, chosen] - 1) * math.pi))
    return torch.cat(found)


def log_probs(
    energy: SideChainEnergy, chi: Tensor, context: Tensor, library: AngleLibrary, *, draws: int = 4096, seed: int = 0
) -> tuple[Tensor, Tensor]:
    r"""Returns log densities on the torus of the angles that each amino acid has, and $\log Z$ by context, both with shape $(B,)$.

    $Z(c) = \langle e^{-E(\chi \mid c)} / q(\chi) \rangle$ over draws of a library $q$, which are independent for each context.
    """
    check_integer("draws", draws)
    generator = torch.Generator().manual_seed(seed)
    parts = [_weighed(energy, part, library, draws, generator)[2] for part in context.split(_CHUNK)]
    log_z = torch.cat([ratios.logsumexp(1) - math.log(draws) for ratios in parts])
    with torch.no_grad():
        return -energy(torch.where(angle_mask(context), chi, 0.0), context=context) - log_z, log_z


@torch.no_grad()
def _weighed(
    energy: SideChainEnergy, context: Tensor, library: AngleLibrary, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns uniform numbers, the draws of the library that they give, and the log ratios of their densities to those of the library."""
    uniforms = torch.rand(len(context), count, ANGLES, generator=generator).to(context)
    chi = library.draw(context, uniforms)
    return uniforms, chi, -energy.of_each(chi, context) - library.log_prob(chi, context)
