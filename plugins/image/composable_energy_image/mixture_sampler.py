"""Draws from expressions over a `CodeMixture`: independent proposals from those of its Gaussians where the expression is probable."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import ExpressionError
from composable_energy.options import check_integer
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, has_rows, plain_energy
from composable_energy_image.code_mixture import CodeMixture
from composable_energy_mcmc import Annealed
from composable_energy_mcmc.batch import judge

_EACH = 8  # draws of each Gaussian that tell how probable the expression is there
_ROWS = 1024  # of them at a time
_PROPOSALS = 512  # that tell how many steps are enough
_MOST = 10.0  # times the mean may the ratio of densities be at most; beyond, noise levels are the better way
_LEFT = 1e-3  # the share of chains that may remain where they started


@dataclass(frozen=True)
class _Ratio(State):
    """A state with the log ratio of the densities of the expression and of proposals, up to a constant, with shape $(B,)$."""

    log_ratio: Tensor


@dataclass(frozen=True)
class MixtureDraws(Sampler):
    r"""Draws expressions over the density $\sum_k w_k N_k$ of a `CodeMixture` by independent proposals; others by `annealed`.

    Proposals are draws of $q \propto \sum_k w_k a_k N_k$, where $a_k$ is the mean of $e^{-\text{evidence}}$ over draws of $N_k$, and are
    accepted by Metropolis and Hastings. The density of an event is that of some of the Gaussians, so the ratio to $q$ is at most $1 / a_k$
    for one of them. After a few steps all chains are draws of the density, but for a share of .001; pilots tell how many. Where some ratio
    is more than ten times the mean, chains have conditions of their own, or the base has a weight, `annealed` takes over with these
    options.

    Args:
        levels: Noise levels of `annealed`.
        sigma_max: The highest of them.
        sigma_min: The lowest of them, at which the mixture is drawn.
        corrector_steps: Steps at each level.
        delta: Their step size, in units of the square of the level.
        log_means: $\log a_k$, tuned, with shape $(K,)$.
        draws: The number of proposals for each chain, tuned.
    """

    levels: int = 25
    sigma_max: float = 4.0
    sigma_min: float = 0.05
    corrector_steps: int = 3
    delta: float = 0.25
    log_means: Tensor | None = None
    draws: int = 1

    def check_init(self, energy: Energy, x: Tensor) -> Sampler:
        """Returns the sampler along noise levels, which starts at given points; these draws do not depend on a start."""
        self._annealed.check_init(energy, x)
        return self._annealed

    def levels_of(self, energy: Energy) -> tuple[float, float, float]:
        """Returns the level of the draws, and two at which energies are compared, for `Traits.binds`."""
        return self.sigma_min, math.sqrt(self.sigma_min * self.sigma_max), self.sigma_max

    traits: ClassVar[Traits] = Traits(values=False, binds={"sigma": levels_of}, check_init=check_init)  # those of `annealed`

    def __post_init__(self) -> None:
        check_integer("draws", self.draws)
        if self.log_means is not None:
            object.__setattr__(self, "traits", replace(self.traits, values=True))

    @property
    def tuned(self) -> bool:
        return self.log_means is not None

    @property
    def total_steps(self) -> int:
        return self.draws

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        if "sigma" not in energy.conditions:
            raise ExpressionError(f"mixture follows noise levels, and no term of {energy} has one unbound: take another, such as `chees`.")
        mixture = find_mixture(energy) if energy.has_value and not has_rows(energy) else None
        if mixture is not None and (found := self._tuned(energy, mixture, x, noise)) is not None:
            return found, x
        return self._annealed.tune(energy, x, noise)

    @property
    def _annealed(self) -> Annealed:
        return Annealed(self.levels, self.sigma_max, self.sigma_min, self.corrector_steps, self.delta)

    def _tuned(self, energy: Energy, mixture: CodeMixture, x: Tensor, noise: Noise) -> MixtureDraws | None:
        """Returns the sampler with its shares and its number of steps; None if no small number suffices."""
        count, weights = len(mixture.means), []
        components = torch.arange(count, device=x.device).repeat_interleave(_EACH)
        for number, part in enumerate(components.split(_ROWS)):
            own = noise.child(f"components {number}").for_chains(range(len(part)))
            z = mixture.draw(part, self.sigma_min, own.normal(x[:1].expand(len(part), -1)))
            weights.append(mixture(z, sigma=self.sigma_min) - energy(z, sigma=self.sigma_min))
        tuned = replace(self, log_means=torch.cat(weights).view(count, _EACH).logsumexp(1) - math.log(_EACH))
        own = noise.child("proposals").for_chains(range(_PROPOSALS))
        ratios = tuned._propose(energy, x[:1].expand(_PROPOSALS, -1), own).log_ratio.double()
        if not (highest := (ratios.max() - ratios.logsumexp(0) + math.log(_PROPOSALS)).exp().item()) <= _MOST:
            return None
        return replace(tuned, draws=math.ceil(math.log(_LEFT) / math.log1p(-1 / max(highest, 1.1))))

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        return self._propose(energy, x, noise)

    def step(self, energy: Energy, state: Any, noise: Noise) -> tuple[State, Info]:
        found = self._propose(energy, state.x, noise)
        accepted, rates = judge(found.energy, found.log_ratio - state.log_ratio, noise.uniform(state.x, stream=1).log())
        pairs = ((found.x, state.x), (found.energy, state.energy), (found.grad, state.grad), (found.log_ratio, state.log_ratio))
        return _Ratio(*(torch.where(accepted if new.ndim == 1 else accepted[:, None], new, old) for new, old in pairs)), Info(rates)

    def _propose(self, energy: Energy, x: Tensor, noise: Noise) -> _Ratio:
        mixture, log_means = cast(CodeMixture, find_mixture(energy)), cast(Tensor, self.log_means).to(x)
        ends = (mixture.log_weights + log_means).double().softmax(0).cumsum(0)
        z = mixture.draw(torch.searchsorted(ends, noise.uniform(x).double()).clamp(max=len(ends) - 1), self.sigma_min, noise.normal(x))
        energies = energy(z, sigma=self.sigma_min)
        return _Ratio(z, energies, torch.zeros_like(z), -energies - (mixture.log_joint(z, self.sigma_min) + log_means).logsumexp(1))


def find_mixture(energy: Energy) -> CodeMixture | None:
    """Returns the mixture that an expression, as a sampler gets it, is relative to or consists of; None for any other expression."""
    plain, _ = plain_energy(energy)
    bases = [(base.energy, base.weight) for base in getattr(plain, "bases", ())] or [(plain, 1.0)]
    net = getattr(bases[0][0], "net", None)
    return net if isinstance(net, CodeMixture) and len(bases) == 1 and float(bases[0][1]) == 1 else None
