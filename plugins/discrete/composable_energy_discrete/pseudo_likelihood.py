"""Training of energies of discrete points without chains: each site of data is predicted from the others."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from composable_energy.errors import OptionError
from composable_energy.options import check_integer
from composable_energy.sampling import integration
from composable_energy_discrete.neighbours import points_near
from composable_energy_training import Batch, Loss, Objective, RankContext
from composable_energy_training.objective import require_energy


class PseudoLikelihood(Objective):
    r"""Minus the logarithm of the pseudo-likelihood (Besag, 1975), $-\sum_s \log p(x_s \mid x_{-s})$, a sum over sites.

    $p(x_s = k \mid x_{-s}) \propto e^{-E(x)}$ over the values $k$ of the site, so no normaliser of the density is needed.

    Args:
        sites: How many sites of each point are predicted at a training step, at random; None takes all.

    References:
        Statistical analysis of non-lattice data (Besag, 1975), https://doi.org/10.2307/2987782
    """

    def __init__(self, *, sites: int | None = None) -> None:
        self.sites = check_integer("sites", sites, optional=True)

    def begin(self, model: nn.Module, context: RankContext) -> None:
        """Finds the sites of points; raises `OptionError` if they are not discrete."""
        energy = require_energy(model)
        if not getattr(energy.support, "is_discrete", False):
            raise OptionError(f"The points of {energy} are not discrete, and have no sites to predict.")
        shape = (1, *context.event_shape)
        with integration(energy, shape, sampler="gibbs", dtype=context.dtype, device=context.device) as problem:
            self._found: Any = problem.plain.sites

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss, scaled to all sites, with `correct`, the share of sites whose value has the largest probability."""
        sites, x = self._found, batch.x
        index = sites.index(x)
        count = min(self.sites or index.shape[1], index.shape[1])
        first = batch.noise.for_chains(range(1))  # the same sites for all rows, whichever of them a process has
        chosen = first.normal(x.new_empty((1, index.shape[1])))[0].argsort()[:count]
        near = points_near(sites, x, index, chosen)
        logits = -model(near.flatten(0, 2)).view(near.shape[:3]).masked_fill(~sites.allowed[chosen], -math.inf)
        logs = logits.log_softmax(2).gather(2, index[:, chosen, None])[..., 0]
        correct = (logits.argmax(2) == index[:, chosen]).double().mean()
        return Loss(-logs.mean(1).mean() * index.shape[1], {"correct": correct})
