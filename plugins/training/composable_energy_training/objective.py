r"""What training minimizes: an objective gives the loss of a model on a batch, and may keep something between steps.

A step of training works on one batch of $B$ rows, which several processes may share: each sees its own rows. All randomness of a step
comes from the batch's `noise`, keyed by (seed, row, step), so the same weights come out whatever the number of processes, and after a
kill and a restart.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from composable_energy.noise import Noise

__all__ = ["Batch", "Loss", "Objective", "Place", "settings_of"]


@dataclass(frozen=True)
class Place:
    """Where a process stands in a run.

    Args:
        batch_size: Rows of a batch, those of all processes together.
        rows: The rows of this process, out of `range(batch_size)`.
        event_shape: The shape of one point.
        device: Of points and model.
        dtype: Of points.
        seed: Of the run.
    """

    batch_size: int
    rows: range
    event_shape: torch.Size
    device: torch.device
    dtype: torch.dtype
    seed: int


@dataclass(frozen=True)
class Batch:
    """What one step sees on one process, or a part of it where gradients are accumulated.

    Args:
        x: The points, with shape $(B, *)$, prepared: flipped, dequantized, on the model's device.
        labels: Attributes by name: classes with shape $(B,)$, of int64, -1 where unknown; and numbers with shape $(B, *)$, of the dtype of
            the points, NaN where unknown.
        noise: Keyed noise; its chains are the rows' numbers in the whole batch, its step is the step of training.
    """

    x: Tensor
    labels: Mapping[str, Tensor]
    noise: Noise

    @property
    def step(self) -> int:
        return self.noise.step


@dataclass(frozen=True)
class Loss:
    """The loss of some rows, and what people and the monitor want to know of it.

    Args:
        value: The mean over the rows, with shape $()$ and a graph.
        scalars: Detached means over the rows, each with shape $()$, such as `gap` and `magnitude` of energies.
    """

    value: Tensor
    scalars: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """Abstract objective. A subclass writes `loss`; one that keeps something between steps writes the rest as well.

    The arguments of its constructor are its settings: a checkpoint records them, and a run goes on under the same settings only.
    """

    _given: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        objective = super().__new__(cls)
        object.__setattr__(objective, "_given", (args, kwargs))  # of a frozen dataclass as well
        return objective

    def begin(self, model: nn.Module, place: Place) -> None:  # noqa: B027  (most have nothing to get ready)
        """Gets ready for a run; called once before the first step, and before `restore`.

        Args:
            model: What is trained.
            place: The rows of this process.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss of a model on a batch.

        What the objective keeps, such as chains, changes here. The model is in training mode, its parameters ask for gradients, and both
        are so again at the end.
        """

    def state(self) -> Mapping[str, Tensor]:
        """Returns what is kept between steps, as tensors whose first axis is this process's share; joined in order they are the whole."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Takes over what `state` returned, joined over all processes; each takes its own share.

        Raises:
            FileFormatError: It is of another kind or size.
        """


def settings_of(objective: Objective) -> dict[str, Any]:
    """Returns the arguments of an objective's constructor by name.

    An attribute of the same name that is a number, a text or a truth value counts instead: it may have been changed since.
    """
    args, kwargs = objective._given
    bound = inspect.signature(type(objective)).bind(*args, **kwargs)
    bound.apply_defaults()
    now = vars(objective)
    return {name: now[name] if isinstance(now.get(name), (bool, int, float, str)) else value for name, value in bound.arguments.items()}
