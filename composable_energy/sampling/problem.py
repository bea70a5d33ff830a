"""The problem of a call of `sample`: every argument checked and resolved before the first gradient, in one frozen object."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from composable_energy.algebra import Branch, fill_levels, known_branches, subtracts
from composable_energy.energies.conditions import CHAINS
from composable_energy.energies.energy import Energy
from composable_energy.energies.evaluation import evaluating
from composable_energy.energies.twins import twin
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.options import check_flag, check_integer
from composable_energy.sampling.evaluation import energy_and_gradient
from composable_energy.sampling.faults import Faults, GuardedEnergy
from composable_energy.sampling.kernels import forced_kernel
from composable_energy.sampling.noise import Noise
from composable_energy.sampling.points import PointSpec, resolve_points
from composable_energy.sampling.sampler import Sampler, bound_conditions
from composable_energy.sampling.selection import SamplerLike, check_density, resolve_sampler
from composable_energy.sampling.trace import Policy, Trace, Values, first_difference
from composable_energy.sampling.wrappers import UnconstrainedEnergy, check_rows, coordinates_of_start, has_rows, select_rows

_MOST_TAILS = 32  # coordinates of points for which tails are looked at before sampling


@dataclass(frozen=True)
class Call:
    """The arguments of `sample`, and two that calls inside of the library need: whether points stay latent, and the device."""

    energy: Energy
    shape: int | Sequence[int]
    sampler: SamplerLike | None = None
    steps: int | None = None
    init: Tensor | None = None
    seed: int | None = None
    observers: Sequence[Any] = ()
    trace: bool | int = False
    burn_in: int = 0
    batch_size: int | None = None
    on_divergence: Policy | None = None
    allow_improper: bool = False
    compile: bool = False
    first_chain: int = 0
    resume: Trace | None = None
    dtype: torch.dtype | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    latents: bool = False
    device: torch.device | None = None


_NAMES = tuple(one.name for one in fields(Call) if one.name not in ("energy", "options", "latents", "device"))


@dataclass(frozen=True)
class PilotResult:
    """Where pilot chains arrived.

    Args:
        points: Their last points of finite energy, with shape $(m, *)$.
        level: An energy above theirs: a chain that starts above it is in a tail. None if chains have conditions of their own, whose
            energies do not compare.
    """

    points: Tensor
    level: float | None


@dataclass(frozen=True)
class BranchDraws:
    """Draws of each branch of a mixture, in the coordinates of chains.

    Args:
        points: With shape $(K, m, *)$.
        shares: The shares of the branches, with shape $(K,)$, in float64.
        exact: Whether all are exact draws, not the last points of pilot chains in a branch.
    """

    points: Tensor
    shares: Tensor
    exact: bool


@dataclass(frozen=True)
class Problem:
    """What is sampled, and how. Phases of a call take it, and return it with what they found.

    Args:
        call: The arguments of the call; its energy is the caller's.
        energy: The twin that the sampler gets, in unconstrained coordinates if it has a support; exceptions at single points are counted.
        sampler: The sampler with its options, tuned or not.
        points: The requested points.
        noise: The noise of all chains at step 0.
        init: The coordinates of the start points; None lets the sampler choose.
        batch_size: How many chains are evaluated together.
        policy: What happens to a chain that diverges.
        own_conditions: Whether chains have bound conditions of their own, so that no point of one may become that of another.
        density: The expression whose density the draws should have; None for other draws, as at another temperature.
        branches: The branches of a mixture whose known shares the draws should have.
        drawn: Draws of the branches of a mixture, at which chains without `init` start; None for another energy.
        pilots: Where pilot chains arrived; None leaves all start points as they are.
    """

    call: Call
    energy: GuardedEnergy
    sampler: Sampler
    points: PointSpec
    noise: Noise
    init: Tensor | None
    batch_size: int
    policy: Policy
    own_conditions: bool = False
    density: Energy | None = None
    branches: Sequence[Branch] = ()
    drawn: BranchDraws | None = None
    pilots: PilotResult | None = None

    @property
    def plain(self) -> Energy:
        """The energy, without a count of exceptions."""
        return self.energy.plain

    @property
    def rows(self) -> int:
        """The number of chains, which is that of the rows of bound conditions."""
        return self.points.n

    def energy_of(self, ids: range | Tensor, *, plain: bool = False) -> Energy:
        """Returns the energy of some chains, counted from 0, with their rows of bound conditions; `plain` leaves out the guard."""
        energy = self.energy.plain if plain else self.energy
        return select_rows(energy, ids, self.points.n) if self.own_conditions else energy

    def noise_of(self, ids: range | Tensor) -> Noise:
        """Returns the noise of some chains."""
        first = self.noise.chains[0]
        if isinstance(ids, range):
            return self.noise.for_chains(range(ids.start + first, ids.stop + first))
        return self.noise.for_chains((ids + first).tolist())

    def last_step(self) -> int:
        """Returns the number of the last step, counted from the start of the chains.

        Raises:
            OptionError: The schedule of the sampler is shorter.
        """
        resume, steps, total = self.call.resume, self.call.steps, self.sampler.total_steps
        done = resume.steps if resume else 0
        if total is None:
            return done + (self.sampler.traits.steps if steps is None else steps)
        steps = max(1, total - done) if steps is None else steps
        if done + steps > total:
            before = f"{done} are done, and " if done else ""
            raise OptionError(f"{self.sampler} takes {total} steps: {before}{steps} were asked for.")
        return done + steps

    # Which energy it is -------------------------------------------------------------------------------------------------------------------

    def values(self, chains: Tensor, x: Tensor) -> Values:
        """Returns energies and gradients at points of chains, which identify the energy.

        Args:
            chains: Their ids, counted from 0, with shape $(m,)$.
            x: The points, with shape $(m, *)$.
        """
        levels = self._levels()
        found, slopes = x.new_empty(len(levels), len(x)), x.new_empty(len(levels), *x.shape)
        for first in range(0, len(x), self.batch_size):
            rows = slice(first, first + self.batch_size)
            energy, some = self.energy_of(chains[rows], plain=True), x[rows]
            for level, conditions in enumerate(levels):
                try:  # values of scores count as 0, which identifies them too
                    with evaluating(given={}) if energy.needs_log_densities else nullcontext():
                        energies, grads = energy_and_gradient(energy, some, **conditions)
                except ExpressionError:  # the energy has no gradient, and some samplers need none
                    bound = {name: some.new_full((len(some),), value) for name, value in conditions.items()}
                    energies, grads = energy(some, **bound), torch.full_like(some, torch.nan)
                found = found.to(energies.dtype)
                found[level, rows], slopes[level, rows] = energies, grads
        return Values(chains, x, found.transpose(0, 1), slopes.transpose(0, 1))

    def difference(self, before: Values) -> str | None:
        """Describes the first value of the energy that changed by more than rounding; None if there is none."""
        return first_difference(before, self.values(before.chains.cpu(), before.x), self._levels()) if len(before.x) else None

    def check_same_energy(self, reference: Iterable[Values], owner: str, advice: str) -> None:
        """Raises if the energy has other values than before.

        Args:
            reference: The values of before.
            owner: Whose they are, for the message.
            advice: What to do.

        Raises:
            OptionError: The energy is another one, or its weights have changed: a step would mix both.
        """
        for before in reference:
            problem = self.difference(before)
            if problem is not None:
                raise OptionError(f"{owner} of another energy than {self.energy}: {problem}. {advice}")

    def conditions_at(self, points: Tensor, chains: Tensor) -> dict[str, Tensor]:
        """Returns the conditions of the energy at points of chains after the last step: the noise level, and the rows."""
        conditions = bound_conditions(self.sampler, self.energy)
        return {name: points.new_full((len(points),), value) for name, value in conditions.items()} | {CHAINS: chains}

    def _levels(self) -> list[dict[str, float]]:
        """Returns the sets of conditions under which values are compared: those that the sampler binds get two values."""
        if self.energy.conditions.isdisjoint(self.sampler.traits.binds):
            return [{}]
        return [bound_conditions(self.sampler, self.energy, last=last) for last in (True, False)]


def resolve(call: Call) -> Problem:
    """Checks and resolves the arguments of `sample`.

    Raises:
        ComposableEnergyError: An argument is wrong; `sample` lists the classes.
    """
    call = _checked(call if call.resume is None else _resumed(call, call.resume))
    resume, sampler = call.resume, resolve_sampler(call.energy, call.sampler, call.options, _NAMES)
    check_density(call.energy, sampler, call.allow_improper)
    whole = energy = twin(call.energy)
    start = call.init if resume is None or resume.state is None else resume.state.x
    if resume is not None and start is not None and whole.support is not None:  # a trace has the coordinates of points of a support
        start = start.new_empty((0, *(resume.shape[1:] if whole.event_shape is None else whole.event_shape)))
    points = resolve_points(whole, call.shape, latents=call.latents, start=start, dtype=call.dtype, device=call.device)
    if call.first_chain + points.n > 2**32:
        raise OptionError(f"The ids of chains stay below 2^32; got {points.n} from {call.first_chain}.")
    points.check_memory(points.n)
    fill_levels(whole, torch.zeros((1, *points.event), dtype=points.dtype, device=points.device), frozenset(sampler.traits.binds))
    rows, init = CHAINS in whole.conditions and has_rows(whole), call.init
    if rows:
        check_rows(whole, points.n)
    if init is not None:
        if init.shape != (points.n, *points.event):
            raise ShapeError(f"init must have the shape {(points.n, *points.event)} of the points, got {tuple(init.shape)}.")
        init = coordinates_of_start(whole, points.coordinates, init.detach().clone())
    if points.coordinates is not None:
        energy = UnconstrainedEnergy(whole, points.coordinates, volume=not sampler.traits.minimizes)
    if call.energy._signed and sampler.stationary and not call.allow_improper and resume is None:
        _check_differences(call.energy, energy, points, sampler)
    changed = getattr(sampler, "temperature", 1.0) != 1 or getattr(sampler, "clamp", None) is not None or sampler.traits.minimizes
    changed = changed or rows or whole.needs_log_densities or not whole.has_value or not whole.conditions.isdisjoint(sampler.traits.binds)
    forced_kernel.cache_clear()  # the environment may have changed since the last call
    own = points.device.type == "cpu" and forced_kernel() in (None, "", "torch")  # kernels draw Philox noise
    kind, seed = "numpy" if own else "philox", secrets.randbits(63) if call.seed is None else call.seed
    return Problem(
        call,
        GuardedEnergy(energy, energy, Faults()),
        sampler,
        points,
        Noise(seed, range(call.first_chain, call.first_chain + points.n), kind=resume.noise if resume else kind),
        init,
        call.batch_size or points.n,
        call.on_divergence or "raise",
        own_conditions=rows,
        density=None if changed else whole,
        branches=() if changed else known_branches(whole),
    )


def _checked(call: Call) -> Call:
    """Returns a call whose numbers are of Python's type `int`, and whose seed has 64 bits without sign, as torch takes negative seeds."""
    check_flag("allow_improper", call.allow_improper)
    check_flag("compile", call.compile)
    found: dict[str, Any] = {} if isinstance(call.trace, bool) else {"trace": check_integer("trace", call.trace)}
    for name, least in (("steps", 1), ("batch_size", 1), ("burn_in", 0), ("first_chain", 0)):
        if getattr(call, name) is not None or least == 0:
            found[name] = check_integer(name, getattr(call, name), least=least)
    if call.seed is not None:
        found["seed"] = check_integer("seed", call.seed, least=-(2**63))
        if found["seed"] >= 2**64:
            raise OptionError(f"seed must be below 2^64, got {found['seed']}: another seed would draw the same.")
        found["seed"] %= 2**64
    if call.on_divergence not in (None, "raise", "keep"):
        raise OptionError(
            f"on_divergence is 'raise' or 'keep', got {call.on_divergence!r}. To drop chains that diverged: "
            '`x, trace = E.sample(..., on_divergence="keep", trace=True); x = x[~trace.diverged]`.'
        )
    return replace(call, **found)


