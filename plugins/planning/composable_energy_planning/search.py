r"""A search for trajectories from both ends: states that moves reach, and exact draws of trajectories among them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy_planning.parts import Parts

_LOWEST = -1e6
_CHILDREN = 6
_BINDING = 20.0  # a descent mends a move between the trees sooner than an end that is missed
_FIRM = 4.0  # zones weigh more than coarse edges do: a descent rarely leaves one
_WIDTHS = (1.0, 1.7)  # of moves; wide ones reach the ends of bounded actions
_REACHES = (1.0, 2.2)  # of usual and of fast moves, in standard deviations
_EXCESS = 12.0  # nats above a usual move, from which a move counts as forbidden


class _Metric:
    """Coordinates whose distances compare states: numbers in units of a scale, and angles that wind as points of a circle."""

    def __init__(self, scale: Tensor, winding: Tensor) -> None:
        self.scale, self.winding = scale, winding

    def __call__(self, states: Tensor) -> Tensor:
        angles = states[:, self.winding]
        plain = states[:, ~self.winding] / self.scale[~self.winding]
        return torch.cat([plain, angles.cos() / self.scale[self.winding], angles.sin() / self.scale[self.winding]], 1)


def _shortest(moves: Tensor, winding: Tensor) -> Tensor:
    """Returns moves with shape $(*, d)$ whose angles go the short way."""
    return torch.where(winding, torch.remainder(moves + math.pi, 2 * math.pi) - math.pi, moves)


@dataclass(frozen=True)
class Search:
    r"""Finds trajectories of all homotopy classes between waypoints, by the transitions of an energy.

    1. *Anchors.* States that fulfil a waypoint are found among those that training visited, and moved onto the target.
    2. *Trees.* From each anchor a tree of moves grows forwards, and one backwards. The state nearest to a random visited one draws moves,
       and the move that comes nearest and that the energy allows is added, as in RRT (LaValle, 1998).
    3. *Graph.* The trees and some visited states are the candidates at every time. Each is joined to some that a move reaches, or to the
       nearest ones, and the energies of all edges are evaluated at once.
    4. *Trajectories.* Forward filtering and backward sampling draw from the exact density on the graph, with each homotopy class in it.
    5. Terms that are no sum over transitions weigh more trajectories than are needed.

    It is an embedded hidden Markov model (Neal, Beal & Roweis, 2003) whose pool of states comes from trees.

    Args:
        visited: The number of visited states in the graph.
        tree: The number of states of a tree, less those at its anchor.
        edges: The number of edges from each state.
        temperature: The energies of edges are divided by this, since candidates are coarse.

    References:
        Inferring state sequences for non-linear systems with embedded hidden Markov models (Neal, Beal & Roweis, 2003),
        https://papers.nips.cc/paper/2391
    """

    visited: int = 600
    tree: int = 900
    edges: int = 16
    temperature: float = 2.0

    @torch.no_grad()
    def paths(self, parts: Parts, count: int, generator: torch.Generator, passed: Tensor | None = None) -> Tensor:
        """Returns trajectories, with shape $(n, T, d)$."""
        if passed is not None and len(passed) > 1:
            rest = self._paths(parts.after(len(passed) - 1), 4 * count if parts.rest else count, generator)
            return _chosen(parts, torch.cat([passed[:-1].expand(len(rest), -1, -1), rest], 1), count, generator)
        return _chosen(parts, self._paths(parts, 4 * count if parts.rest else count, generator), count, generator)

    def _paths(self, parts: Parts, count: int, generator: torch.Generator) -> Tensor:
        winding = parts.winding(generator)
        pool = self._pool(parts, winding, generator)
        links, energies = self._links(parts, pool, winding, generator)
        found = self._draw(parts, pool, links, energies, count, generator)
        found[:, 1:] = found[:, :1] + _shortest(found.diff(dim=1), winding).cumsum(1)
        return found

    def _pool(self, parts: Parts, winding: Tensor, generator: torch.Generator) -> Tensor:
        times = sorted(parts.waypoints)
        visited = parts.visited(self.visited, generator)
        metric = _Metric(visited.std(0).clamp_min(1e-6), winding)
        pool = [visited]
        for time in times:
            anchors = self._anchor(parts, time, winding, generator).to(visited)
            if time < parts.horizon - 1:
                pool.append(self._grow(parts, anchors, metric, generator, backwards=False))
            if time > 0:
                pool.append(self._grow(parts, anchors, metric, generator, backwards=True))
        return torch.cat(pool)

    def _anchor(self, parts: Parts, time: int, winding: Tensor, generator: torch.Generator) -> Tensor:
        """Returns states that fulfil the waypoints at a time, with shape $(m, d)$: visited ones of low energy, moved downhill."""
        waypoints = parts.waypoints[time]
        known = torch.full((parts.size,), math.nan).to(waypoints[0].term.target)
        for waypoint, axes, _ in reversed(waypoints):
            if waypoint.of is None:
                known[axes] = waypoint.target
        if not known.isnan().any():
            return known.expand(1, -1)
        states = parts.visited(4096, generator)
        states = states[parts.of_states(states, time).topk(32, largest=False).indices]
        width = torch.cat([part.term.width.flatten() for part in waypoints]).min()
        with torch.enable_grad():
            for _ in range(30):  # steps along the gradient, each exact for a function of the state that is linear with unit slope
                point = states.detach().requires_grad_()
                (slope,) = torch.autograd.grad(parts.of_states(point, time).sum(), point)
                states = (point - 0.7 * width.square() * slope).detach()
        turns = torch.randint(-1, 2, states.shape, generator=generator).to(states)
        return states + 2 * math.pi * turns * (parts.cyclic & ~winding).to(states)

    def _grow(self, parts: Parts, roots: Tensor, metric: _Metric, generator: torch.Generator, *, backwards: bool) -> Tensor:
        """Returns a tree of moves from roots, with shape $(m, d)$."""
        rounds = max(1, parts.horizon * 2 // 3)
        each = max(1, self.tree // rounds)
        tree, usual = roots, torch.tensor(torch.inf)
        for _ in range(rounds):
            targets = parts.visited(each, generator)
            parents = tree[torch.cdist(metric(targets), metric(tree)).argmin(1)].repeat(_CHILDREN, 1)
            halves = zip(parents.chunk(2), _WIDTHS, strict=True)
            children = torch.cat([parts.propose(half, generator, backwards=backwards, width=width) for half, width in halves])
            energies = parts.of_moves(children, parents, _FIRM) if backwards else parts.of_moves(parents, children, _FIRM)
            usual = torch.minimum(usual, energies.quantile(0.1))
            far = (metric(children) - metric(targets).repeat(_CHILDREN, 1)).square().sum(1).sqrt()
            score = (far + 1e3 * (energies > usual + _EXCESS)).unflatten(0, (_CHILDREN, each))
            kept = children.unflatten(0, (_CHILDREN, each))[score.argmin(0), torch.arange(each)]
            tree = torch.cat([tree, kept[score.amin(0) < 1e3]])
        return tree

    def _links(self, parts: Parts, pool: Tensor, winding: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns for each state candidates for the next one, with shape $(m, k)$, and the energies of these moves."""
        begins, unit = pool.clone(), torch.ones(pool.shape[1]).to(pool)
        for pair, axes, _ in parts.motion:
            mean, factor = pair.ahead.moments(pool[:, axes])
            begins[:, axes] += mean
            unit[axes] = factor.square().sum(2).sqrt().mean(0)
        metric = _Metric(unit, winding)
        distances = torch.cdist(metric(begins), metric(pool))
        ties = 1e-3 * torch.rand(distances.shape, generator=generator).to(distances)  # among moves of usual length, short ones are slow
        half = min(max(1, self.edges // 2), len(pool))
        nearest = [(distances.clamp_min(reach) + ties).topk(half, dim=1, largest=False).indices for reach in _REACHES]
        links = torch.cat(nearest, 1)
        states = pool[:, None].expand(-1, links.shape[1], -1).flatten(0, 1)
        return links, parts.of_moves(states, states + _shortest(pool[links.flatten()] - states, winding), _FIRM).view(links.shape)

    def _draw(self, parts: Parts, pool: Tensor, links: Tensor, energies: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Returns draws of the density on the graph, with shape $(n, T, d)$."""
        times = parts.horizon
        log_moves = (-energies / self.temperature).nan_to_num(_LOWEST, neginf=_LOWEST).clamp_min(_LOWEST).double()

        def alone(time: int) -> Tensor:
            energies = parts.of_states(pool, time).double()
            return -(_BINDING * (energies - energies.min())).clamp_max(-_LOWEST)

        following = [alone(times - 1)]  # the log weight of all that follows a state
        for time in reversed(range(times - 1)):
            weight = (log_moves + following[-1][links]).logsumexp(1)
            following.append(weight + alone(time) if time in parts.waypoints else weight)
        following.reverse()
        at = torch.multinomial(torch.softmax(following[0], 0), count, replacement=True, generator=generator)
        states = [pool[at]]
        for time in range(times - 1):
            chosen = torch.multinomial(torch.softmax((log_moves[at] + following[time + 1][links[at]]), 1), 1, generator=generator)
            at = links[at].gather(1, chosen).squeeze(1)
            states.append(pool[at])
        return torch.stack(states, 1)


def _chosen(parts: Parts, found: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns draws of trajectories by the terms that are no sum over transitions, with shape $(n, T, d)$."""
    if not parts.rest:
        return found
    weights = -torch.stack([term(parts.point(found)) for term in parts.rest]).sum(0).double()
    return found[torch.multinomial(torch.softmax(weights, 0), count, replacement=True, generator=generator)]
