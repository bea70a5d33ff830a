r"""The joint energy-based model (JEM): one network is an energy of points and a classifier of them."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_number
from composable_energy.sampling import Noise, SamplerLike
from composable_energy_training.contrastive_divergence import ContrastiveDivergence
from composable_energy_training.heads import cross_entropy
from composable_energy_training.objective import Batch, Loss, RankContext, as_float32, get_labels
from composable_energy_training.replay_buffer import Start


class JointEnergyClassifier(ContrastiveDivergence):
    r"""Contrastive divergence of an energy plus the cross entropy of a classifier (Grathwohl et al., 2020):

    $$\langle E(x) - E(x') \rangle + \alpha \langle E(x)^2 + E(x')^2 \rangle - \beta \langle \log p(y \mid x) \rangle$$

    The model has a method `logits(x)` with shape $(B, K)$, and $p(y \mid x) = \text{softmax}(\text{logits})_y$. In the paper the energy is
    $E(x) = -\log \sum_y e^{\text{logits}_y}$ of the same network, called without a class. Rows with the label -1, unknown, add to the
    divergence only. All other arguments are those of `ContrastiveDivergence`.

    Args:
        steps: Steps of each chain for each training step; 20 in the paper.
        l2: $\alpha$; 0 in the paper.
        label: The attribute of the data with the class.
        weight: $\beta$; 1 in the paper.

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
        chains = {"buffer": buffer, "fresh": fresh, "start": start, "augment": augment, "persistent": persistent}
        super().__init__(steps=steps, sampler=sampler, options=options, l2=l2, **chains)
        self.label, self.weight = label, check_number("weight", weight, least=0)

    def begin(self, model: nn.Module, context: RankContext) -> None:
        if not callable(getattr(model, "logits", None)):
            raise OptionError(f"The model needs a method `logits(x)` with shape (B, K); {type(model).__name__} has none.")
        super().begin(model, context)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss. Its scalars are those of `ContrastiveDivergence`, `cross_entropy`, the mean over all rows, and `accuracy`, the
        share of known labels that are predicted.
        """
        labels, divergence = get_labels(batch, self.label), super().loss(model, batch)
        logits = model.logits(batch.x)  # pyright: ignore[reportCallIssue]
        if logits.ndim != 2 or len(logits) != len(batch.x):
            raise ShapeError(f"logits must have shape ({len(batch.x)}, K), got {tuple(logits.shape)}.")
        total, correct, known = cross_entropy(as_float32(logits), labels, self.label)
        mean = total / len(labels)
        scalars = {"cross_entropy": mean.detach(), "accuracy": correct / known.clamp_min(1)}
        return Loss(divergence.value + self.weight * mean, {**divergence.scalars, **scalars})
