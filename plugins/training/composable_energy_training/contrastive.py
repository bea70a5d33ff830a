r"""Contrastive divergence: energies go down at data, and up where the model's own chains are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.utils.parametrize import cached

from composable_energy.errors import OptionError
from composable_energy.noise import Noise
from composable_energy.sampling.selection import SamplerLike
from composable_energy_training.inputs import conditions_of, energy_of, wide
from composable_energy_training.negatives import Negatives
from composable_energy_training.objective import Batch, Loss, Objective, Place
from composable_energy_training.replay import Start

__all__ = ["ContrastiveDivergence", "contrast"]


class ContrastiveDivergence(Objective):
    r"""The difference of energies between data $x$ and chains $x'$ of the model:

    $$\langle E(x) - E(x') \rangle + \alpha \langle E(x)^2 + E(x')^2 \rangle$$

    Where the chains are draws of the model its gradient, at $\alpha = 0$, is that of the negative log likelihood,
    $\langle \nabla_\theta E \rangle_\text{data} - \langle \nabla_\theta E \rangle_\text{model}$ (Hinton, 2002). Chains that go on from
    step to step (Tieleman, 2008) come nearer to that than short ones; the squares keep energies near zero, which the difference alone
    leaves free (Du & Mordatch, 2019).

    Energies of data and chains come from the same weights, in training mode; the chains themselves are drawn in eval mode. A chain that
    diverges is replaced by a fresh start.

    Args:
        steps: Steps of each chain for a step of training.
        sampler: A name, a class or an instance. One that tunes itself does so at each step, so give it its step size.
        options: The sampler's options.
        buffer: Slots of the replay buffer, over all processes; at least the size of a batch.
        fresh: The probability with which a row gets a new start in place of its chain.
        start: `"uniform"` on $[0, 1]$, `"normal"`, or a function of (like, noise); `"data"` for chains that do not persist, which is
            Hinton's own.
        l2: $\alpha$.
        condition: An attribute of the data, classes or numbers, as which the energy takes its condition `y`, for data and chains alike; a
            chain of the buffer goes on under the value of the row that draws it.
        augment: What is done to a chain of the buffer before it goes on; a function of (points, noise).
        persistent: Whether chains go on from step to step.

    Raises:
        OptionError: A number is out of range, or the start is unknown.

    References:
        Training products of experts by minimizing contrastive divergence (Hinton, 2002).
        Training restricted Boltzmann machines using approximations to the likelihood gradient (Tieleman, 2008).
        Implicit generation and modeling with energy-based models (Du & Mordatch, 2019), https://arxiv.org/abs/1903.08689
    """

    def __init__(
        self,
        *,
        steps: int,
        sampler: SamplerLike = "langevin",
        options: Mapping[str, Any] | None = None,
        buffer: int = 10_000,
        fresh: float = 0.05,
        start: Start | Literal["data"] = "uniform",
        l2: float = 1.0,
        condition: str | None = None,
        augment: Callable[[Tensor, Noise], Tensor] | None = None,
        persistent: bool = True,
    ) -> None:
        self.negatives = Negatives(
            steps=steps,
            sampler=sampler,
            options=options,
            buffer=buffer,
            fresh=fresh,
            start=start,
            augment=augment,
            persistent=persistent,
        )
        if not l2 >= 0:
            raise OptionError(f"l2 must be at least 0, got {l2}.")
        self.l2, self.condition = l2, condition

    def begin(self, model: nn.Module, place: Place) -> None:
        self.negatives.begin(model, place)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        r"""Returns the loss; its scalars are `energy`, `energy_negative`, `gap` $\langle E(x') - E(x) \rangle$, `magnitude`
        $\langle |E| \rangle$ over both, `diverged`, the share of chains that did, and `acceptance` of a sampler that rejects.

        Raises:
            OptionError: The model is no energy or lacks the condition, or the data lack the attribute.
        """
        conditions = conditions_of(energy_of(model), batch, self.condition)
        drawn = self.negatives.draw(model, batch, conditions)
        self.negatives.keep(drawn, drawn.x)
        value, scalars = contrast(model, batch.x, drawn.x, conditions, self.l2)
        return Loss(value, {**scalars, **drawn.scalars})

    def state(self) -> Mapping[str, Tensor]:
        return self.negatives.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.negatives.restore(state)


def contrast(
    model: nn.Module, x: Tensor, negative: Tensor, conditions: Mapping[str, Tensor], l2: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss of contrastive divergence, and what people want to know of the energies.

    Args:
        model: The energy.
        x: Data, with shape $(B, *)$.
        negative: Negative samples, with shape $(B, *)$.
        conditions: One value for each row of both.
        l2: The weight of the squares.
    """
    with cached():  # weights that are computed, as by spectral norms, are the same for both
        here, there = (wide(model(points, **conditions)) for points in (x, negative))  # apart, for half the memory on the way back
    value = here.mean() - there.mean() + l2 * (here.square().mean() + there.square().mean())
    low, high = here.detach().mean(), there.detach().mean()
    return value, {
        "energy": low,
        "energy_negative": high,
        "gap": high - low,
        "magnitude": (here.detach().abs().mean() + there.detach().abs().mean()) / 2,
    }
