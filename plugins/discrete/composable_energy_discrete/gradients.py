"""Samplers of discrete points that choose changes by gradients: of one site, and of all sites at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.options import check_flag, check_integer, check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits
from composable_energy_discrete.neighbours import choose_values, distances, has_gradients, slopes
from composable_energy_mcmc.batch import judge, select

_FAR = 3.0  # a squared distance: that of neighbouring numbers is 1, of one-hot rows 2
_FIRST, _LEAST, _MOST = 0.5, 1e-3, 1e3  # of step sizes


def _judge(state: State, proposal: State, log_ratio: Tensor, uniform: Tensor) -> tuple[State, Info]:
    """Accepts proposals with probability min(1, e^r); those without density are rejected."""
    accepted, rates = judge(proposal.energy, log_ratio, uniform.log())
    return select(accepted, proposal, state), Info(rates)


def _slopes(energy: Energy, state: State) -> Tensor:
    """Returns to first order the change of the energy by each value of each site; infinite for values that a site does not take."""
    return slopes(energy.sites, state.x, state.grad.nan_to_num(0.0)).masked_fill(~energy.sites.allowed, math.inf)


@dataclass(frozen=True)
class GibbsWithGradients(Sampler):
    r"""Gibbs with gradients (Grathwohl et al., 2021): a site and its new value are proposed together, and accepted or rejected.

    The change to value $k$ of site $s$ is proposed with probability $\propto e^{-\Delta_{sk} / 2}$, where the gradient gives the change
    $\Delta$ of the energy to first order. Whole numbers change by 1: further away the first order says little. A step costs one gradient.

    Args:
        changes: The number of proposals of a step, one after another.

    References:
        Oops I took a gradient: scalable sampling for discrete distributions (Grathwohl et al., 2021), https://arxiv.org/abs/2102.04509
    """

    changes: int = 1

    traits: ClassVar[Traits] = Traits(steps=2000, states=("discrete",))

    def __post_init__(self) -> None:
        check_integer("changes", self.changes)

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        rates = []
        for change in range(self.changes):
            state, info = self._change(energy, state, noise, change)
            rates.append(info.acceptance)
        return state, Info(torch.stack(rates).mean(0))

    def _change(self, energy: Energy, state: State, noise: Noise, change: int) -> tuple[State, Info]:
        sites, index = energy.sites, energy.sites.index(state.x)
        forward = self._log_proposals(energy, state, index)
        values = sites.allowed.shape[1]
        chosen = choose_values(forward.flatten(1), noise.uniform(state.x, stream=2 * change)).long()
        site, value = chosen // values, chosen % values
        rows = torch.arange(len(index), device=index.device)
        moved = index.index_put((rows, site), value)
        x = sites.place(state.x, moved)
        proposal = State(x, *energy.with_gradient(x))
        back = self._log_proposals(energy, proposal, moved)
        log_ratio = state.energy - proposal.energy + back[rows, site, index[rows, site]] - forward[rows, site, value]
        return _judge(state, proposal, log_ratio, noise.uniform(state.x, stream=2 * change + 1))

    def _log_proposals(self, energy: Energy, state: State, index: Tensor) -> Tensor:
        """Returns the logarithms of the probabilities of changes, with shape $(B, S, K)$."""
        far = distances(energy.sites, state.x) > _FAR
        logits = (-_slopes(energy, state) / 2).masked_fill(far, -math.inf).scatter(2, index[..., None], -math.inf)
        return logits.flatten(1).log_softmax(1).view_as(logits)


@dataclass(frozen=True)
class DiscreteLangevin(Sampler):
    r"""Langevin dynamics of discrete points (Zhang et al., 2022): all sites move at once, accepted or rejected together.

    Site $s$ takes value $k$ with probability $\propto e^{-\Delta_{sk} / 2 - \lVert v_k - x_s \rVert^2 / (2 \alpha)}$, where the gradient
    gives the change $\Delta$ of the energy to first order. A step costs one gradient.

    Args:
        step_size: $\alpha > 0$; None tunes it on pilot chains.
        corrected: Whether proposals are accepted or rejected. Without it draws have a bias, which falls with the step size.
        acceptance: The mean acceptance to tune for.
        tuning_steps: The number of steps of the pilot chains.

    References:
        A Langevin-like sampler for discrete distributions (Zhang, Liu & Liu, 2022), https://arxiv.org/abs/2206.09914
    """

    step_size: float | None = None
    corrected: bool = True
    acceptance: float = 0.574
    tuning_steps: int = 200

    traits: ClassVar[Traits] = Traits(steps=1000, states=("discrete",), gradients=1)

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size, above=0, optional=True)
        check_flag("corrected", self.corrected)
        check_number("acceptance", self.acceptance, above=0, below=1)
        check_integer("tuning_steps", self.tuning_steps)

    @property
    def tuned(self) -> bool:
        return self.step_size is not None

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        state, log_size = State(x, *energy.with_gradient(x)), math.log(_FIRST)
        kept = list[float]()
        for step in range(1, self.tuning_steps + 1):
            state, info = replace(self, step_size=math.exp(log_size), corrected=True).step(energy, state, noise.at(step))
            rate = torch.zeros(()) if info.acceptance is None else info.acceptance.nan_to_num(0.0).mean()
            log_size += 2 * step**-0.5 * (rate.item() - self.acceptance)
            log_size = min(max(log_size, math.log(_LEAST)), math.log(_MOST))
            kept.append(log_size)
        late = kept[len(kept) // 2 :]
        return replace(self, step_size=math.exp(round(sum(late) / len(late), 3))), state.x

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        if not self.corrected and not has_gradients(energy):
            raise OptionError(f"{energy} has parts without gradients, which would not count: leave out corrected=False, or take 'gibbs'.")
        return State(x, *energy.with_gradient(x))

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        if self.step_size is None:
            raise OptionError("DiscreteLangevin has no step_size yet: give one, or let `sample` tune it.")
        sites, index = energy.sites, energy.sites.index(state.x)
        forward = self._log_proposals(energy, state)
        moved = choose_values(forward, noise.uniforms(forward[..., 0])).long()
        x = sites.place(state.x, moved)
        proposal = State(x, *energy.with_gradient(x))
        if not self.corrected:
            return proposal, Info()
        back = self._log_proposals(energy, proposal)
        log_ratio = state.energy - proposal.energy
        log_ratio = log_ratio + (back.gather(2, index[..., None]) - forward.gather(2, moved[..., None])).sum((1, 2))
        return _judge(state, proposal, log_ratio, noise.uniform(state.x, stream=1))

    def _log_proposals(self, energy: Energy, state: State) -> Tensor:
        """Returns the logarithms of the probabilities of values, with shape $(B, S, K)$."""
        return (-_slopes(energy, state) / 2 - distances(energy.sites, state.x) / (2 * (self.step_size or 1.0))).log_softmax(2)
