r"""Attributes as columns of logits: one column for two values, the log odds of the second; one column per value for more.

Attributes that depend on one another as one variable, whose values are their combinations.

Separate heads are multiplied as if attributes were independent given a noisy code. If they are not, as for the digits 0 (even, with a loop)
and 3 (odd, without), products such as $p(\text{even} \mid z)\, p(\text{no loop} \mid z)$ are large between the two, where nothing is.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composable_energy_image.data import Labels
from composable_energy_training import Batch, Loss, Objective
from composable_energy_training.score_matching import add_noise, check_levels

_LARGEST = 512
_PICTURES = 20  # of each combination, on average
_MOST = 4096  # combinations of a mixture
_KNOWN = 0.9  # share of the pictures with all attributes


def label_columns(variables: Mapping[str, int]) -> dict[str, slice]:
    """Returns the columns of each attribute, in order, from the number of its values."""
    found, first = {}, 0
    for name, values in variables.items():
        found[name] = slice(first, first + (1 if values == 2 else values))
        first = found[name].stop
    return found


def count_columns(variables: Mapping[str, int]) -> int:
    """Returns the total number of columns."""
    return max((columns.stop for columns in label_columns(variables).values()), default=0)


def label_loss(logits: Tensor, labels: Mapping[str, Tensor], variables: Mapping[str, int]) -> Tensor:
    """Returns the cross entropy in nats, averaged over attributes; labels with shape $(B,)$ that are -1 are unknown and ignored."""
    losses = []
    for name, columns in label_columns(variables).items():
        some, label = logits[:, columns], labels[name]
        some = torch.cat([torch.zeros_like(some), some], 1) if variables[name] == 2 else some
        each = F.cross_entropy(some, label.clamp(min=0), reduction="none") * (label >= 0)
        losses.append(each.sum() / (label >= 0).sum().clamp(min=1))
    return torch.stack(losses).mean()


class JointLabels:
    """The combinations of the values of attributes, given by their numbers of values; the last attribute is fastest.

    `table` has the value of each attribute in each combination, with shape $(K, A)$.
    """

    def __init__(self, variables: Mapping[str, int]) -> None:
        self.variables = dict(variables)
        self.table = torch.cartesian_prod(*(torch.arange(count) for count in variables.values())).view(-1, len(self.variables))

    def __len__(self) -> int:
        return len(self.table)

    def having(self, name: str, value: int) -> list[int]:
        """Returns the combinations in which an attribute has a value."""
        return (self.table[:, list(self.variables).index(name)] == value).nonzero().flatten().tolist()

    def consistent(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Returns which combinations agree with the known values of each row, with shape $(B, K)$; labels of -1 are unknown."""
        values = torch.stack([labels[name] for name in self.variables], 1)[:, None]
        return ((values == self.table.to(values.device)) | (values < 0)).all(2)

    def number(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Returns the combination of each row with shape $(B,)$; -1 where a value is unknown."""
        known = torch.stack([labels[name] for name in self.variables], 1).ge(0).all(1)
        return torch.where(known, self.consistent(labels).int().argmax(1), -1)

    def marginals(self, logits: Tensor, name: str) -> Tensor:
        """Returns the log probabilities of the values of an attribute, with shape $(B, V)$, from logits with shape $(B, K)$."""
        groups = [self.having(name, value) for value in range(self.variables[name])]
        return torch.stack([logits[:, group].logsumexp(1) for group in groups], 1).log_softmax(1)


class JointHeads(Objective):
    r"""Cross entropy of combinations at noisy points $x + \sigma \xi$ with $\log \sigma$ uniform between two levels, in nats.

    Of a row with unknown attributes, the sum over combinations that agree with the known ones counts. `variables` are numbers of values.
    """

    def __init__(self, variables: Mapping[str, int], sigma_min: float, sigma_max: float) -> None:
        self.variables, self.levels = dict(variables), check_levels(sigma_min, sigma_max)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        joint = JointLabels(self.variables)
        x, sigma, _ = add_noise(batch.x, self.levels, batch.noise)
        log_probs = F.log_softmax(model(x, sigma).float(), 1)
        allowed = joint.consistent(batch.labels)
        value = -log_probs.masked_fill(~allowed, -torch.inf).logsumexp(1).mean()
        hits = allowed.gather(1, log_probs.detach().argmax(1, keepdim=True))
        return Loss(value, {"cross_entropy": value.detach(), "accuracy": hits.float().mean()})


def find_joint_labels(labels: Mapping[str, Labels]) -> JointLabels | None:
    """Returns the combinations of attributes that depend on one another; None if they are better learnt apart. They are learnt together if
    at most half of at most 512 combinations occur, each in 20 pictures on average with all attributes known."""
    variables = {name: len(some.names) for name, some in labels.items()}
    if len(variables) < 2 or prod(variables.values()) > _LARGEST:
        return None
    joint = JointLabels(variables)
    known = torch.stack([some.known for some in labels.values()]).all(0)
    seen = int(joint.consistent({name: some.values[known] for name, some in labels.items()}).any(0).sum())
    return joint if 0 < seen <= min(len(joint) // 2, int(known.sum()) // _PICTURES) else None


def find_combinations(labels: Mapping[str, Labels]) -> tuple[JointLabels, Tensor] | None:
    """Returns the combinations of all attributes, and that of each picture with shape $(N,)$, -1 if unknown. None if there are more than
    4,096 of them, or if more than one picture in ten has an unknown attribute."""
    variables = {name: len(some.names) for name, some in labels.items()}
    if not variables or prod(variables.values()) > _MOST:
        return None
    joint = JointLabels(variables)
    rows = joint.number({name: some.values for name, some in labels.items()})
    return (joint, rows) if (rows >= 0).double().mean() > _KNOWN else None
