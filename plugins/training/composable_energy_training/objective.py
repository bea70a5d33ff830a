r"""The interface of a training objective: the loss of a model on a batch, and the state that it keeps between steps; and weighted sums.

A training step works on one batch of $B$ rows. Processes may share a batch; each computes its own rows. All randomness of a step comes from
the batch's `noise`, keyed by (seed, row, step). So the weights do not depend on the number of processes, nor on interruptions of the run.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.options import check_number
from composable_energy.sampling import Noise


@dataclass(frozen=True)
class RankContext:
    """The part of a run that one process computes.

    Args:
        batch_size: Rows of a batch, over all processes.
        rows: The rows of this process, a part of `range(batch_size)`.
        event_shape: The shape of one point.
        device: The device of points and model.
        dtype: The dtype of points.
        seed: The seed of the run.
    """

    batch_size: int
    rows: range
    event_shape: torch.Size
    device: torch.device
    dtype: torch.dtype
    seed: int


@dataclass(frozen=True)
class Batch:
    """The rows of one step on one process, or a part of them where gradients are accumulated.

    Args:
        x: The points, with shape $(B, *)$, on the model's device, after preparation such as flips and dequantization.
        labels: Attributes by name. Classes are int64 with shape $(B,)$, -1 where unknown; numbers have the dtype of the points and shape
            $(B, *)$, NaN where unknown.
        noise: Keyed noise. Its chains are the row numbers in the whole batch, its step is the training step.
    """

    x: Tensor
    labels: Mapping[str, Tensor]
    noise: Noise

    @property
    def step(self) -> int:
        """The training step, from 1 on."""
        return self.noise.step


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, and scalars for logs and the monitor.

    Args:
        value: The mean over the rows, with shape $()$ and a graph.
        scalars: Detached means over the rows, each with shape $()$, such as `gap` and `magnitude` of energies.
    """

    value: Tensor
    scalars: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """Abstract objective. A subclass implements `loss`, and the other methods if it keeps state between steps.

    The constructor's arguments are the settings of the objective. A checkpoint records them, and a run resumes only with the same settings.
    """

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        objective = super().__new__(cls)
        object.__setattr__(objective, "_arguments", (args, kwargs))  # a subclass may be a frozen dataclass
        return objective

    def begin(self, model: nn.Module, context: RankContext) -> None:  # noqa: B027  (most objectives need no preparation)
        """Prepares to train a model, in the part of a run of this process. Called once, before the first step and before `restore`."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss of a model on a batch, and updates the state of the objective, such as chains.

        The model is in training mode and its parameters require gradients; an implementation that changes either restores it.

        Raises:
            OptionError: The objective does not train such a model, as without the condition, or the data lack the attribute.
            ShapeError: Labels or outputs of the model have another shape than the objective takes.
        """

    def state(self) -> Mapping[str, Tensor]:
        """Returns the state as tensors whose first axis is this process's share; concatenated over processes they are the whole state."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Loads a state that `state` returned, concatenated over all processes; each process takes its own share.

        Raises:
            FileFormatError: The state has other names or shapes.
        """


def constructor_arguments(objective: Objective) -> dict[str, Any]:
    """Returns the constructor's arguments of an objective by name, with present values of attributes that are numbers, texts or bools."""
    args, kwargs = objective._arguments
    bound = inspect.signature(type(objective)).bind(*args, **kwargs)
    bound.apply_defaults()
    now = vars(objective)
    return {name: now[name] if isinstance(now.get(name), (bool, int, float, str)) else value for name, value in bound.arguments.items()}


def require_energy(model: nn.Module) -> Energy:
    """Returns the model if it is an energy."""
    if not isinstance(model, Energy):
        raise OptionError(f"This objective trains an energy, got {type(model).__name__}: write a subclass of Energy, or use `as_energy`.")
    return model


def get_conditions(energy: Energy, batch: Batch, attribute: str | None) -> dict[str, Tensor]:
    """Returns the conditions of an energy for the rows of a batch: the labels of an attribute as `y`, or nothing for None."""
    if attribute is None:
        if "y" in energy.required_conditions:
            known = ", ".join(map(repr, batch.labels)) or "none"
            raise OptionError(f"{energy} depends on y: give the objective `condition=`, an attribute of the data, which have {known}.")
        return {}
    if "y" not in energy.conditions:
        raise OptionError(f"{energy} does not depend on y and cannot take {attribute}: give its `forward` a parameter y, or no condition.")
    y = get_labels(batch, attribute)
    if bool((y.isnan() if y.is_floating_point() else y < 0).any()):
        unknown = "NaN" if y.is_floating_point() else "-1"
        raise OptionError(f"Attribute {attribute} is unknown ({unknown}) for some rows; a conditional energy needs it for every row.")
    return {"y": y}


def get_labels(batch: Batch, attribute: str) -> Tensor:
    """Returns the labels of an attribute: classes with shape $(B,)$, or numbers with shape $(B, *)$."""
    if attribute not in batch.labels:
        raise OptionError(f"The data have no attribute {attribute}; they have {', '.join(batch.labels) or 'none'}.")
    return batch.labels[attribute]


def as_float32(numbers: Tensor) -> Tensor:
    """Returns numbers of half precision as float32, for means and squares; others unchanged."""
    return numbers.float() if numbers.dtype in (torch.bfloat16, torch.float16) else numbers


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
        if not objectives or len(weights) != len(objectives) or not all(isinstance(part, Objective) for part in objectives):
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
