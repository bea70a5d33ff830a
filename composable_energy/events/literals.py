"""Literals: yes-or-no heads of one network, one column each, whose log probabilities are computed together.

Alone, each costs about fifteen small operations with its backward pass; together they cost as many as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from composable_energy.events.cells import Cells, LabelCells
from composable_energy.events.diagram import Diagram, Edge
from composable_energy.events.variables import Categorical, Variable


@dataclass(frozen=True)
class Literals:
    """Two or more edges of a diagram that test one column of a network each.

    Args:
        network: The index of the network.
        yes: The edges of label 1, and their columns.
        no: The edges of label 0, and their columns.
    """

    network: int
    yes: tuple[tuple[Edge, int], ...]
    no: tuple[tuple[Edge, int], ...]

    @property
    def edges(self) -> tuple[Edge, ...]:
        """The edges in the order of `log_probs`."""
        return tuple(edge for edge, _ in (*self.yes, *self.no))

    def fit(self, output: Tensor) -> bool:
        """Returns whether an output has all columns."""
        return all(column < output.shape[1] for _, column in (*self.yes, *self.no))

    def log_probs(self, output: Tensor) -> Tensor:
        """Returns the log probability of each edge, with shape (edges, B), from the output of the network, with shape (B, columns)."""
        columns = output.unbind(1)  # whose backward pass is one operation
        yes, no = ([columns[column] for _, column in group] for group in (self.yes, self.no))
        logits = [torch.stack(yes)] if yes else []
        logits += [-torch.stack(no)] if no else []
        return logsigmoid(logits[0] if len(logits) == 1 else torch.cat(logits))


def find_literals(diagram: Diagram, variables: Sequence[Variable], cells: Sequence[Cells], networks: Sequence[int]) -> tuple[Literals, ...]:
    """Returns the edges of a diagram that can be computed together.

    Args:
        diagram: The diagram.
        variables: The variable of each level.
        cells: The cells of each level.
        networks: The index of the network of each level.
    """
    found: dict[int, tuple[list[tuple[Edge, int]], list[tuple[Edge, int]]]] = {}
    for edge in diagram.edges:
        level, union = edge
        column, label = _column(variables[level]), _label(cells[level], union)
        if column is not None and label is not None:
            yes, no = found.setdefault(networks[level], ([], []))
            (yes if label else no).append((edge, column))
    return tuple(Literals(network, tuple(yes), tuple(no)) for network, (yes, no) in found.items() if len(yes) + len(no) > 1)


def _column(variable: Variable) -> int | None:
    """Returns the only column of a variable of two labels; None for any other."""
    columns = variable.columns
    if not isinstance(variable, Categorical) or variable.labels != 2 or columns is None or columns.stop is None:
        return None
    chosen = range(columns.stop)[columns] if columns.stop >= 0 and (columns.start or 0) >= 0 else ()
    return chosen[0] if len(chosen) == 1 else None


def _label(cells: Cells, union: Sequence[int]) -> int | None:
    """Returns the label of a union of cells, if it is one label and the same for all chains."""
    labels = [label for cell in union for label in cells.groups[cell]] if isinstance(cells, LabelCells) else []
    return labels[0] if len(labels) == 1 and isinstance(labels[0], int) else None
