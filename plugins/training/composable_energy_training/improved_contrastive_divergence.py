r"""Improved contrastive divergence: also trains through the last step of the sampler."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Noise, twin
from composable_energy_training.contrastive_divergence import ContrastiveDivergence, NegativeSamples, contrast
from composable_energy_training.objective import Batch, Loss, RankContext, as_float32, get_conditions, require_energy
from composable_energy_training.replay_buffer import Start
from composable_energy_training.second_derivatives import differentiable_gradient


class ImprovedContrastiveDivergence(ContrastiveDivergence):
    r"""Contrastive divergence with the term that it neglects: chains depend on the parameters as well (Du et al., 2021).

    The last of $K$ Langevin steps keeps its graph,

    $$x_K = \text{clamp}\bigl(x_{K-1} - \tfrac{\lambda}{2} \nabla E_\theta(x_{K-1}) + \sqrt{\lambda T}\, \xi\bigr),$$

    and the loss of `ContrastiveDivergence` with negative samples $x_K$ gets the terms

    $$\beta \langle E(x_K) \rangle - \gamma \langle \log \lVert x_K - n(x_K) \rVert \rangle.$$

    Here the parameters of $E$ are constant, and gradients flow through $x_K$ alone: they move chains to low energies, and away from the
    nearest other chain $n(x_K)$ of the buffer, an estimate of their entropy. A chain is compared with others of its row's lane, so that
    the loss does not depend on the number of processes; the paper compares with any chains of the buffer. All other arguments are
    those of `ContrastiveDivergence`.

    Args:
        steps: $K$.
        options: Options of `langevin`: `step_size` $\lambda$, `temperature` $T$, `clamp`, `max_gradient`.
        buffer: Slots of the replay buffer, over all processes; at least two for each row of a batch.
        kl: $\beta$.
        entropy: $\gamma$.
        among: The number of chains with which each is compared; all others of its lane if there are fewer.
        entropy_after: The number of chains, drawn so far, after which the entropy term is used; before, the buffer holds mostly starts.

    References:
        Improved contrastive divergence training of energy based models (Du et al., 2021), https://arxiv.org/abs/2012.01316
    """

    def __init__(
        self,
        *,
        steps: int,
        options: Mapping[str, Any] | None = None,
        buffer: int = 10_000,
        fresh: float = 0.001,
        start: Start = "uniform",
        l2: float = 1.0,
        condition: str | None = None,
        augment: Callable[[Tensor, Noise], Tensor] | None = None,
        kl: float = 1.0,
        entropy: float = 0.3,
        among: int = 100,
        entropy_after: int = 1000,
    ) -> None:
        chains = {"buffer": buffer, "fresh": fresh, "start": start, "augment": augment}
        super().__init__(steps=steps, options=options, l2=l2, condition=condition, **chains)
        self.kl, self.entropy = check_number("kl", kl, least=0), check_number("entropy", entropy, least=0)
        self.among, self.entropy_after = check_integer("among", among), check_integer("entropy_after", entropy_after, least=0)
        self._batch_size = 0

    def begin(self, model: nn.Module, context: RankContext) -> None:
        super().begin(model, context)
        if getattr(self.chosen, "metric", None) is not None:
            raise OptionError("Improved contrastive divergence supports no metric: omit it from the options.")
        self._batch_size = context.batch_size

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        r"""Returns the loss. Its scalars are those of `ContrastiveDivergence`, and the means `kl` of $E(x_K)$ in eval mode and
        `log_distance` of $\log \lVert x_K - n(x_K) \rVert$.
        """
        conditions = get_conditions(require_energy(model), batch, self.condition)
        samples = self.draw(model, batch, conditions, self.steps - 1)
        energy = require_energy(model).given(**conditions) if conditions else require_energy(model)
        last = self._take_last_step(energy, samples)
        kl = as_float32(twin(energy)(last)).mean()
        distance = self._log_distance(last, samples, batch)
        self.keep(samples, last)
        value, scalars = contrast(model, batch.x, last.detach(), conditions, self.l2)
        value = value + self.kl * kl
        if batch.step * self._batch_size > self.entropy_after:
            value = value - self.entropy * distance
        return Loss(value, {**scalars, **samples.scalars, "kl": kl.detach(), "log_distance": distance.detach()})

    def _take_last_step(self, energy: Energy, samples: NegativeSamples) -> Tensor:
        """Takes the next Langevin step of the chains, with a graph."""
        sampler: Any = self.chosen
        with _eval_mode(energy):
            gradient = differentiable_gradient(energy, samples.x)[1]
        if sampler.max_gradient is not None:
            gradient = gradient.clamp(-sampler.max_gradient, sampler.max_gradient)
        xi = samples.noise.at(self.steps).normal(samples.x)
        x = samples.x - sampler.step_size / 2 * gradient + math.sqrt(sampler.step_size * sampler.temperature) * xi
        return x if sampler.clamp is None else x.clamp(*sampler.clamp)

    def _log_distance(self, x: Tensor, samples: NegativeSamples, batch: Batch) -> Tensor:
        """Returns the mean log distance of chains to their nearest neighbors; 0 without the entropy term."""
        buffer = self.replay
        if buffer is None or samples.slots is None or not self.entropy:
            return x.new_zeros(())
        squared = (x - buffer.nearest(x, samples.slots, batch.noise, self.among)).flatten(1).square().sum(1)
        return squared.clamp_min(torch.finfo(squared.dtype).tiny).log().mean() / 2


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switches the modules of a model to eval mode; restores their modes on exit."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
