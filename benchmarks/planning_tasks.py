"""Random tasks of the planning benchmark, the judgement of a plan, and other planners: on a grid, a learned forward model, a reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from torch import Tensor, nn

from composable_energy_planning import Disc, World
from composable_energy_planning.transition import features

_SHARE = 0.75  # of the horizon that the shortest path may take at full speed
_RADIUS = {"maze": 0.12, "arm": 0.08, "car": 0.12}  # of later obstacles
_SIDE = {"maze": 81, "arm": 61, "car": 81}  # points of a grid
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
        self.count = _SIDE[world.name]
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


def grid_plan(world: World, task: Task, grid: Grid | None = None) -> tuple[Tensor | None, int]:
    """Returns the shortest path on a grid that knows the obstacles, as states, and the number of collision checks."""
    grid = grid or Grid(world, task.obstacle, MARGIN)
    found = grid.path(task)
    return (None if found is None else as_plan(world, task, found[0])), grid.checks


def as_plan(world: World, task: Task, path: Tensor) -> Tensor:
    """Returns a path of the first two numbers of a state as a plan; the car gets directions and speeds from it."""
    plan = resample(path[:, :2], world.horizon)
    if world.name != "car":
        return plan
    moves = plan.diff(dim=0)
    theta, speed = torch.atan2(moves[:, 1], moves[:, 0]), moves.norm(dim=1)
    plan = torch.cat([plan, torch.cat([theta, theta[-1:]])[:, None], torch.cat([speed, torch.zeros(1)])[:, None]], 1)
    plan[0] = task.start
    return plan


class ForwardModel(nn.Module):
    """A network that predicts the change of a state by an action, trained on the same random motion with its actions and blocked moves."""

    def __init__(self, world: World, angles: tuple[int, ...], hidden: int = 64) -> None:
        super().__init__()
        size, actions = len(world.low), len(world.reach)
        self.angles, self.reach, self.evaluations = angles, world.reach, 0
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("unit", torch.ones(size))
        inputs = size + len(angles) + 8 * size + actions
        layers = [nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()]
        self.network = nn.Sequential(*layers, nn.Linear(hidden, size))

    scale: Tensor
    unit: Tensor

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        self.evaluations += len(states)
        shown = torch.cat([features(states, self.angles, self.scale, 4), actions / self.reach], 1)
        return states + self.unit * self.network(shown)

    def fit(self, pairs: Tensor, actions: Tensor, steps: int = 3000, seed: int = 0) -> ForwardModel:
        generator = torch.Generator().manual_seed(seed)
        self.scale.copy_(pairs[:, 0].std(0))
        self.unit.copy_((pairs[:, 1] - pairs[:, 0]).std(0))
        optimizer = torch.optim.Adam(self.parameters(), 4e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(pairs), (512,), generator=generator)
            loss = ((self(pairs[rows, 0], actions[rows]) - pairs[rows, 1]) / self.unit).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return self.eval()

    def roll(self, start: Tensor, actions: Tensor) -> Tensor:
        """Returns the states, with shape $(B, T, d)$, that actions of shape $(B, T - 1, a)$ lead to."""
        states = [start.expand(len(actions), -1)]
        for time in range(actions.shape[1]):
            states.append(self(states[-1], actions[:, time]))
        return torch.stack(states, 1)


def plan_cost(world: World, task: Task, states: Tensor) -> Tensor:
    """Returns what a planner with a forward model minimises: the distance at the end and on the way, and the depth in an obstacle."""
    places = world.position(states)
    distance = (places - task.goal).norm(dim=-1)
    cost = 10 * distance[:, -1] + distance.mean(1) + 0.5 * states[..., :2].diff(dim=1).square().sum((1, 2))
    if task.obstacle is not None:
        depth = (MARGIN - clearance_of(world, task.obstacle, states.flatten(0, 1))).clamp_min(0).view(states.shape[:2])
        cost = cost + 100 * depth.sum(1)
    return cost


@torch.no_grad()
def cross_entropy(world: World, model: ForwardModel, task: Task, seed: int, draws: int = 256, rounds: int = 10) -> Tensor:
    """Returns the states of the best actions that the cross-entropy method finds (Rubinstein, 1999), smoothed over time."""
    generator, times = torch.Generator().manual_seed(seed), world.horizon - 1
    mean, spread = torch.zeros(times, len(world.reach)), 0.7 * world.reach.expand(times, -1)
    kernel = torch.tensor([0.25, 0.5, 0.25])
    best, lowest = torch.empty(0), torch.inf
    for _ in range(rounds):
        noise = torch.randn(draws, times + 2, len(world.reach), generator=generator)
        noise = 1.6 * (noise.unfold(1, 3, 1) * kernel).sum(-1)
        actions = (mean + spread * noise).clamp(-world.reach, world.reach)
        states = model.roll(task.start, actions)
        cost = plan_cost(world, task, states)
        order = cost.argsort()
        if float(cost[order[0]]) < lowest:
            best, lowest = states[order[0]], float(cost[order[0]])
        elite = actions[order[: draws // 10]]
        mean, spread = elite.mean(0), elite.std(0) + 0.02 * world.reach
    return best


MARGIN = 0.02
"""The clearance of the reference, the same as that of the random motion."""

_CELLS = {"maze": (0.04, 0.04), "arm": (0.08, 0.08), "car": (0.06, 0.06, math.pi / 8, 0.03)}
_NEAR = 0.8  # of the tolerance of a goal
_REST = 0.01  # the speed of a car that stays where it is


def reference_plan(world: World, task: Task) -> tuple[Tensor | None, int]:
    """Returns the trajectory that arrives first, with shape $(T, d)$, and the number of moves tried; None if nothing arrives.

    Breadth-first in time: from all states that are reached, a fixed set of actions is tried by the true dynamics without slip, and one
    state is kept for each cell that no earlier one was in. So each trajectory that it finds is a real one, with a clearance of `MARGIN`.
    A car has to stop at the goal.
    """
    actions, table = _actions(world), _Table(world)
    states, before, tried = [task.start[None]], [], 0
    table.new(states[0])
    for time in range(world.horizon):
        arrived = torch.where(_arrived(world, task, states[-1]))[0]
        if len(arrived) > 0:
            return _traced(world, states, before, int(arrived[0])), tried
        if time == world.horizon - 1 or len(states[-1]) == 0:
            break
        begins = states[-1].repeat_interleave(len(actions), 0)
        ends = world.moved(begins, actions.repeat(len(states[-1]), 1))
        tried += len(ends)
        rows = torch.where(~table.taken(ends))[0]
        rows = rows[_free(world, task, begins[rows], ends[rows])]
        rows = rows[table.new(ends[rows])]
        states.append(ends[rows])
        before.append(rows // len(actions))
    return None, tried


class Solvable:
    """The tasks that `reference_plan` solves, in the order in which they are drawn."""

    def __init__(self, world: World, seed: int, later: bool) -> None:
        drawn = draw_tasks(world, seed, later=later)
        self.solved, self.kept = (task for task in drawn if reference_plan(world, task)[0] is not None), []

    def first(self, count: int) -> list[Task]:
        """Returns the first tasks that are solved."""
        self.kept += itertools.islice(self.solved, max(0, count - len(self.kept)))
        return self.kept[:count]


class _Table:
    """The cells of states that were reached; directions a full turn apart share one."""

    def __init__(self, world: World) -> None:
        sizes = _CELLS[world.name]
        low, high = world.low.clone(), world.high.clone()
        if world.name == "car":
            low[2], high[2] = 0, 2 * math.pi
        self.low, self.sizes = low, torch.tensor(sizes)
        self.counts = ((high - low) / self.sizes).round().long() + 1
        self.cyclic = torch.tensor([world.name == "car" and axis == 2 for axis in range(len(low))])
        self.strides = torch.cat([self.counts[1:].flip(0).cumprod(0).flip(0), torch.ones(1, dtype=torch.long)])
        self.reached = torch.zeros(int(self.counts.prod()), dtype=torch.bool)

    def index(self, states: Tensor) -> Tensor:
        states = torch.where(self.cyclic, torch.remainder(states, 2 * math.pi), states)
        at = ((states - self.low) / self.sizes).round().long()
        return (torch.minimum(at.clamp_min(0), self.counts - 1) * self.strides).sum(1)

    def taken(self, states: Tensor) -> Tensor:
        return self.reached[self.index(states)]

    def new(self, states: Tensor) -> Tensor:
        """Marks the cells of states, and returns the index of one state of each."""
        cells = self.index(states)
        found = torch.empty_like(self.reached, dtype=torch.long)
        found[cells] = torch.arange(len(cells))
        self.reached[cells] = True
        return found[cells[found[cells] == torch.arange(len(cells))]]


def _actions(world: World) -> Tensor:
    if world.name == "car":
        return torch.cartesian_prod(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 3)) * world.reach
    side = torch.linspace(-1, 1, 5)
    return torch.cartesian_prod(side, side) * world.reach


def _free(world: World, task: Task, begins: Tensor, ends: Tensor) -> Tensor:
    """Returns which moves keep the margin, from the known map and from the later obstacle."""
    free = ~world.hits(begins, ends, MARGIN)
    if task.obstacle is not None:
        shares = torch.linspace(0, 1, 5)[1:, None, None]
        between = begins + shares * (ends - begins)
        clear = clearance_of(world, task.obstacle, between.flatten(0, 1)).view(between.shape[:2])
        free &= (clear > MARGIN).all(0)
    return free


def _arrived(world: World, task: Task, states: Tensor) -> Tensor:
    near = (world.position(states) - task.goal).norm(dim=1) < _NEAR * world.tolerance
    return near & (states[:, 3] < _REST) if world.name == "car" else near


def _traced(world: World, states: list[Tensor], before: list[Tensor], at: int) -> Tensor:
    """Returns the trajectory to a state of the last layer, which waits at its end."""
    found = [states[-1][at]]
    for layer, parents in zip(reversed(states[:-1]), reversed(before), strict=True):
        at = int(parents[at])
        found.append(layer[at])
    found.reverse()
    return torch.stack(found + found[-1:] * (world.horizon - len(found)))
