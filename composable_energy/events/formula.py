r"""Formulas: Boolean expressions of events, and $-\log P(\text{formula} \mid x)$.

A formula is a flat list of nodes, operands before the nodes that use them and equal nodes once, so that copying and pickling need no
recursion. It is compiled when it is made (see `composable_energy.events.diagram`), so that it is known whether it is constant. A formula
that is never true is a formula like any other: it can be negated and combined. Only its energy does not exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from composable_energy.arithmetic import zeros
from composable_energy.conditions import CHAINS
from composable_energy.energy import Energy
from composable_energy.errors import ContradictionError, ExpressionError
from composable_energy.events.cells import Cells, ChainLabels, Interval
from composable_energy.events.diagram import Diagram, DiagramBuilder
from composable_energy.events.nodes import Atom, NodeMerger, Operation
from composable_energy.events.variables import Categorical, Variable
from composable_energy.identity import same

__all__ = ["Formula", "complement", "conjoin", "disjoin"]


class Formula:
    """A Boolean formula over variables; immutable. Make one with `Formula.atom`, `conjoin`, `disjoin` and `complement`.

    Attributes:
        conditions: Names of those that the networks take and that are not bound; `chains` if rows of a bound one belong to chains.
        required_conditions: Those without a default.
        variables: All different, in the order in which they first appear: the order of the decision diagram.
        nodes: Operands before the nodes that use them; the last one is the formula.
        constant: Whether it is always or never true, whatever the networks say; None if it depends on them. A number of labels that is
            known only at the first call may make it constant later.

    Args:
        variables: See above.
        nodes: See above.
        complement_of: A formula of which it is the complement, and which tells whether it is constant; else it is compiled at once.
    """

    def __init__(
        self, variables: tuple[Variable, ...], nodes: tuple[Atom | Operation, ...], *, complement_of: Formula | None = None
    ) -> None:
        self.variables = variables
        self.nodes = nodes
        self._compiled: dict[tuple[int | None, ...], tuple[tuple[Cells, ...], Diagram]] = {}
        rows = any(isinstance(node, Atom) and not isinstance(node.values, frozenset) and node.values.chained for node in nodes)
        self.conditions = frozenset({CHAINS} if rows else ()).union(*(variable.conditions for variable in variables))
        self.required_conditions = frozenset().union(*(variable.required_conditions for variable in variables))
        self._networks = _networks(variables)
        known = self._compile(self._labels)[1].constant if complement_of is None else complement_of.constant
        self.constant: bool | None = known if complement_of is None or known is None else not known

    @classmethod
    def atom(cls, variable: Variable, values: Iterable[int] | ChainLabels | Interval, name: str = "") -> Formula:
        """Returns the formula that a variable has one of some values."""
        values = values if isinstance(values, ChainLabels | Interval) else frozenset(int(value) for value in values)
        return cls((variable,), (Atom(0, values, name or f"{variable}"),))

    @property
    def base(self) -> Energy | None:
        """The one energy that all variables are relative to."""
        return self.variables[0].base

    def same_base(self, other: Formula) -> bool:
        """Returns whether two formulas are relative to one energy, as those are that make one formula."""
        return same(self.base, other.base)

    def given(self, conditions: Mapping[str, Any]) -> Formula:
        """Returns the formula with conditions bound; unknown ones are left alone. Variables that differed may then be the same."""
        variables = [variable.given(conditions) for variable in self.variables]
        if all(new is old for new, old in zip(variables, self.variables, strict=True)):
            return self
        merge = NodeMerger()
        places = [merge.variable(variable) for variable in variables]
        merge.append(self.nodes, places)
        return Formula(tuple(merge.variables), tuple(merge.nodes))

    def energy(self, x: Tensor, **conditions: Any) -> Tensor:
        r"""Returns $-\log P(\text{formula} \mid x)$, with shape $(B,)$; each network is evaluated once.

        Args:
            x: Points, with shape $(B, *)$.
            **conditions: For the networks, one value for all or one row for each point; `chains` says which chains the points are.

        Raises:
            ContradictionError: The formula is never true, perhaps only with as many labels as there are.
            OptionError: A label is not among those that there are.
            ExpressionError: A condition is missing.
        """
        counts = list(self._labels)
        _, diagram = self._compile(self._labels)
        self._check_possible(diagram)
        outputs: dict[int, Any] = {}
        readings: dict[int, Any] = {}
        for level in diagram.levels:
            variable, network = self.variables[level], self._networks[level]
            if network not in outputs:
                outputs[network] = variable.evaluate(x, conditions)
            reading = readings[level] = variable.read(outputs[network], x)
            if isinstance(reading, Tensor):
                counts[level] = reading.shape[1]
        cells, diagram = self._compile(tuple(counts))
        self._check_possible(diagram)
        if diagram.constant:
            return zeros(x)
        chains = conditions.get(CHAINS)
        return -diagram.log_prob(lambda level, union: cells[level].log_prob(readings[level], union, x, chains))

    @property
    def _labels(self) -> tuple[int | None, ...]:
        """How many labels each variable has, as far as is known."""
        return tuple(variable.labels if isinstance(variable, Categorical) else None for variable in self.variables)

    def _check_possible(self, diagram: Diagram) -> None:
        if diagram.constant is False:
            raise ContradictionError(f"No point fulfils {self}: its probability is 0 whatever the networks say, so it has no energy.")

    def _compile(self, labels: tuple[int | None, ...]) -> tuple[tuple[Cells, ...], Diagram]:
        """Returns cells and diagram for these numbers of labels."""
        if labels not in self._compiled:
            atoms = [node for node in self.nodes if isinstance(node, Atom)]
            cells = tuple(
                variable.partition([atom.values for atom in atoms if atom.variable == i], labels[i])
                for i, variable in enumerate(self.variables)
            )
            table, done = DiagramBuilder(what=self), []
            for node in self.nodes:
                if isinstance(node, Atom):
                    done.append(table.node(node.variable, tuple(int(inside) for inside in cells[node.variable].members(node.values))))
                elif node.operator == "not":
                    done.append(table.complement(done[node.operands[0]]))
                else:
                    combine = table.both if node.operator == "all" else table.either
                    root = done[node.operands[-1]]
                    for operand in reversed(node.operands[:-1]):  # from the last, whose variables mostly stand below
                        root = combine(done[operand], root)
                    done.append(root)
            self._compiled[labels] = cells, table.diagram(done[-1])
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
    """Returns the formula that holds where all do.

    Args:
        formulas: At least one, all over one base.

    Raises:
        ExpressionError: The bases differ, or the formula is too large.
    """
    return _combine("all", formulas)


def disjoin(formulas: Iterable[Formula]) -> Formula:
    """Returns the formula that holds where at least one does.

    Args:
        formulas: At least one, all over one base.

    Raises:
        ExpressionError: The bases differ, or the formula is too large.
    """
    return _combine("any", formulas)


def complement(formula: Formula) -> Formula:
    """Returns the formula that holds where this one does not."""
    last = formula.nodes[-1]
    undone = isinstance(last, Operation) and last.operator == "not"
    nodes = formula.nodes[:-1] if undone else (*formula.nodes, Operation("not", (len(formula.nodes) - 1,)))
    return Formula(formula.variables, nodes, complement_of=formula)


def _combine(operator: str, formulas: Iterable[Formula]) -> Formula:
    formulas = tuple(formulas)
    if not formulas:
        raise ExpressionError("A combination of formulas needs at least one.")
    for other in formulas[1:]:
        if not formulas[0].same_base(other):
            raise ExpressionError(
                f"{formulas[0]} is relative to {formulas[0].base} and {other} to {other.base}: events make one formula only over one base. "
                "Give both the same base object."
            )
    merge = NodeMerger()
    roots = [merge.append(f.nodes, [merge.variable(variable) for variable in f.variables]) for f in formulas]
    roots = list(dict.fromkeys(roots))
    if len(roots) == 1:
        return formulas[0]
    merge.add(Operation(operator, tuple(roots)))
    return Formula(tuple(merge.variables), tuple(merge.nodes))


def _networks(variables: Sequence[Variable]) -> tuple[int, ...]:
    """Returns for each variable the first one with which it shares the evaluation of a network."""
    first: list[int] = []
    result = []
    for i, variable in enumerate(variables):
        shared = next((k for k in first if variables[k].shares_network(variable)), i)
        if shared == i:
            first.append(i)
        result.append(shared)
    return tuple(result)
