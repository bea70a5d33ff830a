"""Random tasks of the planning benchmark, shortest paths on a grid, and the judgement of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from composable_energy_planning import Disc, World

_SHARE = 0.75  # of the horizon that the shortest path may take at full speed
_RADIUS = {"maze": 0.12, "arm": 0.08, "car": 0.12}  # of later obstacles
_CELLS = {"maze": 81, "arm": 61, "car": 81}
_MOVES = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if np.gcd(i, j) == 1]


@dataclass(frozen=True)
class Task:
    """A start, a goal in the plane, and maybe a later obstacle."""

    start: Tensor  # state at the start, with shape $(d,)$
    goal: Tensor  # where to go, with shape $(2,)$
    obstacle: Disc | None = None  # later obstacle; None without one
    steps: float = 0.0  # moves at full speed along the shortest path on the grid


class Grid:
    """Shortest paths on a grid of the first two numbers of a state, which knows the obstacles."""

    def __init__(self, world: World, obstacle: Disc | None = None, margin: float = 0.0) -> None:
        self.world, self.obstacle, self.margin = world, obstacle, margin
        self.count = _CELLS[world.name]
        low, high = world.low[:2], world.high[:2]
        axes = [torch.linspace(low[i].item(), high[i].item(), self.count) for i in range(2)]
        self.points = torch.cartesian_prod(*axes)
        self.states = torch.cat([self.points, torch.zeros(len(self.points), len(world.low) - 2)], 1)
        self.checks = 0

    def clear(self, states: Tensor) -> Tensor:
        """Returns which states touch nothing."""
        self.checks += len(states)
        found = self.world.clearance(states) > self.margin
        return found if self.obstacle is None else found & (clearance_of(self.world, self.obstacle, states) > self.margin)

    @cached_property
    def graph(self) -> csr_matrix:
        free = self.clear(self.states).view(self.count, self.count)
        index = torch.arange(self.count**2).view(self.count, self.count)
        froms, tos = [], []
        for i, j in _MOVES:
            one = (slice(max(0, -i), self.count - max(0, i)), slice(max(0, -j), self.count - max(0, j)))
            other = (slice(max(0, i), self.count - max(0, -i)), slice(max(0, j), self.count - max(0, -j)))
            both = free[one] & free[other]
            froms.append(index[one][both])
            tos.append(index[other][both])
        a, b = torch.cat(froms), torch.cat(tos)
        fine = torch.ones(len(a), dtype=torch.bool)
        for share in (0.25, 0.5, 0.75):
            fine &= self.clear(self.states[a] + share * (self.states[b] - self.states[a]))
        a, b = a[fine], b[fine]
        lengths = self.cost(self.states[b] - self.states[a])
        return csr_matrix((lengths.numpy(), (a.numpy(), b.numpy())), shape=(self.count**2,) * 2)

    def cost(self, moves: Tensor) -> Tensor:
        """Returns the moves at full speed that a way takes."""
        if self.world.name == "car":
            return moves[:, :2].norm(dim=1) / self.world.high[3]
        return (moves / self.world.reach).abs().amax(1).clamp_min(1e-9) + 1e-3 * moves.norm(dim=1)

    def path(self, task: Task) -> tuple[Tensor, float] | None:
        """Returns the states of the shortest path and its moves at full speed; None if there is none."""
        near = (self.points - task.start[:2]).norm(dim=1)
        source = int(torch.where(self.clear(self.states), near, torch.inf).argmin())
        lengths, before = dijkstra(self.graph, indices=source, return_predecessors=True)
        arrived = (self.world.position(self.states) - task.goal).norm(dim=1) < self.world.tolerance * 0.8
        ends = np.where(arrived.numpy(), lengths, np.inf)
        at = int(ends.argmin())
        if not np.isfinite(ends[at]):
            return None
        length, way = float(ends[at]), [at]
        while at != source:
            at = int(before[at])
            way.append(at)
        states = self.states[way[::-1]]
        states[0] = task.start
        return states, length


def clearance_of(world: World, obstacle: Disc, states: Tensor) -> Tensor:
    """Returns the distance from a later obstacle, with shape $(B,)$."""
    return obstacle(world.outline(states)).amin(-1)


def resample(path: Tensor, count: int) -> Tensor:
    """Returns a path with a given number of states, evenly spaced along it."""
    lengths = torch.cat([torch.zeros(1), path.diff(dim=0).norm(dim=1).cumsum(0)])
    where = torch.linspace(0, float(lengths[-1]), count)
    at = torch.searchsorted(lengths, where).clamp(1, len(path) - 1)
    share = ((where - lengths[at - 1]) / (lengths[at] - lengths[at - 1]).clamp_min(1e-9)).clamp(0, 1)[:, None]
    return path[at - 1] + share * (path[at] - path[at - 1])


def random_tasks(world: World, count: int, seed: int, *, later: bool = False) -> list[Task]:
    """Returns the first tasks of `draw_tasks`."""
    return list(islice(draw_tasks(world, seed, later=later), count))


def draw_tasks(world: World, seed: int, *, later: bool = False) -> Iterator[Task]:
    """Yields tasks whose shortest path exists and fits the horizon."""
    generator = torch.Generator().manual_seed(seed)
    grid = Grid(world)
    while True:
        ends = world.random_states(2, generator)
        begin = ends[0]
        if world.name == "car":
            begin[3] *= 0.5
        if world.clearance(ends).min() < 0.03:
            continue
        task = Task(begin, world.position(ends[1:])[0])
        found = grid.path(task)
        if found is None or not 6 <= found[1] <= _SHARE * (world.horizon - 1):
            continue
        task = replace(task, steps=found[1])
        task = _blocked(world, task, found[0], generator) if later else task
        if task is not None:
            yield task


def _blocked(world: World, task: Task, path: Tensor, generator: torch.Generator) -> Task | None:
    """Returns a task with an obstacle on its shortest path; None if no other way fits."""
    share = 0.3 + 0.4 * float(torch.rand((), generator=generator))
    middle = path[int(share * (len(path) - 1))][None]
    obstacle = Disc(world.position(middle)[0], _RADIUS[world.name])
    ends = torch.stack([task.start, path[-1]])
    if clearance_of(world, obstacle, ends).min() < 0.08:
        return None
    blocked = replace(task, obstacle=obstacle)
    found = Grid(world, obstacle, 0.01).path(blocked)
    return None if found is None or found[1] > _SHARE * (world.horizon - 1) else replace(blocked, steps=found[1])


def succeeds(world: World, task: Task, plan: Tensor, seed: int) -> bool:
    """Returns whether following a plan of shape $(T, d)$ arrives without touching anything, also between states."""
    states, hit = world.follow(plan, torch.Generator().manual_seed(seed))
    if task.obstacle is not None:
        shares = torch.linspace(0, 1, 9)[:, None, None]
        between = (states[:-1] + shares * states.diff(dim=0)).flatten(0, 1)
        hit |= bool(clearance_of(world, task.obstacle, between).min() <= 0)
    return not hit and float((world.position(states)[-1] - task.goal).norm()) <= world.tolerance
