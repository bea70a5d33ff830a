r"""Joint energies and classifiers: one network tells how likely a point is, and which class it is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from composable_energy.errors import OptionError, ShapeError
from composable_energy.noise import Noise
from composable_energy.sampling.selection import SamplerLike
from composable_energy_training.attributes import cross_entropy
from composable_energy_training.contrastive import ContrastiveDivergence
from composable_energy_training.inputs import labels_of, wide
from composable_energy_training.objective import Batch, Loss, Objective, Place
from composable_energy_training.replay import Start

__all__ = ["JointEnergyClassifier"]


class JointEnergyClassifier(Objective):
    r"""Contrastive divergence of the energy of all points, and the cross entropy of their classes (Grathwohl et al., 2020):

    $$\langle E(x) - E(x') \rangle + \alpha \langle E(x)^2 + E(x')^2 \rangle - \beta \langle \log p(y \mid x) \rangle$$

    The model has `logits(x)`, with shape $(B, K)$ and $p(y \mid x) = \text{softmax}(\text{logits})_y$; in the paper it is the energy
    $E(x) = -\log \sum_y e^{\text{logits}_y}$ of the same network, called without a class. A row whose label is -1, not known, adds to the
    divergence alone.

    Args:
        steps: As for `ContrastiveDivergence`, and so are all settings up to `persistent`; the paper takes 20.
        sampler: A name, a class or an instance.
        options: The sampler's options.
        buffer: Slots of the replay buffer.
        fresh: The probability of a new start.
        start: What chains start from.
        l2: $\alpha$; 0 in the paper.
        augment: What is done to a chain of the buffer before it goes on.
        persistent: Whether chains go on from step to step.
        label: The attribute of the data that names the class.
        weight: $\beta$; 1 in the paper.

    Raises:
        OptionError: A number is out of range, or the start is unknown.

    References:
        Your classifier is secretly an energy based model and you should treat it like one (Grathwohl et al., 2020),
        https://arxiv.org/abs/1912.03263
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
        l2: float = 0.0,
        augment: Callable[[Tensor, Noise], Tensor] | None = None,
        persistent: bool = True,
        label: str = "class",
        weight: float = 1.0,
    ) -> None:
        if not weight >= 0:
            raise OptionError(f"weight must be at least 0, got {weight}.")
        self.marginal = ContrastiveDivergence(
            steps=steps,
            sampler=sampler,
            options=options,
            buffer=buffer,
            fresh=fresh,
            start=start,
            l2=l2,
            augment=augment,
            persistent=persistent,
        )
        self.label, self.weight = label, weight

    def begin(self, model: nn.Module, place: Place) -> None:
        if not callable(getattr(model, "logits", None)):
            raise OptionError(f"A joint energy and classifier has a method `logits(x)` with shape (B, K); {type(model).__name__} has none.")
        self.marginal.begin(model, place)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss; its scalars are those of `ContrastiveDivergence`, `cross_entropy`, the mean over all rows, and `accuracy`, the
        share of known labels that are named.

        Raises:
            OptionError: The model is no energy, the data lack the attribute, or a label is no class of the model.
            ShapeError: The logits have another shape than $(B, K)$.
        """
        labels, divergence = labels_of(batch, self.label), self.marginal.loss(model, batch)
        logits = model.logits(batch.x)  # pyright: ignore[reportCallIssue]
        if logits.ndim != 2 or len(logits) != len(batch.x):
            raise ShapeError(f"logits must have shape ({len(batch.x)}, K), got {tuple(logits.shape)}.")
        total, right, known = cross_entropy(wide(logits), labels, self.label)
        named = total / len(labels)
        told = {"cross_entropy": named.detach(), "accuracy": right / known.clamp_min(1)}
        return Loss(divergence.value + self.weight * named, {**divergence.scalars, **told})

    def state(self) -> Mapping[str, Tensor]:
        return self.marginal.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.marginal.restore(state)
