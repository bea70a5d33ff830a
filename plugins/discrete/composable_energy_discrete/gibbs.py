"""Gibbs sampling, exact draws of few states, annealing to the best states, and the choice among samplers of discrete points."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, has_rows, repeated
from composable_energy_discrete.neighbours import Blocks, choose_values, has_gradients, neighbour_energies, visible

_STATES = 2**16  # that are enumerated by default
_TOGETHER = 2**16  # states that are evaluated together
_SITES = 64  # values of all sites together that Gibbs sampling takes one after another by default


@dataclass(frozen=True)
class Blocked(State):
    """A state with the blocks of sites that are drawn together."""

    blocks: Blocks = field(metadata={"per_chain": False, "saved": False})


@dataclass(frozen=True)
class Gibbs(Sampler):
    r"""Gibbs sampling (Geman & Geman, 1984): each site is drawn from its exact conditional distribution, given the others.

    A step is a sweep over all sites. Sites that do not interact are drawn together, in as few blocks as a greedy colouring finds, where all
    terms of the energy are a `LocalEnergy` or a distribution of independent sites: two on a square lattice. Other energies are evaluated
    for each value of one site after another, $\sum_s K_s$ times in a sweep.

    Args:
        sweeps: The sweeps of a step. What a step costs besides, such as the energy of its point, is shared by them.

    References:
        Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images (Geman & Geman, 1984),
        https://doi.org/10.1109/TPAMI.1984.4767596
    """

    sweeps: int = 1

    traits: ClassVar[Traits] = Traits(steps=200, states=("discrete",), gradients=0)

    def __post_init__(self) -> None:
        check_integer("sweeps", self.sweeps)

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        return Blocked(x, energy(x), torch.zeros_like(x), Blocks(energy, x))

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        return sweep(energy, state, noise, 1.0, self.sweeps), Info()


def sweep(energy: Energy, state: Any, noise: Noise, temperature: float | Tensor, count: int = 1) -> State:
    """Draws all sites, a block after another, at one temperature or that of each point, and all of them `count` times.

    A chain may have several points, one after another.
    """
    x, blocks, sites = state.x, state.blocks, energy.sites
    shape = len(x), len(sites.counts)
    like = x.new_empty((len(noise.chains), math.prod(shape) // max(1, len(noise.chains))))
    uniform = (noise.uniforms(like, stream=number).view(shape) for number in range(count))
    if blocks.links:
        rows = sites.index(x).to(x.dtype).T.contiguous()  # chains last, so that neighbours are rows
        for numbers in uniform:
            rows = blocks.draw_linked(rows, numbers.T, temperature)
        x = sites.place(x, rows.T.long())
    else:
        for numbers in uniform:
            x = _swept(energy, x, blocks, numbers, temperature)
    return replace(state, x=x, energy=energy(x))


def _swept(energy: Energy, x: Tensor, blocks: Blocks, uniform: Tensor, temperature: float | Tensor) -> Tensor:
    sites, wide = energy.sites, temperature.view(-1, 1, 1) if isinstance(temperature, Tensor) else temperature
    for chosen, numbers in zip(blocks.sites, blocks.numbers, strict=True):
        if blocks.known:
            values = blocks.choose(energy, x, uniform, temperature)
        else:
            energies = neighbour_energies(energy, x, chosen)
            values = sites.index(x).index_copy(1, chosen, choose_values(-energies / wide, uniform[:, chosen]).long())
        placed = sites.place(x, values)
        x = torch.where(numbers.view(x.shape[1:]), placed, x) if blocks.known else placed
    return x


@dataclass(frozen=True)
class Annealing(Sampler):
    r"""Gibbs sampling while the temperature falls, to points of low energy: for constraints that few states fulfil.

    A step is a sweep at the temperature $T_0 (T_1 / T_0)^{t / n}$. Chains end in states of low energy, not in draws of the density.

    Args:
        sweeps: $n$.
        hottest: $T_0$.
        coldest: $T_1$.

    References:
        Optimization by simulated annealing (Kirkpatrick et al., 1983), https://doi.org/10.1126/science.220.4598.671
    """

    sweeps: int = 500
    hottest: float = 3.0
    coldest: float = 0.05

    traits: ClassVar[Traits] = Traits(states=("discrete",), gradients=0, minimizes=True)

    def __post_init__(self) -> None:
        check_integer("sweeps", self.sweeps)
        check_number("hottest", self.hottest, above=0)
        check_number("coldest", self.coldest, above=0)

    @property
    def total_steps(self) -> int:
        return self.sweeps

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        return Gibbs().init(energy, x, noise)

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        temperature = self.hottest * (self.coldest / self.hottest) ** (noise.step / self.sweeps)
        return sweep(energy, state, noise, temperature), Info(scalars={"temperature": temperature})


@dataclass(frozen=True)
class _Table(State):
    """A state with minus the energies of all states, which all chains share; empty where chains have conditions of their own."""

    logits: Tensor = field(metadata={"per_chain": False})


@dataclass(frozen=True)
class Enumeration(Sampler):
    """Exact draws, each independent of the one before: the energies of all states are evaluated once.

    Args:
        most: The largest number of states.
    """

    most: int = 2**20

    traits: ClassVar[Traits] = Traits(steps=8, states=("discrete",), gradients=0)

    def __post_init__(self) -> None:
        check_integer("most", self.most)

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        if energy.sites.log_states > math.log(self.most) + 1e-9:
            raise OptionError(f"{energy} has e^{energy.sites.log_states:.1f} states, and at most {self.most:,} are enumerated.")
        states = () if has_rows(energy) else all_states(energy, x).split(_TOGETHER)
        logits = torch.cat([x.new_empty(0), *(-visible(energy(some)) for some in states)])
        # The density may be 0 at the start points.
        return self.step(energy, _Table(x, x.new_zeros(len(x)), torch.zeros_like(x), logits.double()), noise)[0]

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        logits, uniform, index = cast(_Table, state).logits, noise.uniform(state.x.double()), []
        if len(logits):
            shares = logits.softmax(0).cumsum(0)
            chosen = torch.searchsorted(shares, uniform * shares[-1], right=True).clamp_max(len(shares) - 1)
        else:
            points = all_states(energy, state.x)
            rows = repeated(energy, len(state.x), len(points))(points.repeat(len(state.x), *[1] * (points.ndim - 1)))
            chosen = choose_values(-visible(rows).view(len(state.x), -1).double(), uniform).long()
        for count in reversed(energy.sites.counts.tolist()):  # the last site varies first in `all_states`
            index.insert(0, chosen % count)
            chosen = chosen // count
        x = energy.sites.place(state.x, torch.stack(index, 1))
        return replace(state, x=x, energy=energy(x)), Info()


def all_states(energy: Energy, x: Tensor) -> Tensor:
    """Returns all states of the discrete numbers of points, with shape (states, *); continuous ones are those of the first point."""
    counts = energy.sites.counts.tolist()
    index = torch.cartesian_prod(*(torch.arange(count, device=x.device) for count in counts)).reshape(-1, len(counts))
    return energy.sites.place(x[:1].expand(len(index), *x.shape[1:]), index)


@dataclass(frozen=True)
class Discrete(Sampler):
    """Chooses among the samplers of discrete points: `trace.sampler` is the one that draws.

    It is `Enumeration` of up to 65,536 states, `Gibbs` where blocks of sites are known to be independent, or sites have few values in all,
    and `DiscreteLangevin` of many sites; `Mixed` where some numbers are continuous.
    """

    traits: ClassVar[Traits] = Traits(states=("discrete", "mixed"), gradients=0)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        from composable_energy_discrete.gradients import DiscreteLangevin
        from composable_energy_discrete.mixed import Mixed

        if (sites := energy.sites).mixed:
            chosen: Sampler = Mixed()
        elif sites.log_states <= math.log(_STATES) + 1e-9:
            chosen = Enumeration()
        elif Blocks(energy, x).known or int(sites.counts.sum()) <= _SITES or not has_gradients(energy):
            chosen = Gibbs()
        else:
            chosen = DiscreteLangevin()
        return chosen.tune(energy, x, noise)

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        raise OptionError("`Discrete` chooses a sampler when it is tuned: let `sample` do that, or take one, such as `Gibbs`.")
