"""Training of energies of discrete points without chains: each site of data is predicted from the others."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from composable_energy.errors import OptionError
from composable_energy.options import check_flag, check_integer
from composable_energy.sampling import integration
from composable_energy.supports import contains, format_support
from composable_energy_discrete.neighbours import points_near
from composable_energy_training import Batch, Loss, Objective, RankContext
from composable_energy_training.objective import require_energy


class PseudoLikelihood(Objective):
    r"""Minus the logarithm of the pseudo-likelihood (Besag, 1975), $-\sum_s \log p(x_s \mid x_{-s})$, a sum over sites; or ratio matching.

    $p(x_s = k \mid x_{-s}) \propto e^{-E(x)}$ over the values $k$ of the site, so no normaliser of the density is needed. Ratio matching
    (Hyvärinen, 2007) is $\sum_s (1 - p(x_s \mid x_{-s}))^2$, which few unlikely sites do not dominate.

    Args:
        sites: How many sites of each point are predicted at a training step, at random; None takes all.
        squared: Whether to match ratios.

    References:
        Statistical analysis of non-lattice data (Besag, 1975), https://doi.org/10.2307/2987782
        Some extensions of score matching (Hyvärinen, 2007), https://doi.org/10.1016/j.csda.2006.09.003
    """

    def __init__(self, *, sites: int | None = None, squared: bool = False) -> None:
        self.sites, self.squared = check_integer("sites", sites, optional=True), check_flag("squared", squared)

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
        sites, x, support = self._found, batch.x, require_energy(model).support
        if outside := int((~contains(support, x)).sum()):
            raise OptionError(f"{outside} of {len(x)} points are not {format_support(support)}: make them so, as by `(x > 0.5).float()`.")
        index = sites.index(x)
        count = min(self.sites or index.shape[1], index.shape[1])
        chosen = batch.noise.for_chains(range(1)).normal(x.new_empty((1, index.shape[1])))[0].argsort()[:count]  # the same for all rows
        near = points_near(sites, x, index, chosen)
        logits = -model(near.flatten(0, 2)).view(near.shape[:3]).masked_fill(~sites.allowed[chosen], -math.inf)
        logs = logits.log_softmax(2).gather(2, index[:, chosen, None])[..., 0]
        each = (1 - logs.exp()).square() if self.squared else -logs
        return Loss(each.mean(1).mean() * index.shape[1], {"correct": (logits.argmax(2) == index[:, chosen]).double().mean()})
