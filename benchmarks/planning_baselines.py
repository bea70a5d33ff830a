"""Other planners for the same tasks: shortest paths on a grid, and a learned forward model with the cross-entropy method."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.planning_tasks import Grid, Task, clearance_of, resample
from composable_energy_planning import World
from composable_energy_planning.transition import features

_MARGIN = 0.02


def grid_plan(world: World, task: Task, grid: Grid | None = None) -> tuple[Tensor | None, int]:
    """Returns the shortest path on a grid that knows the obstacles, as states, and the number of collision checks."""
    grid = grid or Grid(world, task.obstacle, _MARGIN)
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
        depth = (_MARGIN - clearance_of(world, task.obstacle, states.flatten(0, 1))).clamp_min(0).view(states.shape[:2])
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
