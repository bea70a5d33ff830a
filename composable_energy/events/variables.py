r"""Random variables given $x$: the label of a classifier, or a number that a Gaussian head predicts.

A variable is a network with bound conditions, the columns of its output, and their interpretation. Variables with one network and the
same conditions share its evaluation; different variables are independent given $x$.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, logsigmoid

from composable_energy.energies.checks import advise_output, check_weights, note_evaluation
from composable_energy.energies.conditions import CHAINS, Parameters, bound_rows, copy_condition, detach_conditions, parameters_of, rows_for
from composable_energy.energies.energy import Energy
from composable_energy.energies.evaluation import evaluate_once, seen
from composable_energy.energies.identity import equal, same, token_of
from composable_energy.errors import DtypeError, ExpressionError, ShapeError
from composable_energy.events.cells import Cells, ChainLabels, Interval, IntervalCells, LabelCells

LOG_WIDTHS = (-5.0, 1.0)
"""The range of the logarithm of a width that a Gaussian head predicts."""
"""The range to which the log widths of a Gaussian head are clamped."""


@dataclass(frozen=True, eq=False)
class Variable(ABC):
    """Abstract variable; immutable.

    Args:
        network: The network, called as `network(x, **conditions)` with the conditions that it takes.
        base: The base of events of the variable.
        columns: The columns of the output; None for all.
        bound: The bound conditions, as copies.

    Attributes:
        parameters: The conditions that the network takes, bound or not.
    """

    network: Callable[..., Any]
    base: Energy | None = None
    columns: slice | None = None
    bound: Mapping[str, Any] = field(default_factory=dict)
    parameters: Parameters = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", parameters_of(self.network))
        owner = getattr(self.network, "__self__", self.network)
        if isinstance(owner, nn.Module):
            token_of(owner)  # before any copy, so that copies have the same token

    @property
    def bucket(self) -> Hashable:
        """A hash key that is equal for variables that `is_same` finds the same."""
        owner = getattr(self.network, "__self__", self.network)
        columns = None if self.columns is None else (self.columns.start, self.columns.stop)
        return type(self), columns, token_of(owner) if isinstance(owner, nn.Module) else None

    def shares_network(self, other: Variable) -> bool:
        """Returns whether two variables have the same network and bound conditions."""
        return self is other or (same(self.network, other.network) and equal(self.bound, other.bound))

    def is_same(self, other: Variable) -> bool:
        """Returns whether two variables are the same."""
        return type(self) is type(other) and self.columns == other.columns and self.shares_network(other)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "bound": detach_conditions(self.bound)}

    @property
    def column(self) -> int | None:
        """The column of a yes-or-no head; None for any other variable."""
        return None

    @property
    def conditions(self) -> frozenset[str]:
        """The names of the conditions that are not bound, with `chains` if a bound one has a row for each chain."""
        chains = {CHAINS} if any(isinstance(v, Tensor) and v.ndim > 0 and len(v) != 1 for v in self.bound.values()) else frozenset()
        return self.parameters.names.difference(self.bound).difference({CHAINS}) | chains

    @property
    def required_conditions(self) -> frozenset[str]:
        """The names of the conditions without a default that are not bound."""
        return self.parameters.required.difference(self.bound)

    def given(self, conditions: Mapping[str, Any]) -> Variable:
        """Returns the variable with conditions bound, also in its base; unknown ones are ignored."""
        own = {name: value for name, value in conditions.items() if name in self.parameters.names and name not in self.bound}
        base = self.base
        if base is not None and base.conditions & conditions.keys():
            base = base.given(**{name: value for name, value in conditions.items() if name in base.conditions})
        if not own and base is self.base:
            return self
        return replace(self, base=base, bound={**self.bound, **{name: copy_condition(value) for name, value in own.items()}})

    def evaluate(self, x: Tensor, conditions: Mapping[str, Any]) -> Any:
        """Returns the output of the network.

        Args:
            x: Points, with shape $(B, *)$.
            conditions: The conditions that are not bound, one value for all or one row for each point; others are ignored.

        Raises:
            ExpressionError: A condition without default is not bound.
            ShapeError: A condition has neither one row nor one for each point.
        """
        names, chains = self.parameters.names, conditions.get(CHAINS)
        missing = self.required_conditions.difference(conditions)
        if missing:
            raise ExpressionError(f"{self} depends on {', '.join(sorted(missing))}, which is not bound: bind it with `.given(...)`.")
        if "sigma" not in self.conditions:
            x = seen(x)
        rows = {name: bound_rows(name, value, x, chains) for name, value in self.bound.items()}
        rows |= {name: rows_for(name, conditions[name], x) for name in (names - self.bound.keys() - {CHAINS}) & conditions.keys()}
        if isinstance(self.network, nn.Module):
            check_weights(self, self.network, x)
        try:
            return evaluate_once(self.network, x, rows)
        except Exception as error:
            note_evaluation(error, self, x)
            raise

    @abstractmethod
    def read(self, output: Any, x: Tensor) -> Any:
        """Checks the output of the network and returns the parameters of the distribution, for `Cells.log_prob`.

        Raises:
            ShapeError: The output has a wrong shape.
            DtypeError: The output is not a floating tensor.
        """

    @abstractmethod
    def partition(self, atoms: Sequence[Any], labels: int | None) -> Cells:
        """Returns the cells of the values of atoms; `labels` is the number of labels, None if unknown or without labels."""

    def merge(self, other: Any) -> Variable:
        """Returns one variable for two that are the same, with what is known of both."""
        return self

    def _columns(self, output: object, x: Tensor) -> Tensor:
        output = self.check_output(output, x)
        return output if self.columns is None else output[:, self.columns]

    def check_output(self, output: object, x: Tensor) -> Tensor:
        """Returns the output of the network with shape (B, columns), in single precision at least.

        Raises:
            ShapeError: It has another shape.
            DtypeError: It is not a floating tensor.
        """
        if not isinstance(output, Tensor) or not output.is_floating_point():
            got = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise DtypeError(f"{self} must return a floating tensor, got {got}.{advise_output(output)}")
        if output.ndim == 1 and len(output) == len(x):
            output = output.unsqueeze(1)
        if output.ndim != 2 or len(output) != len(x):
            raise ShapeError(f"{self} returned shape {tuple(output.shape)} for {len(x)} points; expected ({len(x)}, columns).")
        return output.to(torch.promote_types(output.dtype, torch.float32))

    def __str__(self) -> str:
        network = self.network
        return type(network).__name__ if isinstance(network, nn.Module) else getattr(network, "__name__", type(network).__name__)


@dataclass(frozen=True, eq=False)
class Categorical(Variable):
    """The label of a classifier. Its output is logits; one column is the log odds of label 1 against label 0.

    Args:
        labels: The number of labels; None if it is unknown before the first call.
    """

    labels: int | None = None

    def read(self, output: object, x: Tensor) -> Tensor:
        """Returns log probabilities, with shape (B, labels)."""
        logits = self._columns(output, x)
        if logits.shape[1] == 0:
            raise ShapeError(f"{self} returned {tuple(self.check_output(output, x).shape)}, which has no columns {self.columns}.")
        if logits.shape[1] == 1:
            log_probs = torch.cat([logsigmoid(-logits), logsigmoid(logits)], 1)
        else:
            log_probs = log_softmax(logits, 1)
        if self.labels is not None and log_probs.shape[1] != self.labels:
            raise ShapeError(f"{self} returned logits of {log_probs.shape[1]} labels; expected {self.labels}.")
        return log_probs

    def partition(self, atoms: Sequence[frozenset[int] | ChainLabels], labels: int | None) -> LabelCells:
        return LabelCells.from_sets(atoms, labels)

    def merge(self, other: Categorical) -> Categorical:
        """Returns the variable whose number of labels is known.

        Raises:
            ExpressionError: The numbers of labels differ.
        """
        if self.labels is not None and other.labels is not None and self.labels != other.labels:
            raise ExpressionError(f"{self} occurs in one expression with {self.labels} and with {other.labels} labels.")
        return other if self.labels is None else self

    @property
    def column(self) -> int | None:
        columns = self.columns
        if self.labels != 2 or columns is None or columns.stop is None or columns.stop < 0 or (columns.start or 0) < 0:
            return None
        chosen = range(columns.stop)[columns]
        return chosen[0] if len(chosen) == 1 else None


def read_heads(output: Tensor, yes: Sequence[int], no: Sequence[int]) -> Tensor:
    """Returns log probabilities of yes-or-no heads, with shape (heads, B): of label 1 for some columns, then of label 0 for others.

    Alone, each head costs about fifteen small operations with its backward pass; together they cost as many as one.

    Args:
        output: The output of their network, with shape (B, columns).
        yes: The columns of heads whose label is 1.
        no: The columns of heads whose label is 0.
    """
    columns = output.unbind(1)  # whose backward pass is one operation
    logits = [torch.stack([columns[column] for column in yes])] if yes else []
    logits += [-torch.stack([columns[column] for column in no])] if no else []
    return logsigmoid(logits[0] if len(logits) == 1 else torch.cat(logits))


@dataclass(frozen=True, eq=False)
class Continuous(Variable):
    """One axis of the prediction of a Gaussian head.

    Args:
        axis: The axis.
        dims: The number of axes: the output has `dims` means and then `dims` log widths, or is a pair of both.
    """

    axis: int = 0
    dims: int = 1

    def is_same(self, other: Variable) -> bool:
        return super().is_same(other) and isinstance(other, Continuous) and (self.axis, self.dims) == (other.axis, other.dims)

    def read(self, output: object, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and width, each with shape $(B,)$."""
        mean, width = self.read_all(output, x)
        return mean[:, self.axis], width[:, self.axis]

    def read_all(self, output: object, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the means and widths of all axes, each with shape (B, dims)."""
        if isinstance(output, Sequence) and len(output) == 2:
            mean, log_width = (self.check_output(part, x) for part in output)
        else:
            both = self._columns(output, x)
            mean, log_width = both[:, : self.dims], both[:, self.dims :]
        if mean.shape[1] != self.dims or log_width.shape[1] != self.dims:
            raise ShapeError(
                f"{self} returned {mean.shape[1]} means and {log_width.shape[1]} log widths; expected {self.dims} of each: either "
                f"({len(x)}, {2 * self.dims}) or a pair of ({len(x)}, {self.dims})."
            )
        return mean, log_width.clamp(*LOG_WIDTHS).exp()

    def partition(self, atoms: Sequence[Interval], labels: int | None) -> IntervalCells:
        return IntervalCells.from_intervals(atoms)


def columns_of(columns: slice | int | None) -> slice | None:
    """Returns columns as a slice."""
    if isinstance(columns, int):
        return slice(columns, columns + 1 or None)
    return columns
