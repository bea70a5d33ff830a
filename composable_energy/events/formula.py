r"""Boolean formulas of events, and their energy $-\log P(\text{formula} \mid x)$.

A formula is a flat list of distinct nodes, operands first, so that copying and pickling need no recursion. It is built as a reduced ordered
decision diagram: each node tests one variable and has an edge for each of its cells, all paths test variables in one order, and equal nodes
are merged. So equal functions have the same diagram, and all Boolean laws hold in value. Cells exclude each other and variables are
independent given $x$, so $P(\text{node}) = \sum_{\text{cells}} P(\text{cell}) \, P(\text{child})$, evaluated bottom-up in log space.

Source: R. E. Bryant, "Graph-based algorithms for Boolean function manipulation" (1986); A. Srinivasan et al., "Algorithms for discrete
function manipulation" (1990), for more than two edges.
"""

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from composable_energy.arithmetic import zeros
from composable_energy.energies.conditions import CHAINS
from composable_energy.energies.energy import Energy
from composable_energy.energies.identity import same
from composable_energy.errors import ContradictionError, ExpressionError
from composable_energy.events.cells import Interval, IntervalCells, Label, LabelCells, differs, log_sum
from composable_energy.events.variables import Categorical, Source, Variable

NODE_LIMIT = 50_000  # of a diagram while it is built
FALSE, TRUE = 0, 1

Edge = tuple[int, tuple[int, ...]]
"""What an edge tests: a level, which is the index of a variable, and some of its cells."""
Heads = dict[int, list[tuple[Edge, int, bool]]]
"""For each network the edges that test its yes-or-no heads, with the column and the label; those of label 1 first."""


@dataclass(frozen=True)
class Atom:
    """The statement that a variable, given by its index in the formula, has one of some values: labels, or an interval."""

    variable: int
    values: frozenset[Label] | Interval
    name: str = field(compare=False)


@dataclass(frozen=True)
class Operation:
    """The operation `all`, `any` or `not` of earlier nodes."""

    operator: str
    operands: tuple[int, ...]


Node = Atom | Operation


