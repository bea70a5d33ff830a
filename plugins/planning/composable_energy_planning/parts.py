r"""The parts of an expression over trajectories that a search needs: transitions, states at given times, and the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from composable_energy import ClassifierEnergy, Energy
from composable_energy.errors import ExpressionError
from composable_energy_planning.terms import Effort, OverTime, Waypoint
from composable_energy_planning.transition import TransitionEnergy
from composable_energy_planning.zones import Entered

_GAP = 0.1
_SHOWN = 64  # states that show whether a full turn changes a term
_FORBIDDEN = 30.0  # nats above the median move of a trajectory
_ENTERED = 8.0  # nats of a trajectory along a zone, which is avoided with probability exp(-8)
_MISSED = 8.0  # nats above the least energy of a waypoint, four standard deviations


class Motion(NamedTuple):
    """A term over transitions: the energy of a pair of states, the numbers of a state that it sees, and its weight."""

    pair: Any  # a `TransitionEnergy`, where it can draw moves
    axes: list[int]
    weight: float


@dataclass(frozen=True)
class Parts:
    """An expression over trajectories, apart."""

    motion: tuple[Motion, ...]  # the terms over transitions that can draw moves; together they see all numbers of a state
    others: tuple[Motion, ...]  # other lifted energies of pairs
    waypoints: dict[int, tuple[Waypoint, ...]]  # terms over one state, by the index of that state
    zones: tuple[Entered, ...]  # the zones that are avoided
    efforts: tuple[tuple[Effort, float], ...]  # costs of speed, with their weights
    rest: tuple[Energy, ...]  # terms that are no sum over transitions, such as zones to pass; they weigh whole trajectories
    horizon: int  # the number of states
    size: int  # the numbers of a state

    def of_states(self, states: Tensor, time: int) -> Tensor:
        """Returns the energies, with shape $(B,)$, of states at a time, with shape $(B, d)$; without zones, which moves count."""
        total = states.new_zeros(len(states))
        for waypoint in self.waypoints.get(time, ()):
            total = total + waypoint.of_states(states)
        return total

    def of_moves(self, states: Tensor, ends: Tensor, firm: float = 1.0) -> Tensor:
        """Returns the energies, with shape $(B,)$, of moves between states of shape $(B, d)$; zones weigh `firm` times as much."""
        pairs = torch.stack([states, ends], 1)
        total = states.new_zeros(len(states))
        for pair, axes, weight in (*self.motion, *self.others):
            total = total + weight * pair(pairs[:, :, axes])
        for effort, weight in self.efforts:
            total = total + weight * effort(pairs)
        for entered in self.zones:
            total = total - firm * entered.log_clear(states, ends)
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
            found[[axes[angle] for angle in pair.angles if span[angle] > 2 * math.pi - _GAP]] = True
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
        return torch.cat([*found, *(term(states[None, : self.horizon]) for term in self.rest)])

    def broken(self, x: Tensor) -> Tensor:
        """Returns which trajectories $(B, T, d)$ contain an all but forbidden move, miss a waypoint or enter a zone, with shape $(B,)$."""
        states, ends = x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1)
        moves = self.of_moves(states, ends).unflatten(0, (len(x), -1))
        found = moves.amax(1) > moves.median(1).values + _FORBIDDEN
        for entered in self.zones:
            found = found | (-entered.log_clear(states, ends).unflatten(0, (len(x), -1)).sum(1) > _ENTERED)
        for time, waypoints in self.waypoints.items():
            least = sum(waypoint.least for waypoint in waypoints)
            found = found | (self.of_states(x[:, time], time) > least + _MISSED)
        return found

    def visited(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns states that training visited, with shape $(n, d)$; those of several agents are independent."""
        states = torch.empty(count, self.size)
        for pair, axes, _ in self.motion:
            states = states.to(pair.visited)
            states[:, axes] = pair.visited[torch.randint(len(pair.visited), (count,), generator=generator)]
        return states


def parts_of(energy: Energy) -> Parts:
    """Takes an expression over trajectories apart."""
    motion, others, zones, efforts, rest = [], [], [], [], []
    waypoints: dict[int, tuple[Waypoint, ...]] = {}
    terms = [(term, torch.as_tensor(weight).item()) for term, weight in energy.summands()]
    lifted = [term for term, _ in terms if isinstance(term, OverTime)]
    horizon, size = lifted[0].event_shape if lifted else (0, 0)  # pyright: ignore[reportGeneralTypeIssues]
    for term, weight in terms:
        if isinstance(term, OverTime) and term.window == 2:
            found = motion if isinstance(term.terms[0], TransitionEnergy) else others
            found.append(Motion(term.terms[0], list(range(size) if term.axes is None else term.axes), weight))
        elif isinstance(term, Waypoint) and weight == 1:
            time = term.time % horizon if horizon else term.time
            waypoints[time] = (*waypoints.get(time, ()), term)
        elif isinstance(term, Effort) and term.order == 1:
            efforts.append((term, weight))
        elif (avoided := _avoided(term)) is not None and weight == 1:
            zones.append(avoided)
        else:
            rest.append(term if weight == 1 else weight * term)
    moved = {axis for term in motion for axis in term.axes}
    if not motion or not waypoints or len(moved) < size:
        raise ExpressionError(
            f"{energy} is no conjunction that a search takes apart: it needs `over_time` of a TransitionEnergy that moves all numbers of a "
            "state, and a term such as `start(state)` or `goal(target)`. Sample other expressions by `chees` from `init`."
        )
    return Parts(tuple(motion), tuple(others), waypoints, tuple(zones), tuple(efforts), tuple(rest), horizon, size)


def _avoided(term: Energy) -> Entered | None:
    """Returns the zone that a term avoids; None for any other term."""
    event = term.terms[0] if getattr(term, "mode", None) == "complement" else None
    if isinstance(event, ClassifierEnergy) and event.label == frozenset({1}) and isinstance(event.logits, Entered):
        return event.logits
    return None
