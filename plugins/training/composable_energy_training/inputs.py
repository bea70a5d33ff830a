"""What objectives are given: an energy, attributes of the data, numbers in half precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from composable_energy.energy import Energy
from composable_energy.errors import OptionError
from composable_energy_training.objective import Batch

__all__ = ["conditions_of", "energy_of", "labels_of", "wide"]


def energy_of(model: nn.Module) -> Energy:
    """Returns a model as the energy that it is.

    Raises:
        OptionError: It is none.
    """
    if not isinstance(model, Energy):
        raise OptionError(
            f"This objective trains an energy, got {type(model).__name__}: write a subclass of Energy, or lift it by `as_energy`."
        )
    return model


def conditions_of(energy: Energy, batch: Batch, attribute: str | None) -> dict[str, Tensor]:
    """Returns what an energy is bound to at the rows of a batch: `y`, an attribute of the data, classes or numbers.

    Raises:
        OptionError: The energy does not depend on `y`, the data have no such attribute, or some rows have no value of it.
    """
    if attribute is None:
        return {}
    if "y" not in energy.conditions:
        raise OptionError(f"{energy} does not depend on y, which would be {attribute}: give its `forward` a parameter y, or no condition.")
    y = labels_of(batch, attribute)
    if bool((y.isnan() if y.is_floating_point() else y < 0).any()):
        unknown = "NaN" if y.is_floating_point() else "-1"
        raise OptionError(f"Attribute {attribute} is unknown ({unknown}) for some rows, and a conditional energy needs it for each.")
    return {"y": y}


def labels_of(batch: Batch, attribute: str) -> Tensor:
    """Returns the labels of an attribute, with shape $(B,)$, or $(B, *)$ if they are numbers.

    Raises:
        OptionError: The data have no such attribute.
    """
    if attribute not in batch.labels:
        listed = ", ".join(batch.labels) or "none"
        raise OptionError(f"The data have no attribute {attribute}; they have {listed}.")
    return batch.labels[attribute]


def wide(numbers: Tensor) -> Tensor:
    """Returns numbers of half precision as float32, in which means and squares are taken."""
    return numbers.float() if numbers.dtype in (torch.bfloat16, torch.float16) else numbers
