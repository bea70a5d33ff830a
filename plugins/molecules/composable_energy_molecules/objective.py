r"""Noise-contrastive estimation of a conditional energy on the torus."""

from __future__ import annotations

import math

import torch
from torch import nn

from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number
from composable_energy_molecules.energy import SideChainEnergy
from composable_energy_molecules.library import AngleLibrary
from composable_energy_training import Batch, Loss, Objective


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

    Raises:
        OptionError: A number is out of range.

    References:
        Noise contrastive estimation and negative sampling for conditional models (Ma & Collins, 2018), https://arxiv.org/abs/1809.01812
        Energy-based models for atomic-resolution protein conformations (Du et al., 2020), https://arxiv.org/abs/2004.13167
    """

    def __init__(self, library: AngleLibrary, negatives: int = 64, normalize: float = 0.1) -> None:
        self.library, self.negatives = library, check_integer("negatives", negatives)
        self.normalize = check_number("normalize", normalize, least=0)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss. Its scalars are `contrast`, the first part, and `log_z`, the mean estimate of $\\log Z$.

        Raises:
            OptionError: The model is no `SideChainEnergy` of one residue, or the data have no label `context`.
        """
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
