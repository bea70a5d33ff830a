r"""Reduced ordered decision diagrams, the compiled form of formulas.

A node tests one variable and has an edge for each of its cells. All paths test variables in one order, equal nodes are merged, and a node
whose edges all lead to one child is left out. So a diagram is canonical: equal functions have the same diagram, and all Boolean laws hold
in value. The cells of a variable exclude each other and variables are independent given $x$, so

$$P(\text{node}) = \sum_{\text{cells}} P(\text{cell}) \, P(\text{child}),$$

evaluated bottom-up in log space.

Source: R. E. Bryant, "Graph-based algorithms for Boolean function manipulation" (1986); A. Srinivasan et al., "Algorithms for discrete
function manipulation" (1990), for more than two edges.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from composable_energy.errors import ExpressionError
from composable_energy.events.cells import log_sum

FALSE, TRUE = 0, 1

NODE_LIMIT = 50_000
"""The largest number of nodes of a formula while it is compiled."""

Edge = tuple[int, tuple[int, ...]]
"""What an edge tests: a level, and the cells of its variable."""


@dataclass(frozen=True)
class Diagram:
    """A compiled formula.

    Args:
        nodes: The nodes, children first: the level (the index of the variable), and the edges other than to false: the child (an index in
            `nodes`, or -1 for true) and its cells, ascending.
        constant: The value of a constant formula; None for others.
    """

    nodes: tuple[tuple[int, tuple[tuple[int, tuple[int, ...]], ...]], ...]
    constant: bool | None = None

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """The levels of the nodes."""
        return tuple(sorted({level for level, _ in self.nodes}))

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """The distinct tests of the edges."""
        return tuple(dict.fromkeys((level, cells) for level, edges in self.nodes for _, cells in edges))

    @cached_property
    def is_product(self) -> bool:
        """Whether the probability is the product of those of all edges, as of a conjunction of heads."""
        return all(len(edges) == 1 for _, edges in self.nodes)

    def log_prob(self, log_prob: Callable[[int, tuple[int, ...]], Tensor], known: Sequence[tuple[Sequence[Edge], Tensor]] = ()) -> Tensor:
        """Returns the log probabilities of the formula, with shape $(B,)$.

        Args:
            log_prob: A function of a level and cells that returns the log probabilities of their union, with shape $(B,)$.
            known: Edges whose log probabilities are known, with shape (edges, B).
        """
        done = {edge for edges, _ in known for edge in edges}
        others = {edge: log_prob(*edge) for edge in self.edges if edge not in done}
        if self.is_product:
            return functools.reduce(torch.add, [*(values.sum(0) for _, values in known), *others.values()])
        of_edge = others | {edge: row for edges, values in known for edge, row in zip(edges, values.unbind(0), strict=True)}
        rows: list[Tensor] = []
        for level, edges in self.nodes:
            terms = [of_edge[level, cells] if child < 0 else of_edge[level, cells] + rows[child] for child, cells in edges]
            rows.append(terms[0] if len(terms) == 1 else log_sum(torch.stack(terms), 0))
        return rows[-1]


class DiagramBuilder:
    """Builds a diagram from unique nodes. A node is a number; its children have smaller numbers.

    Args:
        limit: The largest number of nodes.
        name: The formula, for messages.
    """

    def __init__(self, limit: int = NODE_LIMIT, name: object = "This formula") -> None:
        self.limit = limit
        self.name = name
        self._levels: list[int] = [1 << 30, 1 << 30]  # the terminals are below all levels
        self._children: list[tuple[int, ...]] = [(), ()]
        self._unique: dict[tuple[int, tuple[int, ...]], int] = {}
        self._memo: dict[tuple[int, int, int], int] = {}
        self._complements: dict[int, int] = {FALSE: TRUE, TRUE: FALSE}

    def node(self, level: int, children: tuple[int, ...]) -> int:
        """Returns the node of a level with one child for each cell.

        Raises:
            ExpressionError: There are too many nodes.
        """
        first = children[0]
        if children.count(first) == len(children):
            return first
        found = self._unique.get((level, children))
        if found is None:
            found = len(self._levels)
            if found - 2 >= self.limit:
                raise self._too_large()
            self._levels.append(level)
            self._children.append(children)
            self._unique[level, children] = found
        return found

    def conjoin(self, f: int, g: int) -> int:
        """Returns the node that is true where both nodes are."""
        return self._apply(FALSE, f, g)

    def disjoin(self, f: int, g: int) -> int:
        """Returns the node that is true where at least one node is."""
        return self._apply(TRUE, f, g)

    def complement(self, f: int) -> int:
        """Returns the node that is true where this one is false."""
        done = self._complements
        for node in self._below(f):
            if node not in done:
                done[node] = self.node(self._levels[node], tuple([done[child] for child in self._children[node]]))
                done[done[node]] = node
        return done[f]

    def diagram(self, root: int) -> Diagram:
        """Returns the diagram of the nodes that a root reaches."""
        if root in (FALSE, TRUE):
            return Diagram((), constant=root == TRUE)
        order = self._below(root)
        position = {TRUE: -1} | {node: i for i, node in enumerate(order)}
        nodes = []
        for node in order:
            cells: dict[int, list[int]] = {}
            for cell, child in enumerate(self._children[node]):
                if child != FALSE:
                    cells.setdefault(child, []).append(cell)
            nodes.append((self._levels[node], tuple((position[child], tuple(of)) for child, of in cells.items())))
        return Diagram(tuple(nodes))

    def _apply(self, absorbing: int, f: int, g: int) -> int:
        """Combines two nodes: `and` if false is absorbing, `or` if true is. Not recursive, as paths may exceed Python's stack."""
        memo, levels, kids = self._memo, self._levels, self._children
        neutral = 1 - absorbing

        def look_up(a: int, b: int) -> int | None:
            if absorbing in (a, b):
                return absorbing
            if a in (neutral, b):
                return b
            if b == neutral:
                return a
            return memo.get((absorbing, a, b) if a < b else (absorbing, b, a))

        stack = [(f, g)]
        while stack:
            a, b = stack[-1]
            if look_up(a, b) is not None:
                stack.pop()
                continue
            level = min(levels[a], levels[b])
            width = len(kids[a] if levels[a] == level else kids[b])
            left: Sequence[int] = kids[a] if levels[a] == level else (a,) * width
            right: Sequence[int] = kids[b] if levels[b] == level else (b,) * width
            results, open_pairs = [], []
            for pair in zip(left, right, strict=True):
                result = look_up(*pair)
                if result is None:
                    open_pairs.append(pair)
                else:
                    results.append(result)
            if open_pairs:
                stack.extend(open_pairs)
            else:
                memo[(absorbing, a, b) if a < b else (absorbing, b, a)] = self.node(level, tuple(results))
                if len(memo) > 4 * self.limit:
                    raise self._too_large()
                stack.pop()
        return cast(int, look_up(f, g))  # not None at the end of the loop

    def _too_large(self) -> ExpressionError:
        return ExpressionError(
            f"{self.name} needs a decision diagram of more than {self.limit} nodes. Write related events next to each other, or combine "
            "fewer of them."
        )

    def _below(self, root: int) -> list[int]:
        """Returns a node and all nodes below it except the terminals, children first."""
        seen, stack = {FALSE, TRUE}, [root]
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                stack.extend(self._children[node])
        return sorted(seen - {FALSE, TRUE})