class Formula:
    """An immutable Boolean formula over variables, built by `Formula.atom`, `conjoin`, `disjoin` and `complement`.

    Args:
        variables: Distinct variables in the order of the decision diagram.
        nodes: The nodes, operands first; the last one is the formula.

    Attributes:
        conditions: The names of the conditions of the networks that are not bound; with `chains` if a bound one has a row for each chain.
        required_conditions: The names of those without a default.
        constant: True or False if the formula is always or never true, else None. It may become constant at the first call, when the number
            of labels is known. A formula that is never true can be negated and combined, but has no energy.
    """

    def __init__(self, variables: tuple[Variable, ...], nodes: tuple[Node, ...]) -> None:
        self.variables, self.nodes = variables, nodes
        self._compiled: dict[tuple[int | None, ...], Diagram] = {}
        rows = any(isinstance(node, Atom) and differs(node.values) for node in nodes)
        self.conditions = frozenset({CHAINS} if rows else ()).union(*(variable.source.conditions for variable in variables))
        self.required_conditions = frozenset().union(*(variable.source.required_conditions for variable in variables))
        self._labels = tuple(variable.labels if isinstance(variable, Categorical) else None for variable in variables)
        first: dict[Source, int] = {}
        self._networks = [first.setdefault(variable.source, i) for i, variable in enumerate(variables)]  # the first one with an equal one
        self.constant: bool | None = self._compile(self._labels).constant

    @classmethod
    def atom(cls, variable: Variable, values: Iterable[Label] | Interval, name: str = "") -> "Formula":
        """Returns the formula that a variable has one of some values."""
        return cls((variable,), (Atom(0, values if isinstance(values, Interval) else frozenset(values), name or f"{variable.source}"),))

    def atoms(self) -> list["Formula"]:
        """Returns the statements about single variables of which this formula consists."""
        return [Formula((self.variables[node.variable],), (replace(node, variable=0),)) for node in self.nodes if isinstance(node, Atom)]

    def probability_apart(self, probabilities: Iterable[float]) -> float:
        """Returns the probability if the statements, in the order of `atoms`, were independent and had these probabilities."""
        given, found = iter(probabilities), list[float]()
        for node in self.nodes:
            some, kind = ([next(given)], "all") if isinstance(node, Atom) else ([found[i] for i in node.operands], node.operator)
            none = math.prod(1 - one for one in some)
            found.append({"all": math.prod(some), "any": 1 - none, "not": none}[kind])
        return found[-1]

    @property
    def bases(self) -> dict[Any, Energy | None]:
        """The base at each place in points of named variables; one for the place None without them."""
        return {variable.source.place: variable.base for variable in self.variables}

    def same_base(self, other: "Formula") -> bool:
        """Returns whether two formulas have the same base at places that meet, so that they can be combined."""
        pairs = itertools.product(self.bases.items(), other.bases.items())
        return all(same(base, its) or (place and at and {*place.names}.isdisjoint(at.names)) for (place, base), (at, its) in pairs)

    def given(self, conditions: Mapping[str, Any]) -> "Formula":
        """Returns the formula with conditions bound; unknown ones are ignored, and variables that become equal are merged."""
        variables = tuple(variable.given(conditions) for variable in self.variables)
        if all(new is old for new, old in zip(variables, self.variables, strict=True)):
            return self
        return Formula(*_merge([(variables, self.nodes)])[:2])

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
        labels, outputs, readings = list(self._labels), {}, {}

        def read(level: int) -> Any:
            if level not in readings:
                readings[level] = self.variables[level].read(outputs[self._networks[level]], x)
            return readings[level]

        for level in self._possible(self._labels).levels:
            variable, network = self.variables[level], self._networks[level]
            if network not in outputs:
                outputs[network] = variable.source.evaluate(x, conditions)
            if labels[level] is None and isinstance(variable, Categorical):
                labels[level] = read(level).shape[1]
        diagram, chains = self._possible(tuple(labels)), conditions.get(CHAINS)
        if diagram.constant:
            return zeros(x)
        known: dict[tuple[Edge, ...], Tensor] = {}
        for network, tests in diagram.heads.items():
            output = self.variables[network].source.check_output(outputs[network], x)
            if max(column for _, column, _ in tests) < output.shape[1]:
                # Alone, each head costs about fifteen small operations with its backward pass; together they cost as many as one.
                columns = output.unbind(1)  # whose backward pass is one operation
                yes, no = ([columns[column] for _, column, label in tests if label is wanted] for wanted in (True, False))
                logits = [*([torch.stack(yes)] if yes else ()), *([-torch.stack(no)] if no else ())]
                known[tuple(edge for edge, *_ in tests)] = logsigmoid(logits[0] if len(logits) == 1 else torch.cat(logits))
        return -diagram.log_prob(lambda level, cells: diagram.cells[level].log_prob(read(level), cells, chains), known)

    def _possible(self, labels: tuple[int | None, ...]) -> "Diagram":
        if (diagram := self._compile(labels)).constant is False:
            raise ContradictionError(f"No point fulfils {self}: its probability is 0 for any output of the networks, so it has no energy.")
        return diagram

    def _compile(self, labels: tuple[int | None, ...]) -> "Diagram":
        """Compiles the formula for the number of labels of each variable."""
        if labels not in self._compiled:
            values: list[list[Any]] = [[] for _ in self.variables]
            for node in self.nodes:
                if isinstance(node, Atom):
                    values[node.variable].append(node.values)
            kinds = zip(self.variables, values, labels, strict=True)
            cells = [LabelCells(of, count) if isinstance(variable, Categorical) else IntervalCells(of) for variable, of, count in kinds]
            builder, done = DiagramBuilder(self), []
            for node in self.nodes:
                if isinstance(node, Atom):
                    done.append(builder.node(node.variable, tuple(map(int, cells[node.variable].members(cast(Any, node.values))))))
                elif node.operator == "not":
                    done.append(builder.complement(done[node.operands[0]]))
                else:
                    combine = functools.partial(builder.combine, FALSE if node.operator == "all" else TRUE)
                    done.append(functools.reduce(combine, [done[i] for i in node.operands[::-1]]))  # the last are mostly on lower levels
            diagram, heads = builder.diagram(done[-1], cells), Heads()
            for level, union in diagram.edges:
                variable, of = self.variables[level], cells[level]
                column = variable.column if isinstance(variable, Categorical) else None
                if column is not None and isinstance(of, LabelCells) and not of.chained:
                    (label,) = (label for cell in union for label in of.groups[cell])
                    heads.setdefault(self._networks[level], []).append(((level, union), column, bool(label)))
            diagram.heads = {network: sorted(tests, key=lambda test: not test[2]) for network, tests in heads.items() if len(tests) > 1}
            self._compiled[labels] = diagram
        return self._compiled[labels]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}

    def __str__(self) -> str:
        texts: list[str] = []
        inner: list[str] = []  # in brackets, where an operator is around it
        for node in self.nodes:
            if isinstance(node, Atom):
                text = node.name
            elif node.operator == "not":
                text = f"~{inner[node.operands[0]]}"
            else:
                text = (" & " if node.operator == "all" else " | ").join([inner[i] for i in node.operands])
                text = text if len(text) <= 200 else f"{text[:90]} ... {text[-90:]}"
            texts.append(text)
            inner.append(text if getattr(node, "operator", "not") == "not" else f"({text})")
        return texts[-1]

    def __repr__(self) -> str:
        return f"Formula({self})"


