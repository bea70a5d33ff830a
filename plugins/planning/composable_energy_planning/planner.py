r"""A planner: the trajectory of lowest energy, and its next steps with a receding horizon."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_integer
from composable_energy.sampling import twin
from composable_energy_planning.parts import parts_of
from composable_energy_planning.refine import descend
from composable_energy_planning.search import Search
from composable_energy_planning.terms import Waypoint, start

__all__ = ["Planner"]


class Planner:
    r"""Plans by an expression over trajectories: `plan` searches, `step` continues from where the world is.

    A plan is the trajectory of lowest energy of a few that a `Search` draws and Gauss-Newton steps improve. `step` shifts the last plan by
    one state, and improves it from the state of the world: a warm start, which costs a tenth of a search. If its energy is far above
    that of the last plan, as after an obstacle was added, it searches anew.

    Args:
        task: The expression without its start, such as `dynamics & goal(g) & ~obstacle`.
        tries: The number of trajectories that are improved.
        steps: Their descent steps.
        search: The search.
        width: The width of the start.
        seed: The seed; the k-th call draws with seed + k.

    Raises:
        ExpressionError: The expression is no conjunction that a search takes apart.

    Attributes:
        last: The last plan, with shape $(T, d)$; None before the first.
        energy: Its energy.
    """

    def __init__(
        self, task: Energy, *, tries: int = 4, steps: int = 40, search: Search | None = None, width: float = 0.005, seed: int = 0
    ) -> None:
        self.task, self.search, self.width = task, search or Search(), width
        self.tries, self.steps = check_integer("tries", tries), check_integer("steps", steps)
        self.seed, self.calls = check_integer("seed", seed, 0), 0
        self.last: Tensor | None = None
        self.energy = float("inf")

    @torch.no_grad()
    def candidates(self, state: Tensor | Sequence[float]) -> tuple[Tensor, Tensor]:
        """Returns improved trajectories from a state, with shape $(n, T, d)$, and their energies, with shape $(n,)$, best first."""
        energy = self._from(state)
        parts = parts_of(energy)
        generator = torch.Generator().manual_seed(self.seed + self.calls)
        self.calls += 1
        found = descend(energy, parts, self.search.paths(parts, self.tries, generator), self.steps)
        energies = energy(found)
        order = energies.argsort()
        return found[order], energies[order]

    def plan(self, state: Tensor | Sequence[float]) -> Tensor:
        """Searches for a plan from a state; returns it with shape $(T, d)$."""
        found, energies = self.candidates(state)
        self.last, self.energy = found[0], float(energies[0])
        return self.last

    @torch.no_grad()
    def step(self, state: Tensor | Sequence[float], *, patience: float = 20.0, steps: int = 8) -> Tensor:
        """Returns the plan from the state of the world after the first move of the last plan, with shape $(T, d)$.

        The goal stays at the end of the horizon, which moves on with the world.

        Args:
            state: The state of the world.
            patience: Searches anew if the energy of the improved plan is higher than the last one by more.
            steps: The descent steps.
        """
        if self.last is None:
            return self.plan(state)
        energy = self._from(state)
        shifted = torch.cat([torch.as_tensor(state).to(self.last)[None], self.last[2:], self.last[-1:]])[None]
        found = descend(energy, parts_of(energy), shifted, check_integer("steps", steps))
        now = float(energy(found))
        if not now < self.energy + patience:
            return self.plan(state)
        self.last, self.energy = found[0], now
        return self.last

    def change(self, task: Energy) -> None:
        """Takes another expression, such as one with a new obstacle; the last plan is the start of the next.

        Raises:
            ShapeError: Its trajectories have another shape.
        """
        if task.event_shape != self.task.event_shape:
            raise ShapeError(f"The plan has shape {self.task.event_shape}, and trajectories of {task} have {task.event_shape}.")
        self.task = task

    def _from(self, state: Tensor | Sequence[float]) -> Energy:
        if any(isinstance(term, Waypoint) and term.time == 0 for term in self.task.terms):
            raise OptionError(f"{self.task} has a start already: leave it out, the planner adds that of the world.")
        return twin(self.task & start(state, self.width))
