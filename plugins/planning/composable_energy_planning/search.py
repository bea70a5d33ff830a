r"""A search for trajectories from both ends: states that moves reach, spread evenly, and exact draws of trajectories among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy_planning.parts import Parts

__all__ = ["Search"]

_LOWEST = -1e6


@dataclass(frozen=True)
class Search:
    r"""Finds trajectories of all homotopy classes between waypoints, by the transitions of an energy.

    1. *Anchors.* States that fulfil a waypoint are found among those that training visited, and moved onto the target.
    2. *Pools.* From each anchor draws of moves go forwards, and from the next one backwards, up to each other's time. Moves that the energy
       forbids die out; of the others those in empty regions are kept, so that the states at a time cover all that can be reached.
    3. *Edges.* Each state is joined to the nearest ones of the next pool, in units of what a move would be, and the energy of each edge is
       evaluated, all at once.
    4. *Trajectories.* Forward filtering and backward sampling draw from the exact density on the graph. As pools are spread evenly, it is
       that of the expression on their states, with each homotopy class that they cover.
    5. Terms that are no sum over transitions weigh more trajectories than are needed.

    It is an embedded hidden Markov model (Neal, Beal & Roweis, 2003) with pools of two particle filters.

    Args:
        pool: The number of states at each time and from each side.
        edges: The number of edges from each state.
        temperature: The energies of edges are divided by this, since pools are coarse.

    References:
        Inferring state sequences for non-linear systems with embedded hidden Markov models (Neal, Beal & Roweis, 2003),
        https://papers.nips.cc/paper/2391
    """

    pool: int = 128
    edges: int = 6
    temperature: float = 2.0

    def paths(self, parts: Parts, count: int, generator: torch.Generator) -> Tensor:
        """Returns trajectories, with shape $(n, T, d)$."""
        pools = self._pools(parts, generator)
        links, energies = self._links(parts, pools)
        more = 4 * count if parts.rest else count
        found = self._draw(parts, pools, links, energies, more, generator)
        if not parts.rest:
            return found
        weights = -torch.stack([term(found) for term in parts.rest]).sum(0).double()
        chosen = torch.multinomial(torch.softmax(weights, 0), count, replacement=True, generator=generator)
        return found[chosen]

    def _pools(self, parts: Parts, generator: torch.Generator) -> Tensor:
        """Returns the states at all times, with shape $(T, m, d)$."""
        anchors = {time: self._anchor(parts, time, generator) for time in sorted(parts.waypoints)}
        scale = parts.visited(512, generator).std(0).clamp_min(1e-6)
        times, half = parts.horizon, self.pool
        ahead: dict[int, Tensor] = {}
        behind: dict[int, Tensor] = {}
        for time in range(times):
            if time in anchors:
                ahead[time] = anchors[time]
            elif time - 1 in ahead:
                ahead[time] = self._expand(parts, ahead[time - 1], scale, generator, backwards=False)
        for time in reversed(range(times)):
            if time in anchors:
                behind[time] = anchors[time]
            elif time + 1 in behind:
                behind[time] = self._expand(parts, behind[time + 1], scale, generator, backwards=True)
        pools = []
        for time in range(times):
            found = [pool[time] for pool in (ahead, behind) if time in pool]
            both = torch.cat(found if len(found) == 2 else found * 2)
            pools.append(both[: 2 * half])
        return torch.stack(pools)

    def _anchor(self, parts: Parts, time: int, generator: torch.Generator) -> Tensor:
        """Returns states that fulfil the waypoints at a time, with shape $(m, d)$: visited ones of low energy, moved downhill."""
        states = parts.visited(16 * self.pool, generator)
        energies = parts.of_states(states, time)
        states = states[energies.topk(self.pool, largest=False).indices]
        widths = torch.cat([waypoint.width.flatten() for waypoint in parts.waypoints[time]])
        with torch.enable_grad():
            for _ in range(20):  # Newton's method along the gradient, which is exact for a waypoint that is linear in the state
                point = states.detach().requires_grad_()
                found = parts.of_states(point, time)
                (slope,) = torch.autograd.grad(found.sum(), point)
                curved = widths.square().min() * slope
                states = (point - curved).detach()
        spread = widths.min() * torch.randn(states.shape, generator=generator).to(states)
        whole = [waypoint for waypoint in parts.waypoints[time] if waypoint.of is None and waypoint.axes is None]
        return states + (spread if whole else 0 * spread)

    def _expand(self, parts: Parts, states: Tensor, scale: Tensor, generator: torch.Generator, *, backwards: bool) -> Tensor:
        """Returns the pool of the next time, or of the one before, with shape $(m, d)$."""
        parents = states[torch.arange(2 * self.pool) % len(states)]
        children = parts.propose(parents, generator, backwards=backwards)
        energies = parts.of_moves(children, parents) if backwards else parts.of_moves(parents, children)
        excess = energies - energies.quantile(0.25)
        log_weight = -(excess / self.temperature).clamp_min(0)
        distances = torch.cdist(children / scale, children / scale)
        near = distances.kthvalue(9, dim=1).values.clamp_min(1e-9)
        log_weight = log_weight + children.shape[1] * near.log()
        gumbel = _gumbel(len(children), generator)
        return children[(log_weight + gumbel.to(children)).topk(self.pool).indices]

    def _links(self, parts: Parts, pools: Tensor) -> tuple[Tensor, Tensor]:
        """Returns for each state the nearest states of the next pool, with shape $(T - 1, m, k)$, and the energies of these moves."""
        times, count, size = pools.shape
        moves = [term for term, _ in parts.motion]
        whitened_from, whitened_to = [], []
        for term in moves:
            axes = slice(None) if term.axes is None else list(term.axes)
            pair = term.terms[0]
            mean, factor = pair.ahead.moments(pools[:-1][..., axes].flatten(0, 1))
            unit = factor.square().sum(2).sqrt().mean(0)
            whitened_from.append((pools[:-1][..., axes] + mean.unflatten(0, (times - 1, count))) / unit)
            whitened_to.append(pools[1:][..., axes] / unit)
        distances = torch.cdist(torch.cat(whitened_from, -1), torch.cat(whitened_to, -1))
        links = distances.topk(self.edges, dim=2, largest=False).indices
        states = pools[:-1, :, None].expand(-1, -1, self.edges, -1)
        ends = pools[1:].gather(1, links.flatten(1)[..., None].expand(-1, -1, size)).unflatten(1, (count, self.edges))
        energies = parts.of_moves(states.flatten(0, 2), ends.flatten(0, 2)).unflatten(0, links.shape)
        return links, energies

    def _draw(self, parts: Parts, pools: Tensor, links: Tensor, energies: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Returns draws of the density on the graph, with shape $(n, T, d)$."""
        times = len(pools)
        alone = [-parts.of_states(pools[time], time).double().clamp_max(-_LOWEST) for time in range(times)]
        log_moves = (-energies.double() / self.temperature).nan_to_num(_LOWEST, neginf=_LOWEST).clamp_min(_LOWEST)
        ahead = [alone[-1]]  # the log weight of all that follows a state
        for time in reversed(range(times - 1)):
            ahead.append(alone[time] + (log_moves[time] + ahead[-1][links[time]]).logsumexp(1))
        ahead.reverse()
        at = torch.multinomial(torch.softmax(ahead[0], 0), count, replacement=True, generator=generator)
        states = [pools[0][at]]
        for time in range(times - 1):
            options = log_moves[time][at] + ahead[time + 1][links[time][at]]
            chosen = torch.multinomial(torch.softmax(options, 1), 1, generator=generator)
            at = links[time][at].gather(1, chosen).squeeze(1)
            states.append(pools[time + 1][at])
        return torch.stack(states, 1)


def _gumbel(count: int, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(count, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    return -(-uniform.log()).log()

