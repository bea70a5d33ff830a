"""Nodes of formulas, and how the nodes of several are put together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from composable_energy.events.cells import ChainLabels, Interval
from composable_energy.events.variables import Variable

__all__ = ["Atom", "NodeMerger", "Operation"]


@dataclass(frozen=True, eq=False)
class Atom:
    """One variable has one of some values.

    Args:
        variable: Which one of a formula's.
        values: Labels, a label of each chain, or an interval.
        name: How it is written.
    """

    variable: int
    values: frozenset[int] | ChainLabels | Interval
    name: str


@dataclass(frozen=True)
class Operation:
    """`all`, `any` or `not` of earlier nodes."""

    operator: str
    operands: tuple[int, ...]


class NodeMerger:
    """Puts formulas together: equal variables and equal nodes become one."""

    def __init__(self) -> None:
        self.variables: list[Variable] = []
        self.nodes: list[Atom | Operation] = []
        self._variables: dict[Hashable, list[int]] = {}
        self._nodes: dict[Hashable, int] = {}

    def variable(self, variable: Variable) -> int:
        """Adds a variable; returns its place."""
        places = self._variables.setdefault(variable.bucket, [])
        place = next((place for place in places if self.variables[place].is_same(variable)), None)
        if place is None:
            place = len(self.variables)
            places.append(place)
            self.variables.append(variable)
        else:
            self.variables[place] = self.variables[place].merge(variable)
        return place

    def add(self, node: Atom | Operation) -> int:
        """Adds a node; returns its place."""
        key = (node.variable, node.values) if isinstance(node, Atom) else (node.operator, frozenset(node.operands))
        place = self._nodes.setdefault(key, len(self.nodes))
        if place == len(self.nodes):
            self.nodes.append(node)
        return place

    def append(self, nodes: Sequence[Atom | Operation], variables: Sequence[int]) -> int:
        """Adds the nodes of a formula, given the places of its variables; returns the place of its root."""
        places: list[int] = []
        for node in nodes:
            if isinstance(node, Atom):
                places.append(self.add(Atom(variables[node.variable], node.values, node.name)))
            else:
                places.append(self.add(Operation(node.operator, tuple(places[i] for i in node.operands))))
        return places[-1]
