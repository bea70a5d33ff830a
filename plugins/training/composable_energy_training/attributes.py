r"""Attribute heads: classifiers of noisy points, at all noise levels, whose log probabilities are evidence for an expression."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from composable_energy.checks import check_count
from composable_energy.errors import OptionError, ShapeError
from composable_energy_training.denoising import levels_of, noisy
from composable_energy_training.inputs import labels_of, wide
from composable_energy_training.objective import Batch, Loss, Objective

__all__ = ["AttributeHeads", "cross_entropy"]


class AttributeHeads(Objective):
    r"""Cross entropy of attributes, in nats for each row and summed over the variables, at noisy points $x + \sigma \xi$ with $\log \sigma$
    uniform between two levels; so a head at level $\sigma$ becomes the posterior of an attribute given the noisy point.

    The model is called with points and levels, `model(x, sigma)`, and returns logits with shape $(B, C)$: one column for a variable of two
    values, the logit of value 1, and $K$ columns for one of $K$ values, in the order of `variables`. A row whose label is -1, not known,
    adds nothing to its variable's sum.

    Args:
        variables: How many values each attribute has, by its name in the data; at least two.
        sigma_min: The lowest level, in units of the points.
        sigma_max: The highest.

    Raises:
        OptionError: There is no variable, one has fewer than two values, or the levels are not positive and in order.
    """

    def __init__(self, variables: Mapping[str, int], sigma_min: float, sigma_max: float) -> None:
        if not variables:
            raise OptionError("Attribute heads need at least one variable, such as {'smiling': 2}.")
        self.variables = {name: check_count(f"The number of values of {name}", values, least=2) for name, values in variables.items()}
        self.levels = levels_of(sigma_min, sigma_max)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss; its scalars are `cross_entropy`, the loss itself, and `accuracy`, the share of known labels that are named.

        Raises:
            OptionError: The data lack an attribute, or a label is none of its values.
            ShapeError: There are other logits than the variables have.
        """
        x, sigma, _ = noisy(batch.x, self.levels, batch.noise)
        logits = wide(model(x, sigma))
        widths = [1 if values == 2 else values for values in self.variables.values()]
        if logits.shape != (len(x), sum(widths)):
            asked = ", ".join(f"{name} ({values})" for name, values in self.variables.items())
            raise ShapeError(
                f"The variables {asked} need logits of shape {(len(x), sum(widths))}, one column for two values; got {tuple(logits.shape)}."
            )
        total, right, known = logits.new_zeros(()), logits.new_zeros(()), logits.new_zeros(())
        for name, columns in zip(self.variables, logits.split(widths, 1), strict=True):
            both = columns if columns.shape[1] > 1 else F.pad(columns, (1, 0))  # the odds of value 1 are those of logits 0 and l
            loss, hits, labels = cross_entropy(both, labels_of(batch, name), name)
            total, right, known = total + loss, right + hits, known + labels
        value = total / len(x)
        return Loss(value, {"cross_entropy": value.detach(), "accuracy": right / known.clamp_min(1)})


def cross_entropy(logits: Tensor, labels: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the cross entropy summed over rows whose label is known, how many of these have the largest logit, and how many there are.

    Args:
        logits: One for each value, with shape $(B, K)$.
        labels: Values with shape $(B,)$, from 0; -1 where unknown.
        name: Of the attribute, for messages.

    Raises:
        OptionError: A label is none of the values.
    """
    values = logits.shape[1]
    if bool(((labels < -1) | (labels >= values)).any()):
        raise OptionError(
            f"Attribute {name} has {values} values, from 0 to {values - 1}, or -1 where unknown; got labels from {int(labels.min())} to "
            f"{int(labels.max())}."
        )
    hits = (logits.detach().argmax(1) == labels).sum()
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum"), hits, (labels >= 0).sum()