def conjoin(formulas: Iterable[Formula]) -> Formula:
    """Returns the conjunction of one or more formulas over one base; raises `ExpressionError` if bases differ, or if it is too large."""
    return _combine("all", tuple(formulas))


def disjoin(formulas: Iterable[Formula]) -> Formula:
    """Returns the disjunction of one or more formulas over one base; raises `ExpressionError` if bases differ, or if it is too large."""
    return _combine("any", tuple(formulas))


def complement(formula: Formula) -> Formula:
    """Returns the complement of a formula."""
    negated = isinstance(last := formula.nodes[-1], Operation) and last.operator == "not"
    return Formula(formula.variables, formula.nodes[:-1] if negated else (*formula.nodes, Operation("not", (len(formula.nodes) - 1,))))


def _combine(operator: str, formulas: tuple[Formula, ...]) -> Formula:
    if not formulas:
        raise ExpressionError("A combination of formulas needs at least one.")
    for other in formulas[1:]:
        if not formulas[0].same_base(other):
            bases = f"{formulas[0]} is relative to {formulas[0].variables[0].base} and {other} to {other.variables[0].base}"
            raise ExpressionError(f"{bases}: events of one formula must have one base. Give both the same base object.")
    variables, nodes, roots = _merge([(formula.variables, formula.nodes) for formula in formulas])
    roots = tuple(dict.fromkeys(roots))
    return formulas[0] if len(roots) == 1 else Formula(variables, (*nodes, Operation(operator, roots)))


def _merge(parts: Sequence[tuple[Sequence[Variable], Sequence[Node]]]) -> tuple[tuple[Variable, ...], tuple[Node, ...], list[int]]:
    """Merges formulas, of which equal variables and equal nodes become one; returns the indices of their roots, too."""
    variables: list[Variable] = []
    places: dict[Variable, int] = {}
    nodes: list[Node] = []
    indices: dict[Hashable, int] = {}
    roots: list[int] = []
    for own, statements in parts:
        for variable in own:
            if (index := places.setdefault(variable, len(variables))) == len(variables):
                variables.append(variable)
            elif isinstance(variable, Categorical) and isinstance(other := variables[index], Categorical):
                if None not in (other.labels, variable.labels) and other.labels != variable.labels:
                    raise ExpressionError(f"{other.source} occurs in one expression with {other.labels} and with {variable.labels} labels.")
                variables[index] = variable if other.labels is None else other
        done: list[int] = []
        for node in statements:
            if isinstance(node, Atom):
                key = node = replace(node, variable=places[own[node.variable]])
            else:
                node = Operation(node.operator, tuple(done[i] for i in node.operands))
                key = node.operator, frozenset(node.operands)
            done.append(indices.setdefault(key, len(nodes)))
            if done[-1] == len(nodes):
                nodes.append(node)
        roots.append(done[-1])
    return tuple(variables), tuple(nodes), roots


class Diagram:
    """A compiled formula, with the cells of each variable; its `constant` is the value of a constant one."""

    def __init__(self, cells: Sequence[LabelCells | IntervalCells], nodes: Sequence[tuple[int, Any]], constant: bool | None) -> None:
        # Of each node, children first: the level, and of edges not to false the child, -1 for true, with its cells in ascending order.
        self.cells, self.nodes, self.constant = cells, nodes, constant
        self.levels = sorted({level for level, _ in nodes})
        self.edges: list[Edge] = list(dict.fromkeys((level, union) for level, edges in nodes for _, union in edges))
        self.heads: Heads = {}  # the yes-or-no heads that are read together

    def log_prob(self, log_prob: Callable[[int, tuple[int, ...]], Tensor], known: Mapping[tuple[Edge, ...], Tensor]) -> Tensor:
        """Returns log probabilities, with shape $(B,)$, from a function that gives those of a level and cells; some are `known` already."""
        done = {edge for edges in known for edge in edges}
        of_edge = {edge: log_prob(*edge) for edge in self.edges if edge not in done}
        if all(len(edges) == 1 for _, edges in self.nodes):  # the product of all edges, as of a conjunction of heads
            return functools.reduce(torch.add, [*(values.sum(0) for values in known.values()), *of_edge.values()])
        for edges, values in known.items():
            of_edge |= zip(edges, values.unbind(0), strict=True)
        rows: list[Tensor] = []
        for level, edges in self.nodes:
            terms = [of_edge[level, cells] if child < 0 else of_edge[level, cells] + rows[child] for child, cells in edges]
            rows.append(terms[0] if len(terms) == 1 else log_sum(torch.stack(terms), 0))
        return rows[-1]


