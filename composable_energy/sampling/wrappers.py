"""Energies as samplers evaluate them: with gradients, for some of the chains, in unconstrained coordinates, and where functions raise."""

from abc import ABC
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.energies.conditions import CHAINS, rows_for
from composable_energy.energies.energy import Energy
from composable_energy.energies.evaluation import evaluating
from composable_energy.errors import ComposableEnergyError, ExpressionError, MemoryShortage, OptionError, ShapeError, add_note
from composable_energy.options import ran_out
from composable_energy.sampling.sampler import State
from composable_energy.supports import Coordinates, Identity, contains, format_support

_PROGRAM = (ComposableEnergyError, TypeError, NameError, AttributeError, ImportError, NotImplementedError)
_MOST_SEARCHES = 20_000  # exceptions of parts of batches in a call, which take tens of seconds
_ROUNDING = "A decomposition that fails by rounding, such as cholesky, works in torch.float64, and with jitter: add to its diagonal."
_FAR = 0.5  # in coordinates: a density there is off by a factor of about e^.5
_BEYOND = 1.1  # times as far: in a power-law tail, as much mass is cut off beyond the rounding as lies between


def energy_and_gradient(energy: Energy, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
    r"""Returns energies, with shape $(B,)$, and $\nabla E$, with shape $(B, *)$, with one pass, and keeps no graph.

    Args:
        energy: The energy.
        x: The points, with shape $(B, *)$; they stay as they are.
        **conditions: Numbers, or tensors with one row for each point.

    Raises:
        ExpressionError: The energies have no gradient.
    """
    if not conditions:
        return energy.with_gradient(x)
    return energy.with_gradient(x, **{name: rows_for(name, value, x) for name, value in conditions.items()})


def _forwarded(name: str) -> Any:
    return property(attrgetter(f"energy.{name}"))


class EnergyWrapper(Energy, ABC):
    """Abstract energy with the values, conditions and name of another one. A subclass changes how that one is evaluated."""

    has_value, evidence_has_value, needs_log_densities = map(_forwarded, ("has_value", "evidence_has_value", "needs_log_densities"))
    conditions, required_conditions = _forwarded("conditions"), _forwarded("required_conditions")
    grounded, unsatisfiable, event_shape, sites = map(_forwarded, ("grounded", "unsatisfiable", "event_shape", "sites"))

    def __init__(self, energy: Energy) -> None:
        nn.Module.__init__(self)  # without a token of its own, which takes longer than the rest
        self.energy = energy

    @property
    def terms(self) -> tuple[Energy, ...]:
        return (self.energy,)

    def evaluate(self, method: str, x: Tensor, conditions: Mapping[str, Any]) -> Any:
        """Returns the result of a method of the wrapped energy: `__call__`, `with_gradient` or `evidence`."""
        return getattr(self.energy, method)(x, **conditions)

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.evaluate("__call__", x, conditions)

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        return self.evaluate("with_gradient", x, conditions)

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.evaluate("evidence", x, conditions)

    def __str__(self) -> str:
        return str(self.energy)


class _RowSelection(EnergyWrapper):
    """An energy for some of the chains: each gets its own row of the bound conditions."""

    def __init__(self, energy: Energy, rows: Tensor) -> None:
        super().__init__(energy)
        self.rows = rows

    def evaluate(self, method: str, x: Tensor, conditions: Mapping[str, Any]) -> Any:
        return super().evaluate(method, x, {CHAINS: self.rows, **conditions})

    @property
    def conditions(self) -> frozenset[str]:
        return self.energy.conditions - {CHAINS}

    @property
    def required_conditions(self) -> frozenset[str]:
        return self.energy.required_conditions - {CHAINS}


def select_rows(energy: Energy, rows: range | Tensor, n: int) -> Energy:
    """Returns an energy for points of some of the `n` rows of its bound conditions; `rows` has the row of each point."""
    if CHAINS not in energy.conditions or (isinstance(rows, range) and rows == range(n)):
        return energy
    return _RowSelection(energy, torch.arange(rows.start, rows.stop, device="cpu") if isinstance(rows, range) else rows)


def repeated(energy: Energy, n: int, times: int) -> Energy:
    """Returns an energy for several points of each chain, for a sampler that gives its chains replicas.

    Args:
        energy: The sampler's energy, for one point of each of `n` chains.
        n: The number of chains.
        times: How many points each chain has, one after another.
    """
    if isinstance(energy, _RowSelection):
        return _RowSelection(energy.energy, energy.rows.repeat_interleave(times))
    return select_rows(energy, torch.arange(n, device="cpu").repeat_interleave(times), n)


def has_rows(energy: Energy) -> bool:
    """Returns whether chains have bound conditions of their own, so that no point of one chain may become that of another."""
    return isinstance(energy, _RowSelection) or CHAINS in energy.conditions


class UnconstrainedEnergy(EnergyWrapper):
    r"""The energy $E(T(u)) - \log \lvert \det dT/du \rvert$ of coordinates $u$, as chains see it; see `composable_energy.supports`. Where
    $T(u)$ overflows, the energy is infinite. The evidence is that of $E$. Without `volume` the minima are those of $E$, too."""

    with_gradient = Energy.with_gradient  # by autograd
    event_shape: Any = property(attrgetter("coordinates.shape"))
    sites: Any = property(attrgetter("coordinates.sites"))

    def __init__(self, energy: Energy, coordinates: Coordinates, *, volume: bool = True) -> None:
        super().__init__(energy)
        self.coordinates, self.volume = coordinates, volume
        self.moves = not isinstance(coordinates, Identity)  # whether coordinates are other numbers than points
        self._sampled = energy.support if coordinates.within else None

    def forward(self, u: Tensor, **conditions: Any) -> Tensor:
        if not self.moves:
            with evaluating(inside=(u, self._sampled)):
                return self.energy(u, **conditions)
        good, x, volume = self._points(u)
        with evaluating(inside=(x, self._sampled)):
            energies = self.energy(x, **conditions)
        energies = torch.where(good, energies - volume if self.volume else energies, torch.inf)
        return energies.masked_fill(u.isnan().flatten(1).any(1), torch.nan) if u.ndim > 1 else energies

    def evidence(self, u: Tensor, **conditions: Any) -> Tensor:
        good, x, _ = self._points(u)
        return torch.where(good, self.energy.evidence(x, **conditions), torch.inf)

    def _points(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns where points and volumes are finite, and points and volumes that are finite everywhere, with finite gradients."""
        x, volume = self.coordinates.points(u)
        good = volume.isfinite() & (x.isfinite().flatten(1).all(1) if x.ndim > 1 else x.isfinite())
        if torch.compiler.is_compiling() or type(u) is not Tensor or not good.all():  # a graph has no branches
            x, volume = self.coordinates.points(torch.where(unsqueeze_to(good, u), u, 0.1))
        return good, x, volume


def plain_energy(energy: Energy) -> tuple[Energy | None, dict[str, Tensor]]:
    """Returns the expression inside of an energy that a sampler gets, and the condition that says which chains its points belong to. The
    expression is None if chains move in other coordinates. The condition is empty if all chains have the same bound conditions. Compiled
    energies and guards against exceptions are left out."""
    chains: dict[str, Tensor] = {}
    while isinstance(energy, EnergyWrapper) and not (isinstance(energy, UnconstrainedEnergy) and energy.moves):
        if isinstance(energy, _RowSelection) and not chains:
            chains = {CHAINS: energy.rows}
        energy = energy.energy
    return None if isinstance(energy, EnergyWrapper) else energy, chains


def coordinates_of_start(energy: Energy, coordinates: Coordinates | None, init: Tensor) -> Tensor:
    """Returns the coordinates of start points, or other given points."""
    if coordinates is None:
        return init
    inside = contains(energy.support, init)
    u = coordinates.inverse(torch.where(unsqueeze_to(inside, init), init, coordinates.points(coordinates.inner(init))[0]))
    if (outside := ~(inside & u.isfinite().reshape(len(u), -1).all(1))).any():
        raise OptionError(
            f"{int(outside.sum())} of {len(init)} given points are not inside the support of {energy}, {format_support(energy.support)}; "
            f"the first is number {int(outside.nonzero()[0])}. Move them inside, also from its boundary, or leave them out."
        )
    return u


def near_border(energy: Energy, u: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns which points are as close to the border of a support as numbers can be, of a dtype or of that of the points; shape $(B,)$."""
    if not isinstance(energy, UnconstrainedEnergy):
        return torch.zeros(len(u), dtype=torch.bool, device=u.device)
    return energy.coordinates.rounding(_BEYOND * u, dtype or u.dtype) > _FAR


def explain_border(energy: Energy, broken: State) -> str | None:
    """Returns what to do about chains at points that are finite, at the border of a support or where the gradient alone is broken."""
    finite = broken.x.isfinite().reshape(len(broken.x), -1).all(1)
    if any((near_border(energy, broken.x, dtype) & finite).any() for dtype in (broken.x.dtype, torch.float32)):
        return "they are as close to the border of the support as numbers of their dtype can be: sample in float64, with parameters in it"
    if not (rows := finite & broken.energy.isfinite()).any():
        return None
    return (
        f"at {int(rows.sum())} of the points the energy is finite and its gradient is not. The gradient of `torch.where(c, f(x), g(x))` is "
        "NaN where that of the branch which is not taken is: give each branch a safe argument, `f(torch.where(c, x, 1.0))`. Roots and "
        "norms have no gradient at 0: add a small number inside"
    )


@dataclass
class Faults:
    """The points at which an energy raised an exception or was not a number, which samplers reject as points of density 0."""

    points: int = 0  # how many, those of pilot chains included
    first: str = ""  # what the energy did at the first of them
    searches: int = 0  # how many evaluations of parts of batches raised, to find them
    undefined: Tensor | int = 0  # how many proposals were not a number, apart from these points
    slopes: str | None = None  # how energies differ from their gradients, if they do and the sampler follows gradients
    varies: str | None = None  # how the energy differed between two evaluations at the same points, if it did


class GuardedEnergy(EnergyWrapper):
    r"""An energy that is $\infty$, with gradient 0, at points where the wrapped one raises an exception. After an exception the batch is
    halved until the points that raise are found. Exceptions about the program are raised at once: errors of this library, `TypeError` and
    its like, what is raised at a batch and at no part of it, and what is raised at all points, unless the energy still works where it
    worked first. So is an error when the search takes too long."""

    plain: Energy  # the same energy, not compiled, for parts of a batch
    faults: Faults
    _known: tuple[Tensor, int, Mapping[str, Any]] | None = None

    def __init__(self, energy: Energy) -> None:
        super().__init__(energy)
        vars(self).update(plain=energy, faults=Faults())  # `plain` is no second module

    def evaluate(self, method: str, x: Tensor, conditions: Mapping[str, Any]) -> Any:
        try:
            found = getattr(self.energy, method)(x, **conditions)
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
        if found is None or not (bad := faults.points - before):
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
        for rows in torch.arange(len(x), device="cpu").chunk(2):
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
                getattr(self.plain, method)(x, **self._rows_of(count, conditions, torch.zeros(1, dtype=torch.int64, device="cpu")))
                return True
        return False

    def _rows_of(self, count: int, conditions: Mapping[str, Any], rows: Tensor) -> Mapping[str, Any]:
        """Returns the conditions of some rows of a batch of points; the chains of a whole batch are those of all conditions with rows."""
        chosen = {CHAINS: torch.arange(count, device="cpu"), **conditions} if CHAINS in self.energy.conditions else {**conditions}
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
