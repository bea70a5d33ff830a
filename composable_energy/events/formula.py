r"""Boolean formulas of events, and their energy $-\log P(\text{formula} \mid x)$.

A formula is a flat list of distinct nodes, operands first, so that copying and pickling need no recursion. It is compiled when it is built
(see `composable_energy.events.diagram`), which shows whether it is constant. A formula that is never true can be negated and combined; only
its energy does not exist.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from composable_energy.arithmetic import zeros
from composable_energy.energies.conditions import CHAINS
from composable_energy.energies.energy import Energy
from composable_energy.energies.identity import same
from composable_energy.errors import ContradictionError, ExpressionError
from composable_energy.events.cells import Cells, ChainLabels, Interval
from composable_energy.events.diagram import Diagram, DiagramBuilder, Edge
from composable_energy.events.variables import Categorical, Variable, read_heads

Heads = tuple[int, tuple[Edge, ...], tuple[int, ...], tuple[int, ...]]
"""Edges that test yes-or-no heads of one network: its index, the edges, the columns of those of label 1, then of those of label 0."""


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


class Formula:
    """An immutable Boolean formula over variables, built by `Formula.atom`, `conjoin`, `disjoin` and `complement`.

    Attributes:
        conditions: The names of the conditions of the networks that are not bound; with `chains` if a bound one has a row for each chain.
        required_conditions: The names of those without a default.
        constant: True or False if the formula is always or never true; None if it depends on the networks. It may become constant at
            the first call, when the number of labels is known.

    Args:
        variables: Distinct variables in the order of the decision diagram.
        nodes: The nodes, operands first; the last one is the formula.
        complement_of: The formula of which this one is the complement; it is then not compiled at once.
    """

    def __init__(
        self, variables: tuple[Variable, ...], nodes: tuple[Atom | Operation, ...], *, complement_of: Formula | None = None
    ) -> None:
        self.variables = variables
        self.nodes = nodes
        self._compiled: dict[tuple[int | None, ...], tuple[tuple[Cells, ...], Diagram, tuple[Heads, ...]]] = {}
        rows = any(isinstance(node, Atom) and not isinstance(node.values, frozenset) and node.values.chained for node in nodes)
        self.conditions = frozenset({CHAINS} if rows else ()).union(*(variable.conditions for variable in variables))
        self.required_conditions = frozenset().union(*(variable.required_conditions for variable in variables))
        self._networks = _networks(variables)
        constant = self._compile(self._labels)[1].constant if complement_of is None else complement_of.constant
        self.constant: bool | None = constant if complement_of is None or constant is None else not constant

    @classmethod
    def atom(cls, variable: Variable, values: Iterable[int] | ChainLabels | Interval, name: str = "") -> Formula:
        """Returns the formula that a variable has one of some values."""
        values = values if isinstance(values, ChainLabels | Interval) else frozenset(int(value) for value in values)
        return cls((variable,), (Atom(0, values, name or f"{variable}"),))

    @property
    def base(self) -> Energy | None:
        """The base of all variables."""
        return self.variables[0].base

    def same_base(self, other: Formula) -> bool:
        """Returns whether two formulas have the same base, so that they can be combined."""
        return same(self.base, other.base)

    def given(self, conditions: Mapping[str, Any]) -> Formula:
        """Returns the formula with conditions bound; unknown ones are ignored, and variables that become equal are merged."""
        variables = [variable.given(conditions) for variable in self.variables]
        if all(new is old for new, old in zip(variables, self.variables, strict=True)):
            return self
        merger = _Merger()
        merger.add_formula(self.nodes, [merger.add_variable(variable) for variable in variables])
        return Formula(tuple(merger.variables), tuple(merger.nodes))

    def energy(self, x: Tensor, **conditions: Any) -> Tensor:
        r"""Returns $-\log P(\text{formula} \mid x)$, with shape $(B,)$; each network is evaluated once.

        Args:
            x: Points, with shape $(B, *)$.
            **conditions: Conditions of the networks, one value for all or one row for each point; `chains` are the chains of the points.

        Raises:
            ContradictionError: The formula is never true, perhaps because of the number of labels.
            OptionError: A label is out of range.
            ExpressionError: A condition is missing.
        """
        counts = list(self._labels)
        diagram = self._compile(self._labels)[1]
        self._check_possible(diagram)
        outputs: dict[int, Any] = {}
        readings: dict[int, Any] = {}

        def read(level: int) -> Any:
            if level not in readings:
                readings[level] = self.variables[level].read(outputs[self._networks[level]], x)
            return readings[level]

        for level in diagram.levels:
            variable, network = self.variables[level], self._networks[level]
            if network not in outputs:
                outputs[network] = variable.evaluate(x, conditions)
            if counts[level] is None and isinstance(reading := read(level), Tensor):
                counts[level] = reading.shape[1]
        cells, diagram, heads = self._compile(tuple(counts))
        self._check_possible(diagram)
        if diagram.constant:
            return zeros(x)
        chains, known = conditions.get(CHAINS), []
        for network, edges, yes, no in heads:
            output = self.variables[network].check_output(outputs[network], x)
            if max((*yes, *no)) < output.shape[1]:
                known.append((edges, read_heads(output, yes, no)))
        return -diagram.log_prob(lambda level, union: cells[level].log_prob(read(level), union, x, chains), known)

    def _find_heads(self, diagram: Diagram, cells: Sequence[Cells]) -> tuple[Heads, ...]:
        found: dict[int, tuple[dict[Edge, int], dict[Edge, int]]] = {}
        for level, union in diagram.edges:
            column, label = self.variables[level].column, cells[level].label(union)
            if column is not None and label is not None:
                found.setdefault(self._networks[level], ({}, {}))[1 - label][level, union] = column
        groups = [(network, (*yes, *no), (*yes.values(),), (*no.values(),)) for network, (yes, no) in found.items()]
        return tuple(group for group in groups if len(group[1]) > 1)

    @property
    def _labels(self) -> tuple[int | None, ...]:
        """The number of labels of each variable; None if it is unknown."""
        return tuple(variable.labels if isinstance(variable, Categorical) else None for variable in self.variables)

    def _check_possible(self, diagram: Diagram) -> None:
        if diagram.constant is False:
            raise ContradictionError(f"No point fulfils {self}: its probability is 0 for any output of the networks, so it has no energy.")

    def _compile(self, labels: tuple[int | None, ...]) -> tuple[tuple[Cells, ...], Diagram, tuple[Heads, ...]]:
        """Returns cells, diagram, and yes-or-no heads that are read together, for the number of labels of each variable."""
        if labels not in self._compiled:
            atoms = [node for node in self.nodes if isinstance(node, Atom)]
            values = [[atom.values for atom in atoms if atom.variable == i] for i in range(len(self.variables))]
            cells = tuple(variable.partition(values[i], labels[i]) for i, variable in enumerate(self.variables))
            builder, done = DiagramBuilder(name=self), []
            for node in self.nodes:
                if isinstance(node, Atom):
                    done.append(builder.node(node.variable, tuple(int(inside) for inside in cells[node.variable].members(node.values))))
                elif node.operator == "not":
                    done.append(builder.complement(done[node.operands[0]]))
                else:
                    combine = builder.conjoin if node.operator == "all" else builder.disjoin
                    root = done[node.operands[-1]]
                    for operand in reversed(node.operands[:-1]):  # from the last, whose variables are mostly on lower levels
                        root = combine(done[operand], root)
                    done.append(root)
            diagram = builder.diagram(done[-1])
            self._compiled[labels] = cells, diagram, self._find_heads(diagram, cells)
        return self._compiled[labels]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}

    def __str__(self) -> str:
        texts: list[str] = []
        for node in self.nodes:
            if isinstance(node, Atom):
                texts.append(node.name)
            elif node.operator == "not":
                operand = self.nodes[node.operands[0]]
                text = texts[node.operands[0]]
                texts.append(f"~({text})" if isinstance(operand, Operation) and operand.operator != "not" else f"~{text}")
            else:
                sign = " & " if node.operator == "all" else " | "
                parts = [f"({texts[i]})" if getattr(self.nodes[i], "operator", "not") != "not" else texts[i] for i in node.operands]
                text = sign.join(parts)
                texts.append(text if len(text) <= 200 else f"{text[:90]} ... {text[-90:]}")
        return texts[-1]

    def __repr__(self) -> str:
        return f"Formula({self})"


def conjoin(formulas: Iterable[Formula]) -> Formula:
    """Returns the conjunction of formulas.

    Args:
        formulas: One or more formulas over one base.

    Raises:
        ExpressionError: The bases differ, or the formula is too large.
    """
    return _combine("all", formulas)


def disjoin(formulas: Iterable[Formula]) -> Formula:
    """Returns the disjunction of formulas.

    Args:
        formulas: One or more formulas over one base.

    Raises:
        ExpressionError: The bases differ, or the formula is too large.
    """
    return _combine("any", formulas)


def complement(formula: Formula) -> Formula:
    """Returns the complement of a formula."""
    last = formula.nodes[-1]
    negated = isinstance(last, Operation) and last.operator == "not"
    nodes = formula.nodes[:-1] if negated else (*formula.nodes, Operation("not", (len(formula.nodes) - 1,)))
    return Formula(formula.variables, nodes, complement_of=formula)


def _combine(operator: str, formulas: Iterable[Formula]) -> Formula:
    formulas = tuple(formulas)
    if not formulas:
        raise ExpressionError("A combination of formulas needs at least one.")
    for other in formulas[1:]:
        if not formulas[0].same_base(other):
            raise ExpressionError(
                f"{formulas[0]} is relative to {formulas[0].base} and {other} to {other.base}: events of one formula must have one base. "
                "Give both the same base object."
            )
    merger = _Merger()
    roots = [merger.add_formula(f.nodes, [merger.add_variable(variable) for variable in f.variables]) for f in formulas]
    roots = list(dict.fromkeys(roots))
    if len(roots) == 1:
        return formulas[0]
    merger.add_node(Operation(operator, tuple(roots)))
    return Formula(tuple(merger.variables), tuple(merger.nodes))


class _Merger:
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


def _networks(variables: Sequence[Variable]) -> tuple[int, ...]:
    """Returns for each variable the index of the first one with the same network and conditions."""
    first: list[int] = []
    result = []
    for i, variable in enumerate(variables):
        shared = next((k for k in first if variables[k].shares_network(variable)), i)
        if shared == i:
            first.append(i)
        result.append(shared)
    return tuple(result)
