"""Nodes of formulas, and the merging of formulas."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from composable_energy.events.cells import ChainLabels, Interval
from composable_energy.events.variables import Variable


@dataclass(frozen=True, eq=False)
class Atom:
    """The statement that a variable has one of some values.

    Args:
        variable: The index of the variable in the formula.
        values: Labels, a label for each chain, or an interval.
        name: The text.
    """

    variable: int
    values: frozenset[int] | ChainLabels | Interval
    name: str


@dataclass(frozen=True)
class Operation:
    """The operation `all`, `any` or `not` of earlier nodes."""

    operator: str
    operands: tuple[int, ...]


class NodeMerger:
    """Merges formulas: equal variables and equal nodes become one."""

    def __init__(self) -> None:
        self.variables: list[Variable] = []
        self.nodes: list[Atom | Operation] = []
        self._variables: dict[Hashable, list[int]] = {}
        self._nodes: dict[Hashable, int] = {}

    def add_variable(self, variable: Variable) -> int:
        """Adds a variable and returns its index."""
        candidates = self._variables.setdefault(variable.bucket, [])
        index = next((i for i in candidates if self.variables[i].is_same(variable)), None)
        if index is None:
            index = len(self.variables)
            candidates.append(index)
            self.variables.append(variable)
        else:
            self.variables[index] = self.variables[index].merge(variable)
        return index

    def add_node(self, node: Atom | Operation) -> int:
        """Adds a node and returns its index."""
        key = (node.variable, node.values) if isinstance(node, Atom) else (node.operator, frozenset(node.operands))
        index = self._nodes.setdefault(key, len(self.nodes))
        if index == len(self.nodes):
            self.nodes.append(node)
        return index

    def add_formula(self, nodes: Sequence[Atom | Operation], variables: Sequence[int]) -> int:
        """Adds the nodes of a formula, given the indices of its variables, and returns the index of its root."""
        indices: list[int] = []
        for node in nodes:
            if isinstance(node, Atom):
                indices.append(self.add_node(Atom(variables[node.variable], node.values, node.name)))
            else:
                indices.append(self.add_node(Operation(node.operator, tuple(indices[i] for i in node.operands))))
        return indices[-1]
