r"""Worlds to plan in, as plain functions of tensors: a point in a maze, an arm with two joints, a car with inertia.

A state is a row of a tensor of shape $(B, d)$. A move that would hit something is blocked: the world stays where it is.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from composable_energy_planning.zones import Box, Disc

_ROUNDING = 1e-6
_LOOKAHEAD = 0.05  # beside a move, in which the car steers back to its plan
_SLIP = 0.005  # of the car, a standard deviation
_PARTS = 8  # of a move, at whose ends it is checked for hits


class World(ABC):
    r"""Abstract world with states of $d$ numbers and actions in a box.

    Attributes:
        name: The name in `WORLDS`.
        low, high: The range of states, with shape $(d,)$.
        reach: The largest action, with shape $(a,)$.
        horizon: The number of states of a trajectory that suits the world.
        tolerance: The distance from a goal that counts as arrival.
    """

    name: ClassVar[str]
    low: Tensor
    high: Tensor
    reach: Tensor
    horizon: int
    tolerance: float

    @abstractmethod
    def clearance(self, states: Tensor) -> Tensor:
        """Returns the distance from the nearest obstacle or limit, negative beyond it, with shape $(B,)$, for states of shape $(B, d)$."""

    def moved(self, states: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns the states after actions, with shape $(B, d)$, as if nothing was in the way; by default actions are displacements."""
        return states + actions

    def towards(self, states: Tensor, targets: Tensor) -> Tensor:
        """Returns the actions that lead to target states, within `reach`."""
        return targets - states

    def position(self, states: Tensor) -> Tensor:
        """Returns where a state is, with shape $(B, 2)$: goals and obstacles are in the plane."""
        return states[..., :2]

    def outline(self, states: Tensor) -> Tensor:
        """Returns the points that must not touch an obstacle, with shape $(B, n, 2)$."""
        return self.position(states).unsqueeze(-2)

    def within(self, states: Tensor) -> Tensor:
        """Returns the distance from the limits of the first two numbers of a state, negative beyond them, with shape $(B,)$."""
        return torch.minimum(states - self.low, self.high - states)[..., :2].amin(-1)

    def hits(self, states: Tensor, ends: Tensor, margin: float = 0.0) -> Tensor:
        """Returns which moves along a straight line between states come nearer to something than a margin, with shape $(B,)$."""
        between = states + torch.linspace(0, 1, _PARTS + 1, dtype=states.dtype)[1:, None, None] * (ends - states)
        inside = ((between >= self.low - _ROUNDING) & (between <= self.high + _ROUNDING)).all(-1)
        return ~(inside & (self.clearance(between.flatten(0, 1)).unflatten(0, between.shape[:2]) > margin)).all(0)

    def step(self, states: Tensor, actions: Tensor, generator: torch.Generator | None = None, margin: float = 0.0) -> tuple[Tensor, Tensor]:
        """Returns the next states, with shape $(B, d)$, and which moves were blocked, with shape $(B,)$."""
        actions = torch.minimum(torch.maximum(actions, -self.reach), self.reach)
        ends = self.moved(states, actions, generator)
        blocked = self.hits(states, ends, margin)
        return torch.where(blocked[:, None], self.stopped(states), ends), blocked

    def stopped(self, states: Tensor) -> Tensor:
        """Returns the states after a blocked move."""
        return states

    def random_states(self, count: int, generator: torch.Generator, margin: float = 0.0) -> Tensor:
        """Returns states that touch nothing, evenly spread, with shape $(n, d)$."""
        found, low, high = self.low.new_empty(0, len(self.low)), self.low.clamp_min(-math.pi), self.high.clamp_max(math.pi)  # of angles
        while len(found) < count:
            states = low + (high - low) * torch.rand(4 * count, len(self.low), generator=generator)
            found = torch.cat([found, states[self.clearance(states) > margin]])
        return found[:count]

    def random_actions(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """Returns actions evenly spread within `reach`, with shape $(B, a)$."""
        return self.reach * (2 * torch.rand(len(states), len(self.reach), generator=generator) - 1)

    def random_motion(self, count: int, generator: torch.Generator, margin: float = 0.02) -> tuple[Tensor, Tensor, Tensor]:
        """Returns $n$ random moves: pairs of states with shape $(n, 2, d)$, actions, and which moves were blocked.

        Args:
            margin: The clearance that the motion keeps, as a bumper does; what is learned from it keeps the same.
        """
        states = self.random_states(count, generator, margin)
        actions = self.random_actions(states, generator)
        ends, blocked = self.step(states, actions, generator, margin)
        return torch.stack([states, ends], 1), actions, blocked

    def follow(self, plan: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, bool]:
        """Returns the states of the world as it follows a plan of shape $(T, d)$, and whether a move was blocked."""
        states, hit = [plan[:1]], False
        for time in range(1, len(plan)):
            state, blocked = self.step(states[-1], self.towards(states[-1], plan[time : time + 1]), generator)
            states.append(state)
            hit |= bool(blocked)
        return torch.cat(states), hit


class Maze(World):
    """A point among walls, boxes `(x, y, half width, half height)`; an action is a displacement."""

    name = "maze"
    _walls = ((-0.45, -0.15, 0.08, 0.55), (0.05, 0.7, 0.08, 0.3), (0.05, -0.15, 0.08, 0.25), (0.55, -0.1, 0.08, 0.5))

    def __init__(self, walls: Sequence[tuple[float, float, float, float]] | None = None) -> None:
        self.walls = tuple(Box(wall[:2], wall[2:]) for wall in (self._walls if walls is None else walls))
        self.low, self.high, self.reach = -torch.ones(2), torch.ones(2), torch.full((2,), 0.1)
        self.horizon, self.tolerance = 48, 0.05

    def clearance(self, states: Tensor) -> Tensor:
        return torch.stack([*(wall(states) for wall in self.walls), self.within(states)]).amin(0)


class Arm(World):
    """An arm with two joints, whose links must not touch discs `(x, y, radius)`; states are the angles, actions change them.

    The limits of the joints count in the clearance, in radians.
    """

    name = "arm"
    _discs = ((0.55, 0.45, 0.15), (-0.5, 0.5, 0.12), (-0.1, -0.6, 0.18))

    def __init__(self, discs: Sequence[tuple[float, float, float]] | None = None) -> None:
        self.lengths = 0.5, 0.4
        self.discs = tuple(Disc(disc[:2], disc[2]) for disc in (self._discs if discs is None else discs))
        self.high = torch.tensor([3.0, 2.6])
        self.low, self.reach = -self.high, torch.full((2,), 0.2)
        self.horizon, self.tolerance = 40, 0.05

    def outline(self, states: Tensor) -> Tensor:
        first = states[..., :1]
        both = first + states[..., 1:]
        elbow = self.lengths[0] * torch.cat([first.cos(), first.sin()], -1)
        hand = elbow + self.lengths[1] * torch.cat([both.cos(), both.sin()], -1)
        share = torch.linspace(0, 1, 7, dtype=states.dtype)[1:, None]
        return torch.cat([share * elbow.unsqueeze(-2), elbow.unsqueeze(-2) + share * (hand - elbow).unsqueeze(-2)], -2)

    def position(self, states: Tensor) -> Tensor:
        return self.outline(states)[..., -1, :]

    def clearance(self, states: Tensor) -> Tensor:
        points = self.outline(states)
        return torch.stack([*(disc(points).amin(-1) for disc in self.discs), self.within(states)]).amin(0)


class Car(World):
    r"""A car $(x, y, \theta, v)$ with inertia: an action turns it and changes its speed, and it slips a little sideways and along.

    It moves by its old speed and direction, $(x, y)' = (x, y) + v (\cos\theta, \sin\theta) + \text{slip}$: an action shows a step later.

    Args:
        blocks: The obstacles as boxes `(x, y, half width, half height)`; None for the standard ones.
    """

    name = "car"
    _blocks = ((-0.4, 0.35, 0.12, 0.3), (0.35, -0.3, 0.3, 0.12), (0.4, 0.5, 0.15, 0.15), (-0.4, -0.5, 0.15, 0.15))

    def __init__(self, blocks: Sequence[tuple[float, float, float, float]] | None = None) -> None:
        self.blocks = tuple(Box(block[:2], block[2:]) for block in (self._blocks if blocks is None else blocks))
        self.low, self.high = torch.tensor([-1.0, -1.0, -math.inf, 0.0]), torch.tensor([1.0, 1.0, math.inf, 0.12])
        self.reach = torch.tensor([0.4, 0.03])
        self.horizon, self.tolerance = 40, 0.1

    def clearance(self, states: Tensor) -> Tensor:
        return torch.stack([*(block(states[..., :2]) for block in self.blocks), self.within(states)]).amin(0)

    def moved(self, states: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        theta, speed = states[:, 2:3], states[:, 3:]
        slip = 0.0 if generator is None else _SLIP * torch.randn(len(states), 2, generator=generator)
        place = states[:, :2] + speed * torch.cat([theta.cos(), theta.sin()], 1) + slip
        return torch.cat([place, theta + actions[:, :1], (speed + actions[:, 1:]).clamp(self.low[3], self.high[3])], 1)

    def towards(self, states: Tensor, targets: Tensor) -> Tensor:
        theta, speed = states[:, 2], states[:, 3]
        arrived = states[:, :2] + speed[:, None] * torch.stack([theta.cos(), theta.sin()], 1)
        ahead = torch.stack([targets[:, 2].cos(), targets[:, 2].sin()], 1)
        error = targets[:, :2] - arrived
        aside = error[:, 1] * ahead[:, 0] - error[:, 0] * ahead[:, 1]
        direction = targets[:, 2] + torch.atan2(aside, targets[:, 3].abs() + _LOOKAHEAD)
        turn = torch.remainder(direction - theta + math.pi, 2 * math.pi) - math.pi
        faster = (targets[:, 3] + 0.5 * (error * ahead).sum(1)).clamp(self.low[3], self.high[3]) - speed
        return torch.stack([turn, faster], 1).clamp(-self.reach, self.reach)

    def random_actions(self, states: Tensor, generator: torch.Generator) -> Tensor:
        turn, _ = super().random_actions(states, generator).split(1, 1)
        least = (self.low[3] - states[:, 3:]).clamp_min(-self.reach[1])  # the speed stays within its range
        most = (self.high[3] - states[:, 3:]).clamp_max(self.reach[1])
        return torch.cat([turn, least + (most - least) * torch.rand(len(states), 1, generator=generator)], 1)

    def stopped(self, states: Tensor) -> Tensor:
        return torch.cat([states[:, :3], torch.zeros_like(states[:, 3:])], 1)


WORLDS: dict[str, type[World]] = {world.name: world for world in (Maze, Arm, Car)}
"""The worlds by name."""