def _resumed(call: Call, resume: Any) -> Call:
    """Returns a call with what its trace decides.

    Raises:
        OptionError: The call does not go on as its trace began.
    """
    if not isinstance(resume, Trace):
        raise OptionError(f"resume takes the Trace that `sample(..., trace=True)` returned, got {type(resume).__name__}.")
    given, shape = {"sampler": call.sampler, "init": call.init, "seed": call.seed, **call.options}, call.shape
    wrong = [name for name, value in given.items() if value is not None and value != getattr(resume, name, None)]
    wrong += ["first_chain"] * (call.first_chain not in (0, resume.first_chain))
    wrong += ["shape"] * (tuple(shape) != resume.shape if isinstance(shape, Sequence) else shape != resume.shape[0])
    if wrong:
        raise OptionError(f"A resumed call goes on as it began, {resume}: leave out {', '.join(wrong)}.")
    settled = {name: getattr(resume, name) for name in ("sampler", "shape", "seed", "first_chain")}
    return replace(call, **settled, options={}, on_divergence=call.on_divergence or resume.on_divergence)


def _check_differences(owner: Energy, energy: Energy, points: PointSpec, sampler: Sampler) -> None:
    """Raises if the tails of a sum with negative weights show that it has no density, though a term is grounded."""
    if points.event.numel() > _MOST_TAILS or not energy.has_value or not subtracts(owner):
        return
    from composable_energy.energies.density import check_tails  # late: rare

    zeros = points.zeros()
    check_tails(energy, zeros.new_full((16, *zeros.shape), math.inf), bound_conditions(sampler, energy))
