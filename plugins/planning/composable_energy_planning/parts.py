r"""The parts of an expression over trajectories that a search needs: transitions, states at given times, and the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy import ClassifierEnergy, Energy
from composable_energy.algebra import Factor
from composable_energy.errors import ExpressionError
from composable_energy_planning.terms import Effort, Waypoint
from composable_energy_planning.transition import TransitionEnergy
from composable_energy_planning.zones import Entered

_GAP = 0.1
_SHOWN = 64  # states that show whether a full turn changes a term
_FORBIDDEN = 30.0  # nats above the median move of a trajectory, or of random motion
_ENTERED = 8.0  # nats of a trajectory along a zone, which is avoided with probability exp(-8)
_MISSED = 8.0  # nats above the least energy of a waypoint, four standard deviations


class Part(NamedTuple):
    """A term, the indices of the numbers of a state that it sees, and its weight."""

    term: Any
    axes: Tensor
    weight: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the weighted energies, with shape $(B,)$, of trajectories of whole states, with shape $(B, T, d)$."""
        return self.weight * self.term(x[:, :, self.axes])

    def log_clear(self, states: Tensor, ends: Tensor) -> Tensor:
        """Returns `Entered.log_clear` between whole states."""
        return self.term.log_clear(states[:, self.axes], ends[:, self.axes])


