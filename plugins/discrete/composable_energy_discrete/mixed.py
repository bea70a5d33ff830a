"""Points of discrete and continuous numbers: both kinds move in turn, or the discrete ones are summed out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy import Energy, SamplingWarning
from composable_energy.errors import OptionError
from composable_energy.options import check_integer
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, repeated
from composable_energy_discrete.gibbs import Gibbs, all_states
from composable_energy_discrete.neighbours import choose_values
from composable_energy_mcmc.tempering import Replicas, Tempering

_COMBINATIONS = 64  # of discrete values that are summed out by default
_ROUNDS = 3  # in which the pilots approach the bulk, where discrete numbers are not summed out


@dataclass(frozen=True)
class _MixedState(State):
    """A state with the energy of the continuous numbers and its gradient; the gradient of all numbers stays 0."""

    part: Tensor
    slope: Tensor


class _Continuous(Energy):
    """The energy of the continuous numbers, at the discrete ones of each chain."""

    def __init__(self, energy: Energy, x: Tensor) -> None:
        super().__init__()
        self.whole, self.x, self.free = energy, x, energy.sites.free
        self.event_shape = (int(self.free.sum()),)

    def __str__(self) -> str:
        return str(self.whole)

    def take(self, x: Tensor) -> Tensor:
        """Returns the continuous numbers of points."""
        return x.reshape(len(x), -1)[:, self.free]

    def points(self, v: Tensor) -> Tensor:
        """Returns points with these continuous numbers."""
        flat = self.x.reshape(len(self.x), -1).repeat_interleave(len(v) // len(self.x), 0)
        return flat.masked_scatter(self.free.expand_as(flat), v).reshape(len(v), *self.x.shape[1:])

    def move(self, v: Tensor, noise: Noise) -> Tensor:
        """Returns points with these continuous numbers, and discrete ones after a sweep."""
        return Gibbs().step(self.whole, Gibbs().init(self.whole, self.points(v), noise), noise)[0].x

    def forward(self, v: Tensor, chains: Tensor | None = None) -> Tensor:  # which have discrete numbers of their own, see `has_rows`
        return self.whole(self.points(v))


class _Summed(_Continuous):
    r"""The energy $-\log \sum_z e^{-E(v, z)}$ of the continuous numbers."""

    def __init__(self, energy: Energy, x: Tensor) -> None:
        super().__init__(energy, x)
        self.states = all_states(energy, x)

    def points(self, v: Tensor) -> Tensor:
        """Returns the points of all combinations, with shape $(B, C, *)$."""
        flat = self.states.reshape(len(self.states), -1).repeat(len(v), 1)
        wide = v.repeat_interleave(len(self.states), 0)
        return flat.masked_scatter(self.free.expand_as(flat), wide).view(len(v), len(self.states), *self.states.shape[1:])

    def energies(self, v: Tensor) -> Tensor:
        return repeated(self.whole, len(v), len(self.states))(self.points(v).flatten(0, 1)).view(len(v), -1)

    def move(self, v: Tensor, noise: Noise) -> Tensor:
        """Returns points with these continuous numbers, and exact draws of the discrete ones given them."""
        return self.points(v)[torch.arange(len(v), device=v.device), choose_values(-self.energies(v), noise.uniform(v)).long()]

    def forward(self, v: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return -torch.logsumexp(-self.energies(v), 1)


def summed_out(energy: Energy, x: Tensor) -> Energy:
    """Returns the energy of the continuous numbers, summed over the discrete ones; raises `OptionError` for more than 64 combinations."""
    if energy.sites.log_states > math.log(_COMBINATIONS) + 1e-9:
        raise OptionError(
            f"{energy} has e^{energy.sites.log_states:.1f} combinations of discrete values, and at most 64 are summed out: sum over some "
            "in its function, by `logsumexp` of minus the energies, or take `log_z(E.given(name=value))` for each value of a variable."
        )
    return _Summed(energy, x)


@dataclass(frozen=True)
class Mixed(Sampler):
    r"""Points of discrete and continuous numbers.

    Up to 64 combinations of discrete values are summed out: the continuous numbers move in the marginal density, and the discrete ones are
    exact draws given them. With more, both move in turn, each given the other: the continuous numbers by a step of `inner`, the discrete
    ones by a sweep of `Gibbs`.

    Args:
        inner: The sampler of the continuous numbers: a name, or a sampler whose state is a `State`; `Tempering` where discrete values are
            summed out.
        most: The largest number of combinations that are summed out, at the cost of an energy of each: `most=1` drew which of six
            predictors matter 14 times as fast, and as right. Where discrete numbers decide the others, only sums move chains between modes.
    """

    inner: Any = "chees"
    most: int = _COMBINATIONS

    def __post_init__(self) -> None:
        check_integer("most", self.most, 0)
        found = ce.get("sampler", self.inner)() if isinstance(self.inner, str) else self.inner
        if not isinstance(found, Sampler) or found.total_steps is not None:
            raise OptionError(f"inner is a sampler without a schedule, such as 'chees' or 'hmc', got {self.inner!r}.")
        object.__setattr__(self, "inner", found)

    @property
    def tuned(self) -> bool:
        return self.inner.tuned

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        part = self._part(energy, x)
        if isinstance(self.inner, Tempering) and not isinstance(part, _Summed):
            raise OptionError(
                f"{energy} has e^{energy.sites.log_states:.1f} combinations of discrete values, and tempering of mixed points sums up to "
                f"{self.most} out: give `Mixed(inner='tempering', most=...)` a larger number, or take 'mixed'."
            )
        for number in range(0 if isinstance(part, _Summed) else _ROUNDS):  # discrete numbers that suit, before steps are tuned
            own = noise.child(f"round {number}")
            v, _ = self.inner.approach(part, part.take(x), own, None)
            x = part.move(v, own.child("sites"))
            part = self._part(energy, x)
        inner, v = self.inner.tune(part, part.take(x), noise)
        return replace(self, inner=inner), part.move(v, noise.child("sites"))

    def approach(self, energy: Energy, x: Tensor, noise: Noise, level: float | None) -> tuple[Tensor, Tensor]:
        part = self._part(energy, x)
        v, arrived = self.inner.approach(part, part.take(x), noise, level)
        return part.move(v, noise.child("sites")), arrived

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        part = self._part(energy, x)
        return self._joined(energy, part, x, self.inner.init(part, part.take(x), noise))

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        part, before = self._part(energy, state.x), state
        v = part.take(state.x)
        # Summed over the discrete numbers, energies do not depend on those that were drawn.
        inner: State = before
        if isinstance(before, _MixedState):
            inner = State(v, before.part, before.slope) if isinstance(part, _Summed) else self.inner.init(part, v, noise)
        after, info = self.inner.step(part, inner, noise)
        return self._joined(energy, part, part.move(after.x, noise.child("sites")), after), info

    def warn(self, state: State, exact: bool) -> Sequence[SamplingWarning]:
        return self.inner.warn(state, exact) if isinstance(state, Replicas) else ()

    traits: ClassVar[Traits] = Traits(steps=200, states=("mixed",), from_pilots=True, warn=warn)

    def _joined(self, energy: Energy, part: _Continuous, x: Tensor, inner: State) -> State:
        if isinstance(inner, Replicas) and isinstance(part, _Summed):  # the replicas are of continuous numbers
            return replace(inner, x=x, energy=torch.where(inner.energy.isnan(), torch.nan, energy(x)), grad=torch.zeros_like(x))
        if type(inner) is not State:
            raise OptionError(f"The state of {self.inner} has more than points: take 'chees', 'hmc', 'mala' or 'langevin'.")
        return _MixedState(x, energy(x), torch.zeros_like(x), inner.energy, inner.grad)

    def _part(self, energy: Energy, x: Tensor) -> _Continuous:
        return (_Summed if energy.sites.log_states <= math.log(max(self.most, 1)) + 1e-9 else _Continuous)(energy, x)
