r"""Contrastive divergence: lowers the energy of data and raises the energy of the model's chains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.utils.parametrize import cached

from composable_energy.errors import OptionError
from composable_energy.sampling import SamplerLike
from composable_energy.sampling.noise import Noise
from composable_energy_training.negative_samples import NegativeSampler
from composable_energy_training.objective import Batch, Loss, Objective, RankContext, as_float32, get_conditions, require_energy
from composable_energy_training.replay_buffer import Start


class ContrastiveDivergence(Objective):
    r"""The difference of energies between data $x$ and chains $x'$ of the model:

    $$\langle E(x) - E(x') \rangle + \alpha \langle E(x)^2 + E(x')^2 \rangle$$

    If the chains are samples of the model, its gradient at $\alpha = 0$ is that of the negative log likelihood,
    $\langle \nabla_\theta E \rangle_\text{data} - \langle \nabla_\theta E \rangle_\text{model}$ (Hinton, 2002). Persistent chains
    (Tieleman, 2008) approximate it better than short ones. The squares keep energies near zero, since the difference does not determine
    their level (Du & Mordatch, 2019).

    Energies of data and chains are computed with the same weights, in training mode; chains run in eval mode. A chain that diverges is
    replaced by a new start.

    Args:
        steps: Steps of each chain for each training step.
        sampler: The name, class or instance of a sampler. It needs a step size, or it would be tuned at each training step.
        options: Options of the sampler.
        buffer: Slots of the replay buffer, over all processes; at least the batch size.
        fresh: The probability that a row gets a new start instead of its chain.
        start: `"uniform"` on $[0, 1]$, `"normal"`, or a function of (like, noise); for chains that do not persist also `"data"`, as in
            Hinton (2002).
        l2: $\alpha$.
        condition: An attribute of the data, classes or numbers, that becomes the condition `y` of the energy, for data and chains alike. A
            chain of the buffer continues under the value of the row that draws it.
        augment: A function of (points, noise) that is applied to chains of the buffer when they are drawn.
        persistent: Whether chains continue from step to step.

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
        self.negatives = NegativeSampler(
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

    def begin(self, model: nn.Module, context: RankContext) -> None:
        self.negatives.begin(model, context)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        r"""Returns the loss. Its scalars are `energy`, `energy_negative`, `gap` $\langle E(x') - E(x) \rangle$, `magnitude`
        $\langle |E| \rangle$ over both, `spread`, the standard deviation of energies within each, `diverged`, the share of chains that
        diverged, and `acceptance` for a sampler that rejects.

        Raises:
            OptionError: The model is not an energy or lacks the condition, or the data lack the attribute.
        """
        conditions = get_conditions(require_energy(model), batch, self.condition)
        samples = self.negatives.draw(model, batch, conditions)
        self.negatives.keep(samples, samples.x)
        value, scalars = contrast(model, batch.x, samples.x, conditions, self.l2)
        return Loss(value, {**scalars, **samples.scalars})

    def state(self) -> Mapping[str, Tensor]:
        return self.negatives.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.negatives.restore(state)


def contrast(
    model: nn.Module, x: Tensor, negatives: Tensor, conditions: Mapping[str, Tensor], l2: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss of contrastive divergence, and its scalars.

    Args:
        model: The energy.
        x: Data, with shape $(B, *)$.
        negatives: Negative samples, with shape $(B, *)$.
        conditions: Conditions of the energy, one value for each row of both.
        l2: The weight of the squares.
    """
    with cached():  # parametrized weights, such as spectral norms, are computed once for both
        # two calls need half the memory of one in the backward pass
        positive, negative = (as_float32(model(points, **conditions)) for points in (x, negatives))
    value = positive.mean() - negative.mean() + l2 * (positive.square().mean() + negative.square().mean())
    low, high = positive.detach().mean(), negative.detach().mean()
    variances = positive.detach().var(correction=0), negative.detach().var(correction=0)
    return value, {
        "energy": low,
        "energy_negative": high,
        "gap": high - low,
        "magnitude": (positive.detach().abs().mean() + negative.detach().abs().mean()) / 2,
        "spread": ((variances[0] + variances[1]) / 2).sqrt(),
    }