@dataclass(frozen=True)
class Parts:
    """An expression over trajectories, apart; a state joins the rows of all variables at one time."""

    motion: tuple[Part, ...]  # `TransitionEnergy` terms, which can draw moves; together they see all numbers of a state
    others: tuple[Part, ...]  # other energies of pairs, and costs of speed
    waypoints: dict[int, tuple[Part, ...]]  # terms over one state, by the index of that state
    zones: tuple[Part, ...]  # the zones that are avoided
    rest: tuple[Energy, ...]  # terms that are no sum over transitions, such as zones to pass; they weigh whole trajectories
    horizon: int  # the number of states
    size: int  # the numbers of a state
    event: torch.Size  # of a point of the expression
    order: Tensor  # where the numbers of a trajectory are in such a point, with shape $(T, d)$

    def states(self, x: Tensor) -> Tensor:
        """Returns trajectories, with shape $(B, T, d)$, from points of the expression."""
        return x.flatten(1)[:, self.order]

    def point(self, x: Tensor) -> Tensor:
        """Returns points of the expression from trajectories, with shape $(B, T, d)$."""
        return x.flatten(1)[:, self.order.flatten().argsort()].view(-1, *self.event)

    def of_states(self, states: Tensor, time: int) -> Tensor:
        """Returns the energies, with shape $(B,)$, of states at a time, with shape $(B, d)$; without zones, which moves count."""
        total = states.new_zeros(len(states))
        for waypoint, axes, _ in self.waypoints.get(time, ()):
            total = total + waypoint.of_states(states[:, axes])
        return total

    def of_moves(self, states: Tensor, ends: Tensor, firm: float = 1.0) -> Tensor:
        """Returns the energies, with shape $(B,)$, of moves between states of shape $(B, d)$; zones weigh `firm` times as much."""
        pairs = torch.stack([states, ends], 1)
        total = states.new_zeros(len(states))
        for part in (*self.motion, *self.others):
            total = total + part(pairs)
        for zone in self.zones:
            total = total - firm * zone.log_clear(states, ends)
        return total

    def propose(self, states: Tensor, generator: torch.Generator, *, backwards: bool = False, width: float = 1.0) -> Tensor:
        """Returns draws of the states after, or before, given ones."""
        ends = states.clone()
        for pair, axes, _ in self.motion:
            ends[:, axes] = pair.propose(states[:, axes], generator, backwards=backwards, width=width)
        return ends

    @property
    def cyclic(self) -> Tensor:
        """Which numbers of a state are angles that go all the way around, with shape $(d,)$; joints with limits do not."""
        found = torch.zeros(self.size, dtype=torch.bool)
        for pair, axes, _ in self.motion:
            span = pair.visited.amax(0) - pair.visited.amin(0)
            for angle in pair.angles:
                found[axes[angle]] |= span[angle] > 2 * math.pi - _GAP
        return found

    def after(self, time: int) -> Parts:
        """Returns the parts for the states from a time on; `rest` is left out if the time is not 0, as it is about all states."""
        if time == 0:
            return self
        waypoints = {at - time: waypoints for at, waypoints in self.waypoints.items() if at >= time}
        return replace(self, waypoints=waypoints, horizon=self.horizon - time, rest=())

    def winding(self, generator: torch.Generator) -> Tensor:
        """Returns the angles that may turn all the way around, as no term but that of the start tells, with shape $(d,)$."""
        states = self.visited(max(_SHOWN, self.horizon), generator)
        found = self.cyclic
        for axis in torch.where(found)[0].tolist():
            turned = states.clone()
            turned[:, axis] += 2 * math.pi
            found[axis] = bool(torch.isclose(self._seen(states), self._seen(turned), rtol=1e-3, atol=1e-2).all())
        return found

    def _seen(self, states: Tensor) -> Tensor:
        """Returns the energies of all terms but that of the first state, for states in succession of shape $(n, d)$."""
        found = [self.of_moves(states[:-1], states[1:]), *(self.of_states(states, time) for time in self.waypoints if time > 0)]
        return torch.cat([*found, *(term(self.point(states[None, : self.horizon])) for term in self.rest)])

    def broken(self, x: Tensor) -> Tensor:
        """Returns which trajectories $(B, T, d)$ contain an all but forbidden move, miss a waypoint or enter a zone, with shape $(B,)$."""
        states, ends = x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1)
        moves = self.of_moves(states, ends).unflatten(0, (len(x), -1))
        generator, alone = torch.Generator().manual_seed(0), replace(self, others=(), zones=())
        usual = self.visited(256, generator)  # where all moves are too long, the median is no measure
        most = alone.of_moves(usual, self.propose(usual, generator)).median() + _FORBIDDEN
        found = (moves.amax(1) > moves.median(1).values + _FORBIDDEN) | (alone.of_moves(states, ends).view_as(moves).amax(1) > most)
        for zone in self.zones:
            found = found | (-zone.log_clear(states, ends).unflatten(0, (len(x), -1)).sum(1) > _ENTERED)
        for time, waypoints in self.waypoints.items():
            found = found | (self.of_states(x[:, time], time) > sum(part.term.least for part in waypoints) + _MISSED)
        return found

    def visited(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns states that training visited, with shape $(n, d)$; those of several agents are independent."""
        states = torch.empty(count, self.size)
        for pair, axes, _ in self.motion:
            states = states.to(pair.visited)
            states[:, axes] = pair.visited[torch.randint(len(pair.visited), (count,), generator=generator)]
        return states


def split_states(states: Tensor, variables: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Returns the part of each variable, with shape $(*, d_i)$, of states with shape $(*, d)$."""
    return dict(zip(variables, states.split([shape[-1] for shape in variables.values()], -1), strict=True))


def parts_of(energy: Energy) -> Parts:
    """Takes an expression over trajectories apart: points of shape $(T, d)$, or named variables of shapes $(T, d_i)$."""
    motion, others, zones, rest = [], [], [], []
    waypoints: dict[int, tuple[Part, ...]] = {}
    shapes = [*energy.variables.values()] or [energy.event_shape or torch.Size()]
    fits = all(len(shape) == 2 and shape[0] == shapes[0][0] for shape in shapes)
    horizon, size = (shapes[0][0], sum(shape[1] for shape in shapes)) if fits else (0, 0)
    for placed, part in placed_terms(energy, size) if fits else ():
        term, axes, weight = part
        if isinstance(term, ce.over_time) and term.window == 2:
            (motion if isinstance(term.terms[0], TransitionEnergy) else others).append(Part(term.terms[0], axes, weight))
        elif isinstance(term, Waypoint) and weight == 1:
            waypoints[term.time % horizon] = (*waypoints.get(term.time % horizon, ()), part)
        elif isinstance(term, Effort) and term.order == 1:
            others.append(part)
        elif (avoided := _avoided(term)) is not None and weight == 1:
            zones.append(Part(avoided, axes))
        else:
            rest.append(placed if weight == 1 else weight * placed)
    if not waypoints or len({axis for part in motion for axis in part.axes.tolist()}) < max(size, 1):
        raise ExpressionError(
            f"{energy} is no conjunction that a search takes apart: it needs `over_time` of a TransitionEnergy that moves all numbers of a "
            "state, and a term such as `start(state)` or `goal(target)`. Sample other expressions by `chees` from `init`."
        )
    numbers = torch.arange(horizon * size).split([shape.numel() for shape in shapes])
    order = torch.cat([part.view(horizon, -1) for part in numbers], 1)
    return Parts(tuple(motion), tuple(others), waypoints, tuple(zones), tuple(rest), horizon, size, energy.event_shape or shapes[0], order)


def placed_terms(energy: Energy, size: int, axes: Mapping[str, Tensor] | None = None) -> Iterator[tuple[Energy, Part]]:
    """Yields the terms of a conjunction, also those inside of factors: without weight as energies of its points, and as parts of it."""
    whole = torch.arange(size)
    axes = axes or (split_states(whole, energy.variables) if energy.variables else {})
    for term, weight in energy.summands():
        weight = torch.as_tensor(weight).item()
        if not isinstance(term, Factor) or term.values:
            yield term, Part(term, whole, weight)
            continue
        for placed, part in placed_terms(term.terms[0], size, axes):
            seen = part.axes if term.terms[0].variables else torch.cat([axes[name] for name in term.names])
            yield term.around(placed), Part(part.term, seen, weight * part.weight)


def _avoided(term: Energy) -> Entered | None:
    """Returns the zone that a term avoids; None for any other term."""
    event = term.terms[0] if getattr(term, "mode", None) == "complement" else None
    if isinstance(event, ClassifierEnergy) and event.label == frozenset({1}) and isinstance(event.logits, Entered):
        return event.logits
    return None