class DiagramBuilder:
    """Builds the diagram of a formula from unique nodes: numbers above those of their children; 0 and 1 are false and true."""

    def __init__(self, name: object) -> None:
        self.name = name
        self._levels: list[int] = [1 << 30, 1 << 30]  # the terminals are below all levels
        self._children: list[tuple[int, ...]] = [(), ()]
        self._unique: dict[tuple[int, tuple[int, ...]], int] = {}
        self._memo: dict[tuple[int, int, int], int] = {}

    def node(self, level: int, children: tuple[int, ...]) -> int:
        """Returns the node of a level with one child for each cell; raises `ExpressionError` if there are too many nodes."""
        if children.count(children[0]) == len(children):
            return children[0]
        if (found := self._unique.setdefault((level, children), len(self._levels))) == len(self._levels):
            self._levels.append(level)
            self._children.append(children)
        if max(len(self._levels), len(self._memo) / 4) > NODE_LIMIT:
            raise ExpressionError(
                f"{self.name} needs a decision diagram of more than {NODE_LIMIT} nodes. Put related events side by side, or combine fewer."
            )
        return found

    def complement(self, root: int) -> int:
        """Returns the node that is true where this one is false."""
        done = {FALSE: TRUE, TRUE: FALSE}
        for node in self._below(root):
            done[node] = self.node(self._levels[node], tuple(done[child] for child in self._children[node]))
        return done[root]

    def combine(self, absorbing: int, f: int, g: int) -> int:
        """Combines two nodes: `and` if false is absorbing, `or` if true is. Not recursive, as paths may exceed Python's stack."""
        neutral = 1 - absorbing

        def look_up(a: int, b: int) -> int | None:
            if absorbing in (a, b):
                return absorbing
            if a in (neutral, b):
                return b
            return a if b == neutral else self._memo.get((absorbing, min(a, b), max(a, b)))

        stack = [(f, g)]
        while stack:
            a, b = stack.pop()
            if look_up(a, b) is not None:
                continue
            level = min(self._levels[a], self._levels[b])
            width = max(len(self._children[node]) for node in (a, b) if self._levels[node] == level)
            sides = [self._children[node] if self._levels[node] == level else (node,) * width for node in (a, b)]
            pairs = list(zip(*sides, strict=True))
            if None in (results := [look_up(*pair) for pair in pairs]):
                stack += [(a, b), *(pair for pair, result in zip(pairs, results, strict=True) if result is None)]
            else:
                self._memo[absorbing, min(a, b), max(a, b)] = self.node(level, cast(tuple[int, ...], tuple(results)))
        return cast(int, look_up(f, g))

    def diagram(self, root: int, cells: Sequence[LabelCells | IntervalCells]) -> Diagram:
        """Returns the diagram of the nodes that a root reaches."""
        order = self._below(root)
        position = {TRUE: -1} | {node: i for i, node in enumerate(order)}
        nodes = []
        for node in order:
            unions: dict[int, list[int]] = {}
            for cell, child in enumerate(self._children[node]):
                if child != FALSE:
                    unions.setdefault(child, []).append(cell)
            nodes.append((self._levels[node], [(position[child], tuple(of)) for child, of in unions.items()]))
        return Diagram(cells, nodes, None if order else root == TRUE)

    def _below(self, root: int) -> list[int]:
        """Returns a node and all nodes below it except the terminals, children first."""
        seen, stack = {FALSE, TRUE}, [root]
        while stack:
            if (node := stack.pop()) not in seen:
                seen.add(node)
                stack.extend(self._children[node])
        return sorted(seen - {FALSE, TRUE})
