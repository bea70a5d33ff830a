"""Points where the function of an energy raises: each counts as a point of infinite energy, so that samplers reject it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composable_energy.energies.conditions import CHAINS
from composable_energy.energies.energy import Energy
from composable_energy.errors import ComposableEnergyError, ExpressionError, MemoryShortage, ShapeError, add_note
from composable_energy.options import ran_out
from composable_energy.sampling.wrappers import EnergyWrapper

_PROGRAM = (ComposableEnergyError, TypeError, NameError, AttributeError, ImportError, NotImplementedError)
_MOST_SEARCHES = 20_000  # exceptions of parts of batches in a call, which take tens of seconds
_ROUNDING = (
    "A decomposition that fails by rounding, such as cholesky, works in dtype=torch.float64, and with jitter, a small number on the "
    "diagonal."
)


@dataclass
class Faults:
    """The points at which an energy raised an exception or was not a number, which samplers reject as points of density 0.

    Args:
        points: At how many points, those of pilot chains included.
        first: What the energy did at the first of them.
        searches: How many evaluations of parts of batches raised, to find them.
        undefined: How many proposals were not a number, apart from these points.
        varies: How the energy differed between two evaluations at the same points; None if it did not.
    """

    points: int = 0
    first: str = ""
    searches: int = 0
    undefined: Tensor | int = 0
    varies: str | None = None


class GuardedEnergy(EnergyWrapper):
    r"""An energy that is $\infty$, with gradient 0, at points where the wrapped one raises an exception.

    After an exception the batch is halved until the points that raise are found. Exceptions about the program are raised at once: errors of
    this library, `TypeError` and its like, what is raised at a batch and at no part of it, and what is raised at all points, unless the
    energy still works where it worked first. So is an error when the search takes too long.

    Attributes:
        energy: The energy, compiled or not.
        plain: The same energy, not compiled, for parts of a batch.
        faults: Counts the points.
    """

    plain: Energy
    faults: Faults
    _known: tuple[Tensor, int, Mapping[str, Any]] | None = None

    def __init__(self, energy: Energy) -> None:
        super().__init__(energy)
        vars(self).update(plain=energy, faults=Faults())  # `plain` is no second module

    def evaluate(self, method: str, x: Tensor, conditions: Mapping[str, Any]) -> Any:
        try:
            found = super().evaluate(method, x, conditions)
        except Exception as error:
            if is_final(error) or not len(x):
                raise
            return self._recover(method, x, conditions, error)
        if self._known is None and len(x):
            self._known = x[:1].clone(), len(x), conditions
        return found

    def _recover(self, method: str, x: Tensor, conditions: Mapping[str, Any], error: Exception) -> Any:
        """Returns what a batch gives that raised, if the fault is of some of its points alone; else raises the error, or what it means."""
        faults, before, apart, found = self.faults, self.faults.points, "at none of its parts alone", None
        try:
            found = self._by_halves(method, x, conditions, error)
        except ShapeError as alone:
            apart = f"alone {str(alone).partition('; ')[0]}"
        bad = faults.points - before
        if found is None or not bad:
            raise ExpressionError(
                f"{self.energy} raised at {len(x)} points together ({first_line(error)}), and {apart}: its function must compute the "
                "energy of each point from that point alone. Choose by `torch.where`, not by `if`; give data an axis of their own, as in "
                "`(x - y).square().sum(1)`."
            ) from error
        if bad == len(x) and not self._works(method):
            if isinstance(error, torch.linalg.LinAlgError):
                add_note(error, _ROUNDING)
            raise error
        faults.first = faults.first or first_line(error)
        return found

    def _by_halves(self, method: str, x: Tensor, conditions: Mapping[str, Any], error: Exception) -> Any:
        """Returns the results of the halves of a batch that raised: infinity, and a gradient of 0, for a single point."""
        if len(x) == 1:
            self.faults.points += 1
            energies = x.new_full((1,), torch.inf)
            return (energies, torch.zeros_like(x)) if method == "with_gradient" else energies
        parts = list[Any]()
        for rows in torch.arange(len(x)).chunk(2):
            some, own = x[rows.to(x.device)], self._rows_of(len(x), conditions, rows)
            try:
                parts.append(getattr(self.plain, method)(some, **own))
                self._known = self._known or (some[:1].clone(), len(some), own)
            except Exception as other:
                if is_final(other):
                    raise
                self.faults.searches += 1
                if self.faults.searches > _MOST_SEARCHES:
                    raise ExpressionError(
                        f"{self.energy} raised at so many points, {self.faults.points} so far, that to find them in their batches takes "
                        f"longer than to sample. The last was {first_line(error)}\n{_ROUNDING} Where the density is 0, return torch.inf "
                        "without an exception: `torch.linalg.cholesky_ex` tells where it failed."
                    ) from error
                parts.append(self._by_halves(method, some, own, other))
        return tuple(map(torch.cat, zip(*parts, strict=True))) if method == "with_gradient" else torch.cat(parts)

    def _works(self, method: str) -> bool:
        """Returns whether the energy works where it worked first."""
        if self._known is not None:
            x, count, conditions = self._known
            with suppress(Exception):
                getattr(self.plain, method)(x, **self._rows_of(count, conditions, torch.zeros(1, dtype=torch.int64)))
                return True
        return False

    def _rows_of(self, count: int, conditions: Mapping[str, Any], rows: Tensor) -> Mapping[str, Any]:
        """Returns the conditions of some rows of a batch of points; the chains of a whole batch are those of all conditions with rows."""
        chosen = {CHAINS: torch.arange(count), **conditions} if CHAINS in self.energy.conditions else {**conditions}
        for name, value in chosen.items():
            if isinstance(value, Tensor) and value.ndim > 0 and len(value) == count:
                chosen[name] = value[rows.to(value.device)]
        return chosen


def is_final(error: Exception) -> bool:
    """Returns whether an exception is about the program or the machine, not about some of the points."""
    return isinstance(error, _PROGRAM) or ran_out(error)


def first_line(error: Exception) -> str:
    """Returns the type of an exception with the first line of its text."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def explain_failure(error: Exception, doing: str) -> None:
    """Adds a note to an exception of third-party code: what the library was doing. The caller raises the exception again."""
    if isinstance(error, ComposableEnergyError):
        return
    if ran_out(error) and not isinstance(error, torch.cuda.OutOfMemoryError):  # of a GPU, which torch names well
        raise MemoryShortage(f"Memory ran out while {doing} Evaluate fewer chains at a time, by `batch_size=`.") from error
    add_note(error, doing)
