r"""Objectives of heads: predictions of attributes from noisy points at all noise levels, which become evidence in expressions."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_integer
from composable_energy_training.objective import Batch, Loss, Objective, as_float32, get_labels
from composable_energy_training.score_matching import add_noise, check_levels

_LOG_WIDTHS = (-5.0, 1.0)  # the range of composable_energy.GaussianHead


class AttributeHeads(Objective):
    r"""Cross entropy of classes, in nats for each row and summed over the variables, at noisy points $x + \sigma \xi$ with $\log \sigma$
    uniform between two levels. A head at level $\sigma$ learns the posterior of an attribute given the noisy point.

    The model is called with points and levels, `model(x, sigma)`, and returns logits with shape $(B, C)$: one column
    for a variable with two values, the logit of value 1, and $K$ columns for one with $K$ values, in the order of `variables`. Rows with
    the label -1, unknown, add nothing.

    Args:
        variables: The number of values of each attribute, at least two, by its name in the data.
        sigma_min: The lowest level, in units of the points.
        sigma_max: The highest level.

    Raises:
        OptionError: There is no variable, one has fewer than two values, or the levels are not positive and in order.
    """

    def __init__(self, variables: Mapping[str, int], sigma_min: float, sigma_max: float) -> None:
        if not variables:
            raise OptionError("Attribute heads need at least one variable, such as {'smiling': 2}.")
        self.variables = {name: check_integer(f"The number of values of {name}", values, least=2) for name, values in variables.items()}
        self.levels = check_levels(sigma_min, sigma_max)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss. Its scalars are `cross_entropy`, the loss itself, and `accuracy`, the share of known labels predicted."""
        x, sigma, _ = add_noise(batch.x, self.levels, batch.noise)
        logits = as_float32(model(x, sigma))
        widths = [1 if values == 2 else values for values in self.variables.values()]
        if logits.shape != (len(x), sum(widths)):
            variables = ", ".join(f"{name} ({values})" for name, values in self.variables.items())
            raise ShapeError(
                f"The variables {variables} need logits of shape {(len(x), sum(widths))}, one column for two values; "
                f"got {tuple(logits.shape)}."
            )
        total, correct, known = logits.new_zeros(()), logits.new_zeros(()), logits.new_zeros(())
        for name, columns in zip(self.variables, logits.split(widths, 1), strict=True):
            both = columns if columns.shape[1] > 1 else F.pad(columns, (1, 0))  # logits 0 and l have the odds of one logit l
            loss, hits, labels = cross_entropy(both, get_labels(batch, name), name)
            total, correct, known = total + loss, correct + hits, known + labels
        value = total / len(x)
        return Loss(value, {"cross_entropy": value.detach(), "accuracy": correct / known.clamp_min(1)})


class ValueHeads(Objective):
    r"""Negative log likelihood of numbers, in nats for each row up to a constant, at noisy points $x + \sigma \xi$ with $\log \sigma$
    uniform between two levels: $\sum_a \tfrac12 (v_a - f_a)^2 / w_a^2 + \log w_a$.

    A head at level $\sigma$ learns the Gaussian that is closest to the posterior of the numbers given the noisy point;
    `composable_energy.GaussianHead` converts it to energies. The model is called with points and levels, `model(x, sigma)`. It returns the
    means $f$ followed by the log widths $\log w$, with shape $(B, 2 \cdot \text{dims})$; log widths are clamped to $[-5, 1]$. Rows with a
    NaN add nothing.

    Args:
        name: The name of the numbers in the data; they have shape $(B,)$ or $(B, \text{dims})$.
        dims: The number of numbers for each row.
        sigma_min: The lowest level, in units of the points.
        sigma_max: The highest level.

    Raises:
        OptionError: The levels are not positive and in order, or `dims` is below 1.

    References:
        Estimating the mean and variance of the target probability distribution (Nix & Weigend, 1994).
    """

    def __init__(self, name: str, dims: int, sigma_min: float, sigma_max: float) -> None:
        self.name, self.dims, self.levels = name, check_integer("dims", dims, least=1), check_levels(sigma_min, sigma_max)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss. Its scalars are `likelihood`, the loss itself, and `error`, the root mean square of $v - f$."""
        x, sigma, _ = add_noise(batch.x, self.levels, batch.noise)
        values, predictions = as_float32(get_labels(batch, self.name)), as_float32(model(x, sigma))
        values = values[:, None] if values.ndim == 1 else values
        for subject, tensor, columns in ((f"{self.name} has", values, self.dims), ("The model returned", predictions, 2 * self.dims)):
            if tensor.shape != (len(x), columns):
                raise ShapeError(
                    f"{subject} shape {tuple(tensor.shape)}; expected {(len(x), columns)} for {self.dims} numbers of each point."
                )
        known = values.isfinite().all(1, keepdim=True)
        error = (values - predictions[:, : self.dims]).masked_fill(~known, 0.0)
        log_widths = predictions[:, self.dims :].clamp(*_LOG_WIDTHS) * known
        value = ((error * (-log_widths).exp()).square() / 2 + log_widths).sum() / len(error)
        squared = error.detach().square().sum() / (known.sum() * self.dims).clamp_min(1)
        return Loss(value, {"likelihood": value.detach(), "error": squared.sqrt()})


def cross_entropy(logits: Tensor, labels: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the cross entropy summed over rows with known labels, the number of correct predictions, and the number of known labels.

    Labels are values from 0; -1 where unknown. The name of the attribute is for errors.
    """
    values = logits.shape[1]
    if bool(((labels < -1) | (labels >= values)).any()):
        raise OptionError(
            f"Attribute {name} has {values} values, from 0 to {values - 1}, or -1 where unknown; got labels from {int(labels.min())} to "
            f"{int(labels.max())}."
        )
    hits = (logits.detach().argmax(1) == labels).sum()
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum"), hits, (labels >= 0).sum()
