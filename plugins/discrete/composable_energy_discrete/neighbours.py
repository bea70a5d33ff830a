"""Energies of the points that differ from others in one site, and which sites interact."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent

import composable_energy as ce
from composable_energy import Energy
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.sampling import plain_energy, repeated

_NUMBERS = 2**23  # of points that are evaluated together
_DEGREE = 16  # the most neighbours of a site that are read one by one


class LocalEnergy(Energy, ABC):
    """Abstract energy of discrete points that knows the energies of neighbours in a closed form, and which sites interact.

    Samplers evaluate other energies at each neighbour, one site at a time.
    """

    @abstractmethod
    def differences(self, x: Tensor) -> Tensor:
        """Returns the energies with each value but the first at each site, minus those with the first, with shape $(B, S, K - 1)$."""

    @abstractmethod
    def couplings(self) -> Tensor:
        """Returns the pairs of sites that interact, with shape (2, pairs); sites are counted in the order of a flattened point."""

    def quadratic(self) -> tuple[Tensor, Tensor] | None:
        r"""Returns the weights of the pairs and the biases of the sites of an energy that is quadratic; None of any other.

        For sites of two values with the indices $k = 0, 1$ it is $-\sum_i b_i k_i - \sum_{ij} w_{ij} k_i k_j$ but for a constant. `Gibbs`
        then reads the neighbours of the sites that it draws, and computes nothing for the others.
        """
        return None


class Blocks:
    """The blocks of sites that Gibbs sampling draws together.

    Args:
        energy: The energy that a sampler gets.
        x: Points like those that are sampled, with shape $(B, *)$.

    Attributes:
        known: Whether all terms tell which sites interact.
        sites: The sites of each block.
        numbers: Which numbers of a flattened point belong to each block.
        table: The energies of the values of each site by terms whose sites are independent, with shape $(S, K)$; of two values the
            difference, with shape $(S,)$; None if all are 0.
        links: For each block the neighbours of its sites, their weights and the biases of its sites, where all other terms are quadratic
            with few neighbours; else None.
    """

    def __init__(self, energy: Energy, x: Tensor) -> None:
        sites, terms = energy.sites, _terms(energy)
        tables = [weight * table for term, weight in terms if (table := _table(term, sites, x)) is not None]
        local = [term for term, _ in terms if isinstance(term, LocalEnergy)]
        self.known, count = bool(terms) and len(local) + len(tables) == len(terms), len(sites.counts)
        table = sum(tables, start=torch.zeros(sites.allowed.shape, dtype=x.dtype, device=x.device)).masked_fill(~sites.allowed, math.inf)
        colours = (colour(count, [term.couplings() for term in local]) if self.known else torch.arange(count)).to(x.device)
        table = table[:, 1] - table[:, 0] if table.shape[1] == 2 else table  # once: compiled steps read it in a row
        self.table = table if bool(table.any()) or not local else None
        self.sites = [(colours == number).nonzero()[:, 0] for number in range(int(colours.max()) + 1)]
        whole = _links([pair for pair in terms if pair[0] in local], table) if self.known and table.ndim == 1 else ()
        self.links = [[some[at] for some in whole] for at in self.sites] if whole else None
        self._key = self.known, tuple(colours.tolist()), *(tuple(some.flatten().tolist()) for some in (table, *whole))
        self._hash = hash(self._key)  # compiled steps ask for it at each step
        widths = [1 if g.low is not None else g.values for g in sites.groups for _ in g.counts]
        self.numbers = [(colours == number).repeat_interleave(torch.tensor(widths, device=x.device)) for number in range(len(self.sites))]

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Blocks) and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def choose(self, energy: Energy, x: Tensor, uniform: Tensor, temperature: float | Tensor) -> Tensor:
        """Returns a value for each site, drawn given the other sites, with shape $(B, S)$."""
        found = [_scaled(term.differences(x), weight) for term, weight in _terms(energy) if isinstance(term, LocalEnergy)]
        shift = None if not found else found[0] if len(found) == 1 else torch.stack(found).sum(0)
        if energy.sites.allowed.shape[1] == 2:
            shift = None if shift is None else shift[..., 0]
        elif shift is not None:
            shift = torch.nn.functional.pad(shift, (1, 0))
        table = None if self.table is None else self.table.expand(len(x), *self.table.shape)
        total: Any = table if shift is None else shift if table is None else shift + table
        factor = 1 / temperature
        total = _scaled(total, unsqueeze_to(factor, total) if isinstance(factor, Tensor) else factor)
        return uniform < torch.sigmoid(-total) if energy.sites.allowed.shape[1] == 2 else choose_values(-total, uniform)

    def draw_linked(self, rows: Tensor, uniform: Tensor, temperature: float | Tensor) -> Tensor:
        """Returns the indices of all sites, drawn a block after another, with chains on the last axis, as for uniform numbers."""
        numbers = uniform.split([len(sites) for sites in self.sites])  # in the order of blocks: runs of memory
        for sites, (near, weights, bias), some in zip(self.sites, self.links or (), numbers, strict=True):
            force = _scaled((weights[..., None] * rows[near]).sum(1) + bias[:, None], 1 / temperature)
            rows = rows.index_copy(0, sites, (some < torch.sigmoid(force)).to(rows.dtype))
        return rows


def _links(terms: list[tuple[Any, Any]], table: Tensor) -> tuple[Tensor, ...]:
    """Returns the neighbours of each site with shape $(S, D)$, their weights, and the biases of sites; () of terms that have none."""
    found: list[Any] = [term.quadratic() for term, _ in terms]
    if not terms or None in found:
        return ()
    pairs = torch.cat([term.couplings() for term, _ in terms], 1).to(table.device)
    weights = torch.cat([weight * own for (_, weight), (own, _) in zip(terms, found, strict=True)]).to(table.dtype)
    bias = torch.stack([weight * own for (_, weight), (_, own) in zip(terms, found, strict=True)]).sum(0).to(table.dtype) - table
    source, order = torch.cat([pairs[0], pairs[1]]).sort(stable=True)
    degrees = source.bincount(minlength=len(table))
    if not 0 < degrees.max() <= _DEGREE:
        return ()
    place = torch.arange(len(source), device=table.device) - (degrees.cumsum(0) - degrees)[source]
    near = torch.arange(len(table), device=table.device)[:, None].repeat(1, int(degrees.max()))
    heavy = torch.zeros_like(near, dtype=table.dtype)
    near[source, place], heavy[source, place] = torch.cat([pairs[1], pairs[0]])[order], weights.repeat(2)[order]
    return near, heavy, bias


def _scaled(values: Tensor, factor: Any) -> Tensor:
    """Returns a product; the values themselves for a factor of 1, whose product would keep compiled steps from being one loop."""
    return values if isinstance(factor, float) and factor == 1 else factor * values


def _terms(energy: Energy) -> list[tuple[Energy, Any]]:
    """Returns the terms of the expression that a sampler gets, with their weights; none where it draws mixed points, or rows differ."""
    expression, chains = plain_energy(energy)
    return [] if expression is None or chains or energy.sites.mixed else expression.summands()


def neighbour_energies(energy: Energy, x: Tensor, chosen: Tensor) -> Tensor:
    """Returns the energies of the points with each value at each of $m$ sites, evaluated one by one, with shape $(B, m, K)$."""
    index, values = energy.sites.index(x), energy.sites.allowed.shape[1]
    found = []
    for some in chosen.split(max(1, _NUMBERS // (x.numel() * values))):
        points = points_near(energy.sites, x, index, some).flatten(0, 2)
        found.append(repeated(energy, len(x), len(some) * values)(points).view(len(x), len(some), values))
    return visible(torch.cat(found, 1)).masked_fill(~energy.sites.allowed[chosen], math.inf)


def visible(energies: Tensor) -> Tensor:
    r"""Returns energies with very low ones where they are NaN or $-\infty$: such a value is drawn, and the driver finds it in the state."""
    return energies.nan_to_num(-1e30, torch.inf, -1e30)


def points_near(sites: Any, x: Tensor, index: Tensor, chosen: Tensor) -> Tensor:
    """Returns the points with each value at each of $m$ sites, with shape $(B, m, K, *)$; values that a site lacks repeat its last one."""
    count, values = len(chosen), sites.allowed.shape[1]
    moved = index[:, None, None].repeat(1, count, values, 1)
    new = torch.minimum(torch.arange(values, device=x.device), sites.counts[chosen, None] - 1)  # (m, K)
    moved.scatter_(3, chosen[None, :, None, None].expand(len(x), -1, values, -1), new[None, :, :, None].expand(len(x), -1, -1, -1))
    wide = x[:, None, None].expand(len(x), count, values, *x.shape[1:])
    return sites.place(wide.reshape(-1, *x.shape[1:]), moved.flatten(0, 2)).reshape(wide.shape)


def slopes(sites: Any, x: Tensor, gradient: Tensor) -> Tensor:
    """Returns to first order the change of the energy by each value at each site, with shape $(B, S, K)$."""
    found, most = [], sites.allowed.shape[1]
    for group in sites.groups:
        part, slope = (some.reshape(len(x), -1)[:, group.columns] for some in (x, gradient))
        if group.low is None:
            rows, at = (some.unflatten(-1, (len(group.counts), -1)) for some in (slope, part))
            found.append(torch.nn.functional.pad(rows - (rows * at).sum(-1, keepdim=True), (0, most - rows.shape[-1])))
        else:
            values = group.low[:, None] + torch.arange(most, dtype=x.dtype, device=x.device)
            found.append(slope[:, :, None] * (values - part[:, :, None]))
    return torch.cat(found, 1)


def distances(sites: Any, x: Tensor) -> Tensor:
    """Returns the squared distances to the points with each value at each site, with shape $(B, S, K)$."""
    index = sites.index(x)[..., None]
    values = torch.arange(sites.allowed.shape[1], device=x.device)
    whole = torch.cat([torch.full_like(group.counts, group.low is not None) for group in sites.groups]).bool()[:, None]
    return torch.where(whole, (values - index).square(), 2 * (values != index)).to(x.dtype)


def _table(term: Energy, sites: Any, x: Tensor) -> Tensor | None:
    """Returns the energies of the values of each site, $(S, K)$, of a distribution whose sites are independent; None of another energy."""
    distribution: Any = term.distribution if type(term) is ce.energies.DistributionEnergy else None
    while type(distribution) is Independent:
        distribution = distribution.base_dist
    if distribution is None or distribution.batch_shape.numel() != len(sites.counts):
        return None
    rows, values = x[:1].expand(sites.allowed.shape[1], *x.shape[1:]), torch.arange(sites.allowed.shape[1], device=x.device)
    logs = distribution.log_prob(sites.place(rows, torch.minimum(values[:, None], sites.counts - 1)))
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
    r"""Returns values with probabilities $\propto e^{l}$, of logits with shape $(*, K)$ and uniform numbers with shape $*$. Values of two
    are Boolean."""
    if logits.shape[-1] == 2:
        return uniform < torch.sigmoid(logits[..., 1] - logits[..., 0])
    shares = torch.softmax(logits, -1).cumsum(-1)
    return (shares[..., :-1] <= uniform[..., None] * shares[..., -1:]).sum(-1)


def has_gradients(energy: Energy) -> bool:
    """Returns whether all parts of an energy have gradients."""
    return all(part.has_gradient for part in energy.modules() if isinstance(part, Energy))
