"""The chains of a call: one state of all, advanced one step at a time; the loop of steps; and the interface of its observers."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.energies.energy import Energy
from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling.checks import values_of
from composable_energy.sampling.noise import Noise
from composable_energy.sampling.pilots import start_chains
from composable_energy.sampling.problem import Problem
from composable_energy.sampling.sampler import Info, State
from composable_energy.sampling.trace import Trace, Values
from composable_energy.sampling.wrappers import Faults, UnconstrainedEnergy, is_final

S = TypeVar("S", bound=State)
_LEAST_CHAINS, _DRIFT_ERRORS, _DRIFT_DEVIATIONS, _RATIO_ERRORS = 16, 5.0, 0.25, 2.0  # of a drift, and of R-hat
_NUMBERS = 16  # coordinates, or sums of coordinates with random signs
_MOST_CHAINS = 512  # evenly chosen: with 400 or more the least drift that counts is a share of the deviation, not the standard error


class Diverged(Exception):  # noqa: N818  (`sample` turns it into the public error, which carries the points)
    """Chains diverged, and the policy ends the sampling."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(step, reason)
        self.step, self.reason = step, reason


class Chains:
    """The chains of a call; `step` is that of the sampler, if it is compiled. Those that were not stopped are active."""

    state: State  # of all chains; those that diverged are at their last finite points. Its tensors are not changed in place
    stopped = False  # by an observer

    def __init__(self, problem: Problem, step: Any = None) -> None:
        self.problem, self.sampler, self.energy = problem, problem.sampler, problem.energy
        self.count = self.active = problem.points.n
        self.step = self.last_step = 0  # counted from the start of the chains, before a resume
        self.relocated = 0  # chains that the sampler could not bring from `init` to the density
        self.rows = torch.arange(self.count, device="cpu")  # the active chains
        self.diverged_at = torch.full((self.count,), -1, dtype=torch.int64, device="cpu")  # after how many steps; -1 if not
        self.broken: State | None = None  # the first state in which chains diverged, those chains alone
        self._take, self._guarded = step or problem.sampler.step, step is not None
        self._batches: list[tuple[slice, Energy, Noise]] = []  # of active chains that are evaluated together
        self._sums: Tensor | None = None  # of coordinates, where there are many
        self.apart = -(-self.count // _MOST_CHAINS)  # of chains, those whose `numbers` are looked at

    def start(self) -> None:
        """Starts all chains; raises `Diverged` where they are not finite, for all chains or under the policy "raise"."""
        size, states = self.problem.batch_size, list[State]()
        for first in range(0, self.count, size):
            state, relocated = start_chains(self.problem, range(first, min(first + size, self.count)))
            self.relocated += relocated
            states.append(state)
        self.state = states[0] if len(states) == 1 else join(states)
        _per_chain(self.state, (self.count, *self.problem.points.zeros().shape))  # checks its shapes
        if not all_finite(self.state):
            self._stop(self.state, self.state)
            if self.problem.policy == "raise" or not self.active:
                raise Diverged(0, "at the start")

    def resume(self, trace: Trace) -> None:
        """Continues the chains of a trace."""
        if trace.state is None:
            raise OptionError("The trace has no states of chains, from which a call could go on.")
        self.state, self.step, self.diverged_at = trace.state, trace.steps, trace.diverged_at.clone()
        self.rows = (self.diverged_at < 0).nonzero()[:, 0]
        self.active = len(self.rows)

    def advance(self) -> Info:
        """Takes a step with all active chains, and returns its info, with an acceptance of NaN for chains that were stopped before."""
        whole, found = self.state, list[tuple[State, Info]]()
        active = whole if self.active == self.count else take(whole, self.rows)
        batches = self._batches = self._batches or self._split()
        try:
            for rows, energy, noise in batches:
                found.append(self._take(energy, active if len(batches) == 1 else take(active, rows), noise.at(self.step + 1)))
        except Exception as error:
            if self._guarded or is_final(error):
                raise
            self._guarded, self._batches = True, []  # this step again, and later ones, with exceptions at some points as density 0
            return self.advance()
        after, info = found[0]
        if len(found) > 1 or info.acceptance is not None or info.scalars:
            after, info = merge(found, type(self.sampler).__name__, self.problem.energy.faults)
        if after.x.shape != active.x.shape:
            _per_chain(after, active.x.shape)
        self.state, self.step = after if self.active == self.count else put(whole, self.rows, after), self.step + 1
        if self.active < self.count and info.acceptance is not None:
            rates = info.acceptance
            info = replace(info, acceptance=rates.new_full((self.count,), torch.nan).index_copy(0, self.rows.to(rates.device), rates))
        if not all_finite(after):
            self._stop(whole, after)
            if self.problem.policy == "raise":
                raise Diverged(self.step, f"after {self.step} steps")
        if (couple := self.sampler.traits.couple) is None or not self.active:
            return info
        ids = range(self.count) if self.active == self.count else self.rows
        state, scalars = couple(self.sampler, self.problem.energy_of(ids), self.active_state(), self.problem.noise_of(ids).at(self.step))
        self.state = put(self.state, self.rows, state)
        return replace(info, scalars={**info.scalars, **scalars})

    def _split(self) -> list[tuple[slice, Energy, Noise]]:
        """Returns the active chains in batches."""
        problem, batches = self.problem, list[tuple[slice, Energy, Noise]]()
        for first in range(0, self.active, problem.batch_size):
            rows = slice(first, min(first + problem.batch_size, self.active))
            ids = range(rows.start, rows.stop) if self.active == self.count else self.rows[rows]
            batches.append((rows, problem.energy_of(ids, plain=not self._guarded), problem.noise_of(ids)))
        return batches

    def _stop(self, before: State, after: State) -> None:
        """Stops the active chains that diverged in a step, where they were in the state of all chains before it."""
        bad = (~(good := finite_rows(after))).cpu()
        self.broken = self.broken or take(after, ~good)
        self.diverged_at = self.diverged_at.index_fill(0, self.rows[bad], self.step)  # a snapshot may hold the old one
        self.rows, self._batches = self.rows[~bad], []
        self.active = len(self.rows)
        self.state = put(before, self.rows, take(after, good))

    def active_state(self) -> State:
        """Returns the state of the active chains."""
        return self.state if self.active == self.count else take(self.state, self.rows)

    def visible_state(self, state: State | None = None) -> State:
        """Returns a state, by default that of active chains, with points of the support and their energies, NaN without value.

        The gradient stays that of the chains' coordinates.
        """
        state, plain = self.active_state() if state is None else state, self.problem.plain
        if isinstance(plain, UnconstrainedEnergy):
            x, volume = plain.coordinates.points(state.x)
            state = replace(state, x=x, energy=state.energy + plain.volume * volume if plain.volume else state.energy)
        return state if self.energy.has_value else replace(state, energy=torch.full_like(state.energy, torch.nan))

    def values(self, most: int | None = None) -> Values:
        """Returns energies and gradients of up to `most` active chains, which identify the energy; at two levels if it binds one."""
        ids, state = self.rows[:most], take(self.active_state(), slice(most))
        if not self.energy.conditions.isdisjoint(self.sampler.traits.binds):
            return values_of(self.problem, ids, state.x)
        known = unsqueeze_to(state.energy.isfinite() & state.grad.any(), state.x)  # gradients that are all zero count as unknown
        return Values(ids, state.x, state.energy[:, None], torch.where(known, state.grad, torch.nan)[:, None])

    def numbers(self) -> Tensor:
        """Returns by what convergence is judged: for up to 512 chains the energy, if it has values, and up to 16 coordinates or sums."""
        x, coordinates = self.state.x[:: self.apart], self.problem.points.coordinates
        x = (x if coordinates is None else coordinates.features(x)).reshape(len(x), -1).to(torch.promote_types(x.dtype, torch.float32))
        if x.shape[1] > _NUMBERS:
            self._sums = _sums(x.shape[1]).to(x) if self._sums is None else self._sums
            x = x @ self._sums
        return torch.cat([self.state.energy[:: self.apart, None].to(x), x], 1) if self.energy.has_value else x.clone()

    def name(self, figures: Tensor) -> str:
        """Returns the name of the one of these numbers with the largest figure."""
        index = int(figures.argmax()) - self.energy.has_value
        return "the energy" if index < 0 else f"coordinate {index}" if self._sums is None else "a sum of coordinates"


def _sums(size: int) -> Tensor:
    """Returns the factors of coordinates in sums, with shape (size, numbers): of neighbours, and others with random signs."""
    index, places = torch.arange(size, device="cpu")[:, None], torch.arange(_NUMBERS // 2, device="cpu")
    signs = torch.randint(0, 2, (size, 1), generator=torch.Generator().manual_seed(0), device="cpu").mul_(2).sub_(1)
    return torch.cat([index * len(places) // size == places, signs * (index % len(places) == places)], 1)


def compare_pieces(pieces: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the drift of each number, its split R-hat with a lower bound, and how many independent draws all are worth for its mean.

    Pieces have the shape (pieces, steps, chains, numbers). The drift is that of the mean over all chains, over the largest that chance and
    a small bias explain. The bound is some standard errors below R-hat: where few pieces in a heavy tail make R-hat large, it is small.
    The means of groups of chains, those in the branches of a mixture, may differ.
    """
    means, variances, rest = pieces.mean(1), pieces.var(1), 1 - 1 / pieces.shape[1]
    change, drift = means[-1] - means[0], means.new_zeros(1)
    if len(change) >= _LEAST_CHAINS:
        within = rest * (variances[0] + variances[-1]).mean(0) / 2
        deviation, error = (within + torch.cat([means[0], means[-1]]).var(0)).sqrt(), change.std(0) / len(change) ** 0.5
        drift = (change.mean(0).abs() / torch.maximum(_DRIFT_ERRORS * error, _DRIFT_DEVIATIONS * deviation)).nan_to_num(0.0)
    for group in () if groups is None else groups.unique():
        means[:, groups == group] -= means[:, groups == group].mean((0, 1))
    means, variances = means.flatten(0, 1), variances.flatten(0, 1)
    within, between = variances.mean(0), means.var(0)
    ratio = between / within
    error = ((means - means.mean(0)).square() - ratio * variances).std(0) / within / len(means) ** 0.5
    r_hat, least = (torch.stack([ratio, ratio - _RATIO_ERRORS * error]) + rest).clamp_min(0).sqrt().nan_to_num(0.0, math.inf)
    return drift, r_hat, least, (len(means) * (within * rest + between) / between).nan_to_num(torch.inf)


class Observer:
    """What looks at the chains of a call while they run; a subclass overrides the methods it needs.

    The chains are not to be changed. They have `step` and `last_step`, the `sampler`, the `energy` as the sampler gets it, the `state` of
    all chains in the coordinates that these use, `diverged_at`, and `visible_state()`.

    Example:
        >>> class Means(ce.sampling.Observer):
        ...     def on_step(self, chains, info):
        ...         if chains.step % 50 == 0:
        ...             print(chains.step, chains.visible_state().x.shape)
        >>> bowl = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> _ = bowl.sample((5, 2), steps=100, seed=0, observers=[Means()])
        50 torch.Size([5, 2])
        100 torch.Size([5, 2])
    """

    def on_tuning(self, sampler: Any, evaluations: int) -> None:
        """Called before each evaluation of the energy by pilot chains, with their number."""

    def on_start(self, chains: Chains) -> None:
        """Called before the first step."""

    def on_step(self, chains: Chains, info: Info) -> bool | None:
        """Called after each step; returning True stops the loop after this step."""

    def on_end(self, chains: Chains, error: BaseException | None) -> None:
        """Called after the last step, or with the error that broke off the loop."""


def run(chains: Chains, last_step: int, observers: Sequence[Observer]) -> None:
    """Takes all steps to the last one, or fewer if an observer stops the loop or all chains of the call were stopped."""
    error, chains.last_step = None, last_step
    if chains.step > last_step:
        raise OptionError(f"{chains.step} steps are done already, {last_step} were asked for in all: ask for at least as many.")
    for observer in observers:
        observer.on_start(chains)
    try:
        while chains.step < chains.last_step and chains.active and not chains.stopped:
            info = chains.advance()
            for observer in observers:
                chains.stopped = observer.on_step(chains, info) is True or chains.stopped
    except BaseException as caught:
        error = caught
        raise
    finally:
        with ExitStack() as ends:  # the last first, so that the file is written before others end; all, even if one raises
            for observer in observers:
                ends.callback(observer.on_end, chains, error)


def take(state: S, rows: Tensor | slice) -> S:
    """Returns some rows of a state, given by their places or by a mask."""
    rows = rows if isinstance(rows, slice) else rows.to(state.x.device)
    return replace(state, **{name: value[rows] for name, value in _per_chain(state).items()})


def join(states: Sequence[S]) -> S:
    """Returns states one after another; shared fields come from the first state."""
    tensors = [_per_chain(state) for state in states]
    return replace(states[0], **{name: torch.cat([some[name] for some in tensors]) for name in tensors[0]})


def put(state: S, rows: Tensor, new: S) -> S:
    """Returns a state with other rows in some places; shared fields come from the new one."""
    rows = rows.to(state.x.device)
    return replace(new, **{name: value.index_copy(0, rows, getattr(new, name)) for name, value in _per_chain(state).items()})


def _per_chain(state: State, shape: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Returns the tensors of a state that have one row for each chain; raises if shapes do not fit, and one is not declared as shared."""
    found, count = {}, len(state.x)
    if shape is not None and state.x.shape != tuple(shape):
        raise ShapeError(f"A sampler returned points of shape {tuple(state.x.shape)} for chains of shape {tuple(shape)}.")
    for field in fields(state):
        if not isinstance(value := getattr(state, field.name), Tensor) or not value.ndim or not field.metadata.get("per_chain", True):
            continue
        if len(value) != count:
            raise ShapeError(
                f"{type(state).__name__}.{field.name} has shape {tuple(value.shape)} in a state of {count} chains: a tensor has one row "
                f"for each chain. If all chains share it, write `{field.name}: Tensor = field(metadata={{'per_chain': False}})`."
            )
        found[field.name] = value
    return found


def all_finite(state: State) -> bool:
    """Returns whether points, energies and gradients are finite; where they are it takes one synchronisation."""
    if state.x.dtype in (torch.float32, torch.float64):
        products = torch.dot(state.x.reshape(-1), state.grad.reshape(-1)) if state.x.is_contiguous() else state.x.sum() + state.grad.sum()
        if math.isfinite(products.add_(state.energy.sum()).item()):  # 0 times infinity is not finite either
            return True
    return bool(finite_rows(state).all())


def finite_rows(state: State) -> Tensor:
    """Returns which chains have a finite point, energy and gradient, with shape $(B,)$."""
    both = state.x.isfinite() & state.grad.isfinite()
    return both.flatten(1).all(1) & state.energy.isfinite() if both.ndim > 1 else both & state.energy.isfinite()


def merge(found: Sequence[tuple[S, Info]], sampler: str, faults: Faults) -> tuple[S, Info]:
    """Returns one state and info of all batches, and counts NaN proposals; means stay tensors, so that no step waits for the device."""
    rates, parts, scalars, own = list[Tensor](), dict[str, list[tuple[int, Any]]](), dict[str, float | Tensor](), set[str]()
    for state, info in found:
        count, rate = len(state.x), info.acceptance
        for name, value in (("acceptance", rate), *info.scalars.items()):
            if (shape := tuple(getattr(value, "shape", ()))) != (count,) and (shape or (value is rate and rate is not None)):
                raise ShapeError(
                    f"The {name!r} of {sampler} has shape {shape} for {count} chains: give a tensor of shape ({count},), of which the mean "
                    "is taken; or a number, if it is a scalar that all chains share."
                )
            if shape:
                own.add(name)
        if rate is not None:
            rates.append(rate.nan_to_num(0.0))
            faults.undefined = faults.undefined + rate.isnan().sum()
        for name, value in info.scalars.items():
            parts.setdefault(name, []).append((count, value))
    for name, some in parts.items():
        first = some[0][1]
        if name not in own and (len(some) == 1 or all(value == first for _, value in some)):
            scalars[name] = first  # to the last bit
        else:
            scalars[name] = torch.cat([torch.as_tensor(value, dtype=torch.float64).expand(count) for count, value in some]).nanmean()
    states = found[0][0] if len(found) == 1 else join([state for state, _ in found])
    return states, Info(None if not rates else rates[0] if len(rates) == 1 else torch.cat(rates), scalars)


def to_floats(values: Sequence[float | Tensor]) -> list[float]:
    """Returns scalars as numbers, those on a device by one transfer."""
    tensors = [value.double() for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(read) if isinstance(value, Tensor) else value for value in values]
