r"""Improved contrastive divergence: what the sampler does is trained as well, through its last step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.checks import check_count
from composable_energy.energy import Energy
from composable_energy.errors import OptionError
from composable_energy.noise import Noise
from composable_energy.sampling import twin
from composable_energy_training.contrastive import contrast
from composable_energy_training.inputs import conditions_of, energy_of, wide
from composable_energy_training.negatives import Drawn, Negatives
from composable_energy_training.objective import Batch, Loss, Objective, Place
from composable_energy_training.replay import Start

__all__ = ["ImprovedContrastiveDivergence"]


class ImprovedContrastiveDivergence(Objective):
    r"""Contrastive divergence with the term that it leaves out: chains depend on the parameters, too (Du et al., 2021).

    The last of $K$ Langevin steps keeps its graph,

    $$x_K = \text{clamp}\bigl(x_{K-1} - \tfrac{\lambda}{2} \nabla E_\theta(x_{K-1}) + \sqrt{\lambda T}\, \xi\bigr),$$

    and to the loss of `ContrastiveDivergence` with the negative samples $x_K$ come

    $$\beta \langle E(x_K) \rangle - \gamma \langle \log \lVert x_K - n(x_K) \rVert \rangle,$$

    in which the parameters of $E$ are held and gradients reach them through $x_K$ alone: chains are led to low energies, and away from
    the nearest other chain $n(x_K)$ of the buffer, an estimate of their entropy. Chains of each row are compared with others of its lane,
    so that the loss does not depend on the number of processes; the paper compares with any chains of the buffer.

    Args:
        steps: $K$.
        options: Those of `langevin`: `step_size` $\lambda$, `temperature` $T$, `clamp`, `max_gradient`.
        buffer: As for `ContrastiveDivergence`; at least two slots for each row of a batch.
        fresh: As for `ContrastiveDivergence`.
        start: As for `ContrastiveDivergence`.
        l2: $\alpha$ of `ContrastiveDivergence`.
        condition: As for `ContrastiveDivergence`.
        augment: What is done to a chain of the buffer before it goes on, such as an `Augmentation`.
        kl: $\beta$.
        entropy: $\gamma$.
        among: With how many chains of the buffer each is compared, or with all others of its lane if they are fewer.
        entropy_after: The entropy joins once the buffer has taken more chains than this; until then it holds little but starts.

    Raises:
        OptionError: A number is out of range, or the start is unknown.

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
        self.negatives = Negatives(
            steps=steps,
            sampler="langevin",
            options=options,
            buffer=buffer,
            fresh=fresh,
            start=start,
            augment=augment,
            persistent=True,
        )
        for name, weight in {"l2": l2, "kl": kl, "entropy": entropy}.items():
            if not weight >= 0:
                raise OptionError(f"{name} must be at least 0, got {weight}.")
        self.l2, self.condition, self.kl, self.entropy = l2, condition, kl, entropy
        self.among, self.entropy_after = check_count("among", among), check_count("entropy_after", entropy_after, least=0)
        self._batch_size = 0

    def begin(self, model: nn.Module, place: Place) -> None:
        self.negatives.begin(model, place)
        if getattr(self.negatives.sampler, "metric", None) is not None:
            raise OptionError("The last step that is trained through has no metric: leave it out of the options.")
        self._batch_size = place.batch_size

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        r"""Returns the loss; its scalars are those of `ContrastiveDivergence`, and the means `kl` of $E(x_K)$ in eval mode and
        `log_distance` of $\log \lVert x_K - n(x_K) \rVert$.

        Raises:
            OptionError: The model is no energy or lacks the condition, or the data lack the attribute.
        """
        conditions = conditions_of(energy_of(model), batch, self.condition)
        drawn = self.negatives.draw(model, batch, conditions, self.negatives.steps - 1)
        energy = energy_of(model).given(**conditions) if conditions else energy_of(model)
        last = self._last_step(energy, drawn)
        kl = wide(twin(energy)(last)).mean()
        far = self._log_distance(last, drawn, batch)
        self.negatives.keep(drawn, last)
        value, scalars = contrast(model, batch.x, last.detach(), conditions, self.l2)
        value = value + self.kl * kl
        if batch.step * self._batch_size > self.entropy_after:
            value = value - self.entropy * far
        return Loss(value, {**scalars, **drawn.scalars, "kl": kl.detach(), "log_distance": far.detach()})

    def state(self) -> Mapping[str, Tensor]:
        return self.negatives.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.negatives.restore(state)

    def _last_step(self, energy: Energy, drawn: Drawn) -> Tensor:
        """Takes the step that chains would take next, with a graph."""
        sampler: Any = self.negatives.sampler
        with _eval_mode(energy), torch.enable_grad():
            x = drawn.x.detach().requires_grad_()
            grad = torch.autograd.grad(energy(x).sum(), x, create_graph=True)[0]
        if sampler.max_gradient is not None:
            grad = grad.clamp(-sampler.max_gradient, sampler.max_gradient)
        kick = drawn.noise.at(self.negatives.steps).normal(drawn.x)
        x = drawn.x - sampler.step_size / 2 * grad + math.sqrt(sampler.step_size * sampler.temperature) * kick
        return x if sampler.clamp is None else x.clamp(*sampler.clamp)

    def _log_distance(self, x: Tensor, drawn: Drawn, batch: Batch) -> Tensor:
        buffer = self.negatives.buffer
        if buffer is None or drawn.slots is None or not self.entropy:
            return x.new_zeros(())
        apart = (x - buffer.nearest(x, drawn.slots, batch.noise, self.among)).flatten(1).square().sum(1)
        return apart.clamp_min(torch.finfo(apart.dtype).tiny).log().mean() / 2


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
