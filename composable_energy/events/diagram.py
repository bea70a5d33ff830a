r"""Decision diagrams: a formula compiled once, so that its probability is a few sums of positive terms.

A node asks for the cell of one variable and has an edge for each; variables are asked in one order along every path, equal nodes are one,
and a node whose edges all lead to one child is left out. So a diagram is canonical: equal functions have the same diagram, and each
Boolean law holds in value. As the cells of a variable exclude each other and variables are independent given $x$,

$$P(\text{node}) = \sum_{\text{cells}} P(\text{cell}) \, P(\text{child}),$$

which is evaluated from the bottom up as a logsumexp.

Source: R. E. Bryant, "Graph-based algorithms for Boolean function manipulation" (1986); A. Srinivasan et al., "Algorithms for discrete
function manipulation" (1990), for more than two edges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from composable_energy.errors import ExpressionError
from composable_energy.events.normal import log_sum

__all__ = ["FALSE", "NODE_LIMIT", "TRUE", "Diagram", "DiagramBuilder"]

FALSE, TRUE = 0, 1

NODE_LIMIT = 50_000
"""Formulas that need more nodes than this while they are compiled are refused."""


@dataclass(frozen=True)
class Diagram:
    """A compiled formula.

    Args:
        nodes: From the bottom up: level, and for each child other than false the child (a position in `nodes`, or -1 for true) and the
            cells that lead there, ascending.
        constant: The value of a formula that does not depend on anything; None for others.
    """

    nodes: tuple[tuple[int, tuple[tuple[int, tuple[int, ...]], ...]], ...]
    constant: bool | None = None

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that are asked for."""
        return tuple(sorted({level for level, _ in self.nodes}))

    def log_prob(self, log_prob: Callable[[int, tuple[int, ...]], Tensor]) -> Tensor:
        """Returns the log probabilities of the formula, with shape $(B,)$.

        Args:
            log_prob: Returns the log probabilities of a union of cells, with shape $(B,)$, given the level and the cells.
        """
        known: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        rows: list[Tensor] = []
        for level, edges in self.nodes:
            terms = []
            for child, cells in edges:
                if (level, cells) not in known:
                    known[level, cells] = log_prob(level, cells)
                step = known[level, cells]
                terms.append(step if child < 0 else step + rows[child])
            rows.append(terms[0] if len(terms) == 1 else log_sum(torch.stack(terms), 0))
        return rows[-1]


class DiagramBuilder:
    """Nodes that are unique, and the operations that make new ones; a node is a number, and its children have smaller ones.

    Args:
        limit: The largest number of nodes.
        what: What is compiled, for messages.
    """

    def __init__(self, limit: int = NODE_LIMIT, what: object = "This formula") -> None:
        self.limit = limit
        self.what = what
        self._levels: list[int] = [1 << 30, 1 << 30]  # the terminals stand below all
        self._children: list[tuple[int, ...]] = [(), ()]
        self._unique: dict[tuple[int, tuple[int, ...]], int] = {}
        self._memo: dict[tuple[int, int, int], int] = {}
        self._complements: dict[int, int] = {FALSE: TRUE, TRUE: FALSE}

    def node(self, level: int, children: tuple[int, ...]) -> int:
        """Returns the node of a level with these children, one for each cell.

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

    def both(self, f: int, g: int) -> int:
        """Returns the node that is true where both are."""
        return self._apply(FALSE, f, g)

    def either(self, f: int, g: int) -> int:
        """Returns the node that is true where one is or both are."""
        return self._apply(TRUE, f, g)

    def complement(self, f: int) -> int:
        """Returns the node that is true where this one is not."""
        done = self._complements
        for node in self._below(f):
            if node not in done:
                done[node] = self.node(self._levels[node], tuple([done[child] for child in self._children[node]]))
                done[done[node]] = node
        return done[f]

    def diagram(self, root: int) -> Diagram:
        """Returns the nodes that a root reaches, without the table."""
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
        """Combines two nodes: `and` if false absorbs, `or` if true does. A stack of its own, as a chain may be longer than Python's."""
        memo, levels, kids = self._memo, self._levels, self._children
        neutral = 1 - absorbing

        def known(a: int, b: int) -> int | None:
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
            if known(a, b) is not None:
                stack.pop()
                continue
            level = min(levels[a], levels[b])
            width = len(kids[a] if levels[a] == level else kids[b])
            left: Sequence[int] = kids[a] if levels[a] == level else (a,) * width
            right: Sequence[int] = kids[b] if levels[b] == level else (b,) * width
            results, open_pairs = [], []
            for pair in zip(left, right, strict=True):
                result = known(*pair)
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
        return cast(int, known(f, g))  # known, or the loop would go on

    def _too_large(self) -> ExpressionError:
        return ExpressionError(
            f"{self.what} needs a decision diagram of more than {self.limit} nodes. Write events that belong together next to each other, "
            "or combine fewer of them."
        )

    def _below(self, root: int) -> list[int]:
        """Returns a node and all below it but the terminals, ascending: children first."""
        seen, stack = {FALSE, TRUE}, [root]
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                stack.extend(self._children[node])
        return sorted(seen - {FALSE, TRUE})
