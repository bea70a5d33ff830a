"""Random formulas with exact probabilities by enumeration."""

import itertools
import math
from functools import reduce

import torch
from torch import nn

from composable_energy.errors import ContradictionError
from composable_energy.events import Categorical, Continuous, Formula, Interval, Source, complement, conjoin, disjoin

ENDS = (-math.inf, -0.7, 0.1, 0.6, 1.3, math.inf)


COUNTS = (2, 2, 3, 8, 5)  # labels of each head (the first has one column), and cells of the continuous one


class World:
    """Four classifiers and one continuous head, with the probability of each combination of their values."""

    def __init__(self, seed: int = 0, points: int = 5) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(points, 3, generator=generator, dtype=torch.double)
        widths = (1, 2, 3, 8, 2)
        self.networks = [nn.Linear(3, width).double() for width in widths]
        for network in self.networks:
            network.weight.data = torch.randn(network.weight.shape, generator=generator, dtype=torch.double) * 2
            network.bias.data = torch.rand(network.bias.shape, generator=generator, dtype=torch.double) - 0.5
        self.networks[-1].weight.data *= 0.2
        self.variables = [*(Categorical(Source(network)) for network in self.networks[:-1]), Continuous(Source(self.networks[-1]))]
        with torch.no_grad():
            odds, *logits, gaussian = (network(self.x) for network in self.networks)
        mean, width = gaussian[:, :1], gaussian[:, 1:].clamp(-5, 1).exp()
        ends = (torch.tensor(ENDS, dtype=torch.double) - mean) / width / math.sqrt(2)
        below, above = 0.5 * torch.erfc(-ends), 0.5 * torch.erfc(ends)
        cells = torch.where(ends[:, :-1] > 0, -above.diff(dim=1), below.diff(dim=1))  # of the smaller tails, which lose fewer digits
        self.tables = [torch.cat([(-odds).sigmoid(), odds.sigmoid()], 1), *(raw.softmax(1) for raw in logits), cells]

    def atom(self, head: int, values: frozenset[int]) -> Formula:
        if head < 4:
            return Formula.atom(self.variables[head], values, f"h{head}{sorted(values)}")
        return disjoin([Formula.atom(self.variables[4], Interval(ENDS[i], ENDS[i + 1]), f"cell{i}") for i in sorted(values)])

    def probability(self, tree) -> torch.Tensor:
        bits = truth(tree)
        chosen = [values for i, values in enumerate(COMBINATIONS) if bits >> i & 1]
        if not chosen:
            return torch.zeros(len(self.x), dtype=torch.double)
        return (
            torch.stack([table[:, list(column)] for table, column in zip(self.tables, zip(*chosen, strict=True), strict=True)])
            .prod(0)
            .sum(1)
        )

    def build(self, tree) -> Formula:
        if tree[0] == "atom":
            return self.atom(*tree[1:])
        parts = [self.build(part) for part in tree[1:]]
        return complement(parts[0]) if tree[0] == "not" else (conjoin if tree[0] == "and" else disjoin)(parts)


COMBINATIONS = list(itertools.product(*map(range, COUNTS)))


BITS = {(head, v): sum(1 << i for i, c in enumerate(COMBINATIONS) if c[head] == v) for head, n in enumerate(COUNTS) for v in range(n)}


ALL = (1 << len(COMBINATIONS)) - 1


def truth(tree) -> int:
    """The truth table of a tree: one bit for each combination of values."""
    if tree[0] == "atom":
        return sum(BITS[tree[1], value] for value in tree[2])
    if tree[0] == "not":
        return ALL ^ truth(tree[1])
    return reduce(int.__and__ if tree[0] == "and" else int.__or__, map(truth, tree[1:]))


WORLD = World()


def value(formula: Formula) -> torch.Tensor:
    """The energy; infinite for a formula that has none, because its probability is 0."""
    try:
        return formula.energy(WORLD.x)
    except ContradictionError:
        return torch.full((len(WORLD.x),), math.inf, dtype=torch.double)
