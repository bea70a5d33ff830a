r"""Random variables given $x$: the label of a classifier, or a number that a Gaussian head predicts.

A variable is a network with bound conditions, the columns of its output, and their interpretation. Variables with one network and the
same conditions share its evaluation; different variables are independent given $x$.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
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

LOG_WIDTHS = (-5.0, 1.0)
"""The range to which the log widths of a Gaussian head are clamped."""


@dataclass(frozen=True, eq=False)
class Source:
    """A network with bound conditions; equal to another with the same network and equal conditions.

    Args:
        network: The network, called as `network(x, **conditions)` with the conditions that it takes.
        bound: The bound conditions, as copies.
        place: Where a point of the network is in one of named variables, as `composable_energy.algebra.factors.Place`; None for all.
    """

    network: Callable[..., Any]
    bound: Mapping[str, Any] = field(default_factory=dict)
    place: Any = None
    parameters: Parameters = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", parameters_of(self.network))
        hash(self)  # the network gets a token before any copy, so that copies have the same one

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Source):
            return self is other
        return self.place == other.place and same(self.network, other.network) and equal(self.bound, other.bound)

    def __hash__(self) -> int:
        return hash(token_of(owner)) if isinstance(owner := getattr(self.network, "__self__", self.network), nn.Module) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "bound": detach_conditions(self.bound)}

    @property
    def conditions(self) -> frozenset[str]:
        """The names of the conditions that are not bound, with `chains` if a bound one has a row for each chain."""
        chains = {CHAINS} if any(isinstance(v, Tensor) and v.ndim > 0 and len(v) != 1 for v in self.bound.values()) else frozenset()
        return self.parameters.names.difference(self.bound).difference({CHAINS}) | chains

    @property
    def required_conditions(self) -> frozenset[str]:
        """The names of the conditions without a default that are not bound."""
        return self.parameters.required.difference(self.bound)

    def given(self, conditions: Mapping[str, Any]) -> "Source":
        """Returns the network with conditions bound; unknown ones are ignored."""
        own = {name: copy_condition(conditions[name]) for name in (self.parameters.names - self.bound.keys()) & conditions.keys()}
        return replace(self, bound={**self.bound, **own}) if own else self

    def evaluate(self, x: Tensor, conditions: Mapping[str, Any]) -> Any:
        """Returns the output of the network at points with shape $(B, *)$; conditions that it does not take are ignored.

        Raises:
            ExpressionError: A condition without default is not bound.
            ShapeError: A condition has neither one row nor one for each point.
        """
        if missing := self.required_conditions.difference(conditions):
            raise ExpressionError(f"{self} depends on {', '.join(sorted(missing))}, which is not bound: bind it with `.given(...)`.")
        if "sigma" not in self.conditions:
            x = seen(x)
        x = x if self.place is None else self.place.select(x)
        free = (self.parameters.names - self.bound.keys() - {CHAINS}) & conditions.keys()
        rows = {name: bound_rows(name, value, x, conditions.get(CHAINS)) for name, value in self.bound.items()}
        rows |= {name: rows_for(name, conditions[name], x) for name in free}
        if isinstance(self.network, nn.Module):
            check_weights(self, self.network, x)
        try:
            return evaluate_once(self.network, x, rows)
        except Exception as error:
            note_evaluation(error, self, x)
            raise

    def check_output(self, output: object, x: Tensor) -> Tensor:
        """Returns the output of the network with shape (B, columns), in single precision at least."""
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


@dataclass(frozen=True)
class Variable(ABC):
    """Abstract variable; immutable. Variables with equal networks and the same columns (None for all) are equal; events share the base."""

    source: Source
    base: Energy | None = field(default=None, compare=False)
    columns: slice | None = field(default=None, hash=False)

    def given(self, conditions: Mapping[str, Any]) -> "Variable":
        """Returns the variable with conditions bound, also in its base; unknown ones are ignored."""
        source, base = self.source.given(conditions), self.base
        if base is not None and base.conditions & conditions.keys():
            base = base.given(**{name: value for name, value in conditions.items() if name in base.conditions})
        return self if source is self.source and base is self.base else replace(self, source=source, base=base)

    @abstractmethod
    def read(self, output: Any, x: Tensor) -> Any:
        """Returns the parameters of the distribution from an output of the network; raises `ShapeError` or `DtypeError` if it is wrong."""


@dataclass(frozen=True)
class Categorical(Variable):
    """The label of a classifier. Its output is logits; one column is the log odds of label 1 against label 0.

    Args:
        labels: The number of labels; None for that of columns with both ends, else unknown before the first call.
    """

    labels: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.labels is None and self._chosen is not None:
            object.__setattr__(self, "labels", max(2, len(self._chosen)))

    @property
    def _chosen(self) -> range | None:
        if (columns := self.columns) is None or columns.stop is None or columns.stop < 0 or (columns.start or 0) < 0:
            return None
        return range(columns.stop)[columns]

    @property
    def column(self) -> int | None:
        """The column of a yes-or-no head; None for any other variable."""
        return self._chosen[0] if self._chosen and len(self._chosen) == 1 and self.labels == 2 else None

    def read(self, output: object, x: Tensor) -> Tensor:
        """Returns log probabilities, with shape (B, labels)."""
        if (logits := self.source.check_output(output, x)[:, self.columns or slice(None)]).shape[1] == 0:
            raise ShapeError(f"{self.source} returned {tuple(self.source.check_output(output, x).shape)}, with no columns {self.columns}.")
        log_probs = torch.cat([logsigmoid(-logits), logsigmoid(logits)], 1) if logits.shape[1] == 1 else log_softmax(logits, 1)
        if self.labels is not None and log_probs.shape[1] != self.labels:
            raise ShapeError(f"{self.source} returned logits of {log_probs.shape[1]} labels; expected {self.labels}.")
        return log_probs

    def has_probabilities(self, x: Tensor, conditions: Mapping[str, Any]) -> bool:
        """Returns whether the network gives numbers from 0 to 1, which sum to 1 if they are several: probabilities in place of logits."""
        output = self.source.check_output(self.source.evaluate(x, conditions), x)[:, self.columns or slice(None)]
        sums = output.sum(1) if output.shape[1] > 1 else torch.ones_like(output)
        return bool(((output >= 0) & (output <= 1)).all() and ((sums - 1).abs() < 1e-3).all())


@dataclass(frozen=True)
class Continuous(Variable):
    """One axis of the prediction of a Gaussian head.

    Args:
        axis: The axis.
        dims: The number of axes: the output has `dims` means and then `dims` log widths, or is a pair of both.
    """

    axis: int = 0
    dims: int = 1

    def read(self, output: object, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and width, each with shape $(B,)$."""
        mean, width = self.read_all(output, x)
        return mean[:, self.axis], width[:, self.axis]

    def read_all(self, output: object, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the means and widths of all axes, each with shape (B, dims)."""
        if isinstance(output, Sequence) and len(output) == 2:
            mean, log_width = (self.source.check_output(part, x) for part in output)
        else:
            both = self.source.check_output(output, x)[:, self.columns or slice(None)]
            mean, log_width = both[:, : self.dims], both[:, self.dims :]
        if mean.shape[1] != self.dims or log_width.shape[1] != self.dims:
            raise ShapeError(
                f"{self.source} returned {mean.shape[1]} means and {log_width.shape[1]} log widths; expected {self.dims} of each: either "
                f"({len(x)}, {2 * self.dims}) or a pair of ({len(x)}, {self.dims})."
            )
        return mean, log_width.clamp(*LOG_WIDTHS).exp()
