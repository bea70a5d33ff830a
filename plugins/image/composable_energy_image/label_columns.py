"""Attributes as columns of logits: one column for two values, the log odds of the second; one column per value for more."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def label_columns(variables: Mapping[str, int]) -> dict[str, slice]:
    """Returns the columns of each attribute, in order.

    Args:
        variables: Number of values of each attribute, by name.
    """
    found, first = {}, 0
    for name, values in variables.items():
        found[name] = slice(first, first + _width(values))
        first += _width(values)
    return found


def count_columns(variables: Mapping[str, int]) -> int:
    """Returns the total number of columns."""
    return sum(map(_width, variables.values()))


def label_loss(logits: Tensor, labels: Mapping[str, Tensor], variables: Mapping[str, int]) -> Tensor:
    """Returns the cross entropy in nats, averaged over attributes; labels of -1 are unknown and ignored.

    Args:
        logits: Logits with shape $(B, columns)$.
        labels: Labels by name, each with shape $(B,)$.
        variables: Number of values of each attribute, by name.
    """
    losses = []
    for name, columns in label_columns(variables).items():
        some, label = logits[:, columns], labels[name]
        some = torch.cat([torch.zeros_like(some), some], 1) if variables[name] == 2 else some
        each = F.cross_entropy(some, label.clamp(min=0), reduction="none") * (label >= 0)
        losses.append(each.sum() / (label >= 0).sum().clamp(min=1))
    return torch.stack(losses).mean()


def _width(values: int) -> int:
    return 1 if values == 2 else values
