r"""Events of classifiers: $E(x) = \text{base}(x) - \log p(\text{label} \mid x)$."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from composable_energy.bases import RelativeEnergy, WeightedBase
from composable_energy.conditions import rows_for
from composable_energy.energy import Energy
from composable_energy.errors import OptionError
from composable_energy.events.cells import ChainLabels
from composable_energy.events.formula import Formula
from composable_energy.events.variables import Categorical, columns_of


class HeadEnergy(RelativeEnergy, ABC):
    """Abstract energy of one head over a base.

    Args:
        base: The base, the density of all points; None for the evidence alone, which is not a density.
        name: The name in expressions.
    """

    def __init__(self, base: Energy | None, name: str) -> None:
        super().__init__()
        if not isinstance(name, str):
            raise OptionError(f"name must be text, got {name!r}.")
        if base is not None and not isinstance(base, Energy):
            raise OptionError(f"base must be an energy or None, got {type(base).__name__}; lift it with composable_energy.as_energy.")
        self.base = base
        self.name = name
        if base is not None:
            self.event_shape, self.recommended = base.event_shape, base.recommended

    @property
    def bases(self) -> tuple[WeightedBase, ...]:
        return () if self.base is None else (WeightedBase(self.base),)

    @property
    @abstractmethod
    def head_conditions(self) -> tuple[frozenset[str], frozenset[str]]:
        """The names of all conditions of the evidence, and of those without a default."""

    @property
    def conditions(self) -> frozenset[str]:
        return self.head_conditions[0] | (self.base.conditions if self.base is not None else frozenset())

    @property
    def required_conditions(self) -> frozenset[str]:
        return self.head_conditions[1] | (self.base.required_conditions if self.base is not None else frozenset())

    def __str__(self) -> str:
        return self.name or f"{type(self).__name__}({self.extra_repr()})"


class ClassifierEnergy(HeadEnergy):
    r"""The event that the label of a classifier is in a set: evidence $-\log \sum_{c \in \text{label}} p(c \mid x)$.

    Events with the same `logits` and columns are statements about one variable: `&`, `|`, `~` and `>>` of them, and of events of other
    classifiers over the same base, are exact; see `composable_energy.events.Formula`.

    Args:
        logits: `logits(x, **conditions)` has shape (B, K); one column is the log odds of label 1 against label 0.
        label: A label or several; None leaves it as the condition `y`, bound by `given(y=3)`, or `given(y=tensor)` for each chain.
        base: The base, the density of all $x$; without it the energy is not a density.
        columns: The columns of the logits, for a network of several heads.
        each: In place of `label`, a label for each chain: whole numbers with shape $(n,)$, which are copied.
        labels: The number of labels; if None it is found at the first call, and before that `unsatisfiable` cannot show that an
            expression excludes all labels.
        name: The name in expressions.

    Raises:
        OptionError: A label is not a whole number, or out of range.

    Example:
        >>> import torch, composable_energy as ce
        >>> red = ce.ClassifierEnergy(lambda x: torch.stack([x.sum(1), -x.sum(1)], 1), 0)
        >>> red.evidence(torch.zeros(2, 3))
        tensor([0.6931, 0.6931])
    """

    each: Tensor | None

    def __init__(
        self,
        logits: Callable[..., Tensor],
        label: int | Iterable[int] | None = None,
        base: Energy | None = None,
        *,
        columns: slice | int | None = None,
        each: Tensor | None = None,
        labels: int | None = None,
        name: str = "",
    ) -> None:
        super().__init__(base, name)
        if not callable(logits):
            raise OptionError(f"logits must be a module or a function of x, got {type(logits).__name__}.")
        self.logits = logits
        self.columns = columns_of(columns)
        self.labels = _count_labels(self.columns) if labels is None else labels
        self.label = None if label is None else _as_label_set(label)
        self.register_buffer("each", None if each is None else _check_chain_labels(each), persistent=False)
        self._variable = Categorical(logits, base, self.columns, labels=self.labels)
        if label is not None and each is not None:
            raise OptionError("Give either `label`, for all chains, or `each`, a label for each chain.")
        values = self.label if self.each is None else ChainLabels(self.each)
        self._formula = None if values is None else Formula.atom(self._variable, values, str(self))
        if values is None:
            self.no_complement = "bind one label first, with `.given(y=3)` or `ClassifierEnergy(logits, 3)`"

    @property
    def formula(self) -> Formula | None:
        return self._formula

    @property
    def head_conditions(self) -> tuple[frozenset[str], frozenset[str]]:
        head = self._formula or self._variable
        label = frozenset({"y"} if self._formula is None else ())
        return head.conditions | label, head.required_conditions | label

    def bind(self, conditions: Mapping[str, Any]) -> Energy:
        """Returns the energy with conditions bound; a label `y` for all points or for each chain makes it an event."""
        y = conditions.get("y")
        if self._formula is not None or y is None:
            return super().bind(conditions)
        if isinstance(y, Tensor) and y.ndim > 0 and y.shape != (1,):
            event = self._event(None, y, f"<{len(y)} chains>")
        else:
            label = _as_label_set(y.item() if isinstance(y, Tensor) else y)
            event = self._event(label, None, ",".join(map(str, sorted(label))))
        rest = conditions if event.conditions & {"y"} else {name: value for name, value in conditions.items() if name != "y"}
        return event.bind(rest) if rest else event

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        if self._formula is not None:
            return self._formula.energy(x, **conditions)
        y = rows_for("y", conditions["y"], x)
        log_probs = self._variable.read(self._variable.evaluate(x, conditions), x)
        if y.ndim != 1 or y.is_complex() or bool((y != y.long()).any()) or bool(((y < 0) | (y >= log_probs.shape[1])).any()):
            raise OptionError(f"y must be labels from 0 to {log_probs.shape[1] - 1}, one for all points or one for each.")
        return -log_probs.gather(1, y.long().unsqueeze(1)).squeeze(1)

    def config(self) -> dict[str, Any]:
        own = {"logits": self.logits, "base": self.base, "columns": self.columns, "labels": self.labels, "name": self.name}
        return own | ({"label": None if self.label is None else sorted(self.label)} if self.each is None else {"each": self.each})

    def _event(self, label: frozenset[int] | None, each: Tensor | None, text: str) -> ClassifierEnergy:
        name = f"{self.name}={text}" if self.name else ""
        return ClassifierEnergy(self.logits, label, self.base, columns=self.columns, each=each, labels=self.labels, name=name)

    def extra_repr(self) -> str:
        if self.each is not None:
            return f"each=<{len(self.each)} chains>"
        if self.label is None:
            return "label=None"
        labels = sorted(self.label)
        return f"label={labels[0]}" if len(labels) == 1 else f"label={{{', '.join(map(str, labels))}}}"


def _as_label_set(label: Any) -> frozenset[int]:
    try:
        values = label.flatten().tolist() if isinstance(label, Tensor) else list(label) if isinstance(label, Iterable) else [label]
        labels = frozenset(int(value) for value in values)
    except (TypeError, ValueError) as error:
        raise OptionError(f"A label is a whole number or several of them, got {label!r}.") from error
    if isinstance(label, str) or any(value != int(value) or value < 0 for value in values):
        raise OptionError(f"A label is a whole number from 0 on, or several of them, got {label!r}.")
    return labels


def _check_chain_labels(labels: Tensor) -> Tensor:
    wrong = not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_complex() or labels.numel() == 0
    if wrong or bool((labels != labels.long()).any()) or bool((labels < 0).any()):
        raise OptionError(f"Labels of chains are whole numbers from 0 on, with shape (n,), got {labels!r}.")
    return labels.detach().to(torch.int64, copy=True)


def _count_labels(columns: slice | None) -> int | None:
    """Returns the number of labels of a slice with both ends; one column has two labels."""
    if columns is None or columns.stop is None or (columns.start or 0) < 0 or columns.stop < 0:
        return None
    return {1: 2}.get(count := len(range(*columns.indices(columns.stop))), count)
