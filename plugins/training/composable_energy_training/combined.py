r"""A weighted sum of objectives on the same batch."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from composable_energy.errors import OptionError
from composable_energy.options import check_number
from composable_energy_training.objective import Batch, Loss, Objective, RankContext


class CombinedObjective(Objective):
    r"""The sum $\sum_k w_k L_k$ of objectives, for instance of a contrast of labels and a density.

    Each gets its own noise and keeps its own state. Scalars are those of the objectives; of two with the same name the first counts.

    Args:
        *objectives: The objectives, at least one.
        weights: $w_k$, one for each; None for ones.

    Raises:
        OptionError: There are no objectives, or not as many weights, or a weight is negative.
    """

    def __init__(self, *objectives: Objective, weights: Sequence[float] | None = None) -> None:
        weights = [1.0] * len(objectives) if weights is None else list(weights)
        wrong = [part for part in objectives if not isinstance(part, Objective)]
        if not objectives or len(weights) != len(objectives) or wrong:
            raise OptionError(f"A sum needs objectives and one weight for each, got {len(objectives)} and {len(weights)} weights.")
        self.objectives = objectives
        self.weights = tuple(check_number("weights", weight, least=0) for weight in weights)

    def begin(self, model: nn.Module, context: RankContext) -> None:
        for part in self.objectives:
            part.begin(model, context)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        value, scalars = batch.x.new_zeros(()), {}
        for number, (part, weight) in enumerate(zip(self.objectives, self.weights, strict=True)):
            found = part.loss(model, Batch(batch.x, batch.labels, batch.noise.child(f"objective {number}")))
            value, scalars = value + weight * found.value, {**found.scalars, **scalars}
        return Loss(value, scalars)

    def state(self) -> Mapping[str, Tensor]:
        return {f"{number}.{name}": tensor for number, part in enumerate(self.objectives) for name, tensor in part.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for number, part in enumerate(self.objectives):
            part.restore({name.partition(".")[2]: tensor for name, tensor in state.items() if name.partition(".")[0] == str(number)})
