r"""A planner: the trajectory of lowest energy, and its next steps with a shrinking horizon."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_integer
from composable_energy.sampling import twin
from composable_energy_planning.parts import parts_of, placed_terms, split_states
from composable_energy_planning.sampler import descend
from composable_energy_planning.search import Search
from composable_energy_planning.terms import Waypoint, start, vector_of, via


class PlanWarning(UserWarning):
    """Every plan that was found has a move that the energy all but forbids, enters an avoided zone or misses a waypoint."""


class Planner:
    r"""Plans by an expression over trajectories: `plan` searches, `step` continues from where the world is.

    A plan is the trajectory of lowest energy of a few that a `Search` draws and Gauss-Newton steps improve. If all of them have a move that
    the energy all but forbids, enter an avoided zone or miss a waypoint, a search with twice as many states follows.

    `step` keeps the clock of the plan: states that the world has passed stay the first states of the trajectory, so that the goal comes
    nearer, a zone to pass that was passed counts, and times of `via` are those of the whole plan. It improves the rest of the plan from the
    state of the world: a warm start, which costs a tenth of a search. If the plan has become bad, as after an obstacle was added, it
    searches anew.

    A state is a tensor of shape $(d,)$. Where the task has named variables, it is a mapping of them, as are the plans, or a tensor that
    joins them.

    Args:
        task: The expression without its start, such as `dynamics & goal(g) & ~obstacle`.
        tries: The number of trajectories that are improved.
        steps: Their descent steps.
        retries: The number of further searches, each with twice as many states.
        width: The width of the start.

    Raises:
        ExpressionError: The expression is no conjunction that a search takes apart.

    Attributes:
        last: The last plan with the states that were passed, joined, with shape $(T, d)$; None before the first.
        energy: Its energy.
    """

    def __init__(
        self,
        task: Energy,
        *,
        tries: int = 4,
        steps: int = 40,
        search: Search | None = None,
        retries: int = 2,
        width: float = 0.005,
        seed: int = 0,
    ) -> None:
        self.task, self.search, self.width = task, search or Search(), width
        self.tries, self.steps = check_integer("tries", tries), check_integer("steps", steps)
        self.retries = check_integer("retries", retries, 0)
        self.seed, self.calls = check_integer("seed", seed, 0), 0
        self.last: Tensor | None = None
        self.energy = float("inf")
        self._passed: list[Tensor] = []

    def candidates(self, state: Any) -> tuple[Any, Tensor]:
        """Returns improved trajectories from a state, with shape $(n, T, d)$, and their energies, with shape $(n,)$, best first."""
        found, energies, _ = self._candidates([self._joined(state)])
        return self._shown(found), energies

    def plan(self, state: Any) -> Any:
        """Searches for a plan from a state, with the whole horizon ahead; returns it with shape $(T, d)$.

        Warns:
            PlanWarning: Every plan has a move that the energy all but forbids, or misses a waypoint.
        """
        self._passed = [self._joined(state)]
        return self._plan()

    @torch.no_grad()
    def step(self, state: Any, *, patience: float = 20.0, steps: int = 8) -> Any:
        """Returns the rest of the plan from the state of the world after one more move, with shape $(T - t, d)$ after the $t$-th.

        Args:
            patience: Searches anew if the energy of the improved plan is higher than the last one by more.

        Raises:
            OptionError: The plan is over.

        Warns:
            PlanWarning: The plan had become bad, and every new one has a move that the energy all but forbids, or misses a waypoint.
        """
        if self.last is None:
            return self.plan(state)
        if (time := len(self._passed)) == len(self.last):
            raise OptionError(f"The plan of {time} states is over: call `plan` for another one from where the world is.")
        self._passed.append(self._joined(state))
        energy = self._from(self._passed)
        parts = parts_of(energy)
        shifted = torch.cat([torch.stack(self._passed), self.last[time + 1 :]])[None]
        found = descend(energy, parts, parts.point(shifted), check_integer("steps", steps))
        now, found = float(energy(found)), parts.states(found)
        left = time < len(self.last) - 1  # at the end, there is nothing to plan
        if left and (not now < self.energy + patience or bool(parts.after(time).broken(found[:, time:]))):
            return self._plan()
        self.last, self.energy = found[0], now
        return self._shown(self.last[time:])

    def change(self, task: Energy) -> None:
        """Takes another expression, such as one with a new obstacle; the last plan is the start of the next."""
        if (task.event_shape, task.variables) != (self.task.event_shape, self.task.variables):
            raise ShapeError(f"The plan has shape {self.task.event_shape}, and trajectories of {task} have {task.event_shape}.")
        self.task = task

    def _plan(self) -> Tensor:
        found, energies, sound = self._candidates(self._passed)
        if not sound:
            warnings.warn(
                f"None of {self.retries + 1} searches found a plan that avoids impossible moves and zones and fulfils all waypoints; the "
                f"best has energy {float(energies[0]):.3g}. Give a longer horizon or a larger `search`, or check that it can be solved.",
                PlanWarning,
                stacklevel=3,
            )
        self.last, self.energy = found[0], float(energies[0])
        return self._shown(self.last[len(self._passed) - 1 :])

    @torch.no_grad()
    def _candidates(self, passed: list[Tensor]) -> tuple[Tensor, Tensor, bool]:
        """Returns improved trajectories, their energies, best first, and whether the best one is sound."""
        energy, time = self._from(passed), len(passed) - 1
        parts = parts_of(energy)
        rest = parts.after(time)
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        for attempt in range(self.retries + 1):
            generator = torch.Generator().manual_seed(self.seed + self.calls)
            self.calls += 1
            search = replace(self.search, tree=self.search.tree * 2**attempt, visited=self.search.visited * 2**attempt)
            found = descend(energy, parts, parts.point(search.paths(parts, self.tries, generator, torch.stack(passed))), self.steps)
            states = parts.states(found)
            kept.append((states, energy(found), rest.broken(states[:, time:])))
            if not kept[-1][2].all():
                break
        found, energies, broken = (torch.cat(each) for each in zip(*kept, strict=True))
        order = torch.where(broken, energies + float(energies.max() - energies.min()) + 1, energies).argsort()[: self.tries]
        return found[order], energies[order], not bool(broken[order[0]])

    def _from(self, passed: list[Tensor]) -> Energy:
        if any(isinstance(part.term, Waypoint) and part.term.time == 0 for _, part in placed_terms(self.task, len(passed[0]))):
            raise OptionError(f"{self.task} has a start already: leave it out, the planner adds that of the world.")
        energy, names = self.task, self.task.variables
        for time, state in enumerate(passed):
            term = via(state, time, self.width, name="passed") if time else start(state, self.width)
            energy = energy & (term.over(names) if names else term)
        return twin(energy)

    def _joined(self, state: Any) -> Tensor:
        names = [*dict.fromkeys([*self.task.variables, *state])] if isinstance(state, Mapping) else []
        given: list[Any] = [state.get(name, ()) for name in names] or [state]
        parts = [vector_of("A state", part) for part in given]
        sizes, got = [shape[-1] for shape in self.task.variables.values() or [self.task.event_shape or (0,)]], [len(part) for part in parts]
        if names not in ([], [*self.task.variables]) or got not in (sizes, [sum(sizes)]):
            raise ShapeError(f"A state of {self.task} has {sizes} numbers, got {got}{' of ' + ', '.join(names) if names else ''}.")
        return torch.cat(parts).to(next(self.task.parameters(), torch.empty(0)))

    def _shown(self, states: Tensor) -> Any:
        return split_states(states, self.task.variables) if self.task.variables else states
