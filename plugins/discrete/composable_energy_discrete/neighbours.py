"""Energies of the points that differ from others in one site, and which sites interact."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.sampling import plain_energy, repeated

_NUMBERS = 2**23  # of points that are evaluated together


class LocalEnergy(Energy, ABC):
    """Abstract energy of discrete points that knows the energies of neighbours in a closed form, and which sites interact.

    Samplers evaluate other energies at each neighbour, one site at a time.
    """

    @abstractmethod
    def neighbour_energies(self, x: Tensor) -> Tensor:
        """Returns the energies of the points with each value at each site, up to a constant for each site, with shape $(B, S, K)$."""

    @abstractmethod
    def couplings(self) -> Tensor:
        """Returns the pairs of sites that interact, with shape (2, pairs); sites are counted in the order of a flattened point."""


class Neighbourhood:
    """The energies of the neighbours of points, of an energy that a sampler gets.

    Args:
        energy: The energy.
        x: Points with shape $(B, *)$ like those that it is asked for.

    Attributes:
        sites: The sites of the points.
        colours: The number of a block for each site, with shape $(S,)$; sites of one block do not interact.
    """

    def __init__(self, energy: Energy, x: Tensor) -> None:
        self.energy, self.sites = energy, energy.sites
        expression, chains = plain_energy(energy)
        terms = [] if expression is None or chains or self.sites.free.any() else expression.summands()
        self.local = [(term, weight) for term, weight in terms if isinstance(term, LocalEnergy)]
        tables = [(_table(term, self.sites, x), weight) for term, weight in terms]
        self.tables = [(table, weight) for table, weight in tables if table is not None]
        known = bool(terms) and len(self.local) + len(self.tables) == len(terms)
        self.local, self.tables = (self.local, self.tables) if known else ([], [])
        self.known, count = known, len(self.sites.counts)
        self.colours = colour(count, [term.couplings() for term, _ in self.local]) if known else torch.arange(count)

    def energies(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Returns the energies of the points with each value at each of $m$ sites, up to a constant of a site, with shape $(B, m, K)$."""
        if self.known:
            found: Any = sum(weight * term.neighbour_energies(x) for term, weight in self.local)
            found = found + sum(weight * table for table, weight in self.tables)
            return found.expand(len(x), -1, -1)[:, chosen].masked_fill(~self.sites.allowed[chosen], math.inf)
        index, values = self.sites.index(x), self.sites.allowed.shape[1]
        size = max(1, _NUMBERS // (x.numel() * values))
        found = []
        for some in chosen.split(size):
            points = self.sites.neighbours(x, index, some)
            evaluated = repeated(self.energy, len(x), len(some) * values)(points.flatten(0, 2))
            found.append(evaluated.view(len(x), len(some), values))
        return torch.cat(found, 1).masked_fill(~self.sites.allowed[chosen], math.inf)


def _table(term: Energy, sites: Any, x: Tensor) -> Tensor | None:
    """Returns the energies of the values of each site, $(S, K)$, of a distribution whose sites are independent; None of another energy."""
    distribution = getattr(term, "distribution", None)
    while hasattr(distribution, "reinterpreted_batch_ndims"):
        distribution = distribution.base_dist
    if distribution is None or distribution.batch_shape.numel() != len(sites.counts):
        return None
    rows, values = x[:1].expand(sites.allowed.shape[1], *x.shape[1:]), torch.arange(sites.allowed.shape[1], device=x.device)
    index = torch.minimum(values[:, None], sites.counts - 1)
    logs = distribution.log_prob(sites.place(rows, index))
    return -logs.reshape(len(rows), -1).T.to(x.dtype)


def colour(count: int, couplings: list[Tensor]) -> Tensor:
    """Returns a colour for each site so that no two of one colour interact, by a greedy choice of the least that is free."""
    neighbours: list[set[int]] = [set() for _ in range(count)]
    for pairs in couplings:
        for one, other in pairs.T.tolist():
            if one != other:
                neighbours[one].add(other)
                neighbours[other].add(one)
    colours = [-1] * count
    for site in range(count):
        taken = {colours[other] for other in neighbours[site]}
        colours[site] = next(number for number in range(count) if number not in taken)
    return torch.tensor(colours)


def choose_values(logits: Tensor, uniform: Tensor) -> Tensor:
    r"""Returns values with probabilities $\propto e^{l}$, of logits with shape $(*, K)$ and uniform numbers with shape $*$."""
    if logits.shape[-1] == 2:
        return (uniform < torch.sigmoid(logits[..., 1] - logits[..., 0])).long()
    shares = torch.softmax(logits, -1).cumsum(-1)
    return (shares[..., :-1] <= uniform[..., None] * shares[..., -1:]).sum(-1)
