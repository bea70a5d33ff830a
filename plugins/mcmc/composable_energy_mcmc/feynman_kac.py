"""Feynman-Kac sampling: weighted particles follow an expression down the noise levels, by the scores of its leaves alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from composable_energy import Energy, SamplingWarning
from composable_energy.errors import OptionError
from composable_energy.options import check_instance, check_integer, check_number
from composable_energy.sampling import Info, Noise, Sampler, Traits
from composable_energy_mcmc.annealed import GUIDED_STEPS
from composable_energy_mcmc.annealing.composed import ComposedDensity, WeightedParticles, combine, products, rise
from composable_energy_mcmc.annealing.path import Gaussian
from composable_energy_mcmc.annealing.schedule import effective_sample_size, systematic_resample
from composable_energy_mcmc.batch import sum_of_each
from composable_energy_mcmc.level_gradient import check_precise_terms
from composable_energy_mcmc.noise_levels import LevelStart, NoiseLevels, find_start, fit_start, known_range

_UNIT, _DOUBLINGS = (0.5, 2.0), 10
_COLLAPSED, _FEWEST = 0.1, 8  # a share of the effective number of chains, and the number from which it says something
_ENOUGH = 64
_LAST_STEPS = 3  # at the last level, after the resampling, so that copies separate


@dataclass(frozen=True)
class FeynmanKac(NoiseLevels):
    r"""Feynman-Kac correctors: draws any expression over energies with noise levels, also if only their scores are known.

    The leaves of the expression are densities $p_{i,\sigma}$ of data with noise of level $\sigma$, with scores
    $s_i = \nabla \log p_{i,\sigma}$. The expression is a function $F$ of their log densities, $\log q_\sigma = F(l_1, \dots, l_M)$:
    $l_A + l_B - l_0$ for `A & B` over a base, $\log(e^{l_A} + e^{l_B})$ for `A | B`, $l_A - \mathrm{softplus}(l_B - l_0)$ for `A & ~B`,
    and so on for nested ones. Its score $s_q = \sum_i F_i s_i$ is not that of data with noise, so points that follow it alone have
    another density. Weights correct it. From level $s$ to the next level $n$, with $d = s^2 - n^2$ and
    $\rho = (s^2 + v^2) / (n^2 + v^2)$,

    $$\Delta = d\, s_q + \sqrt{d / \rho}\; \xi, \qquad x \leftarrow x + \Delta$$
    $$l_i \leftarrow l_i + \rho \bigl( \langle s_i, \Delta \rangle - \tfrac d2 \lvert s_i \rvert^2 \bigr)
      - \tfrac{\lvert \Delta \rvert^2}{2 (n^2 + v^2)} + \tfrac D2 \log \rho$$
    $$\log w \leftarrow \log w + \tfrac{\rho d}{2} \Bigl( \sum_{ij} F_{ij} \langle s_i, s_j \rangle + \lvert s_q \rvert^2
      - \sum_i F_i \lvert s_i \rvert^2 \Bigr) + \bigl( \sum_i F_i - 1 \bigr) c$$

    for points with $D$ coordinates. $F_i$ and $F_{ij}$ are derivatives of $F$ by automatic differentiation, and $c$ is the mean of the
    last two terms of $l_i$. Neither divergences of networks nor values are needed: the divergence of $s_q$ cancels those of the $s_i$
    (Skreta et al., 2025, for products and guidance; decision record 23 has the general form). The factor $\rho$ makes a step exact for a
    Gaussian with standard deviation $v$, and tends to 1 with fine levels. Log densities begin as those of a Gaussian for each leaf,
    fitted to its score at the highest level, so that mixtures of scores have the right shares without an estimate of $\log Z$.

    All chains are resampled when their effective number falls below a share, and before the last level. At each level, `corrector_steps`
    Langevin steps bring the points nearer to $q_\sigma$ (Du et al., 2023), with log densities carried along by
    $l_i(x') - l_i(x) \approx \tfrac12 \langle s_i(x) + s_i(x'), x' - x \rangle$.

    A leaf with values has the log density $-E_i$. How its constant changes from level to level is estimated from all chains, so that the
    density is that of the expression at the last level. Evidence with values enters the weights by how much it changes from level to level.
    Terms without noise levels, such as a network of pictures or an observation, are evaluated at the denoised point of the other terms (see
    `composable_energy_mcmc.level_gradient`). At the last step the points move to their denoised places, as in `annealed`.

    A run costs about `levels * (corrector_steps + 1)` gradients of each leaf. `trace.scalars` has the noise level `sigma`, the effective
    number of chains `ess`, the number of first points that are `ancestors`, and `log_z`, the estimate of the logarithm of $\int q$, where
    the leaves are normalised. A collapse of the weights warns. It comes with evidence that is sharpened by large factors, and with many
    dimensions in which the leaves differ. Weights that collapse are dropped: from there on draws follow the correctors alone, and
    `weighted` in `trace.scalars` is 0. Resampling makes draws depend on the number of chains; `init` is not used.

    Args:
        levels: The number of noise levels, at least 2, falling geometrically; None takes 100, more for a range above .02 to 10.
        sigma_max: The highest level; None for the highest that all models in the expression know, at most 200 or what wide data need, else
            that of its recommendation, else 10 or the first higher one at which points of all leaves are nearly Gaussian.
        sigma_min: The lowest level; None as above, else .02, or a fiftieth of the narrowest coordinate of a leaf.
        corrector_steps: Langevin steps at each level; one at most with terms without noise levels.
        delta: Their step size, in units of $s^2$.
        spread: $v$, the standard deviation of the data, about; None takes $v^2 = \sum_i F_i / \sum_i (F_i / v_i^2)$ of the leaves at the
            highest level, or 1 where it is about 1.
        resample_below: The share of the effective number of chains below which they are resampled.
        weighted: Whether to weigh; False follows the summed scores and correctors alone. None weighs until the effective number of chains
            falls below a tenth of them.
        gaussians: Gaussians of the leaves at the highest level; None fits them to pilot points.
        first: The Gaussian from which chains start; None is $N(0, \sigma_\text{max}^2 + v^2)$.

    References:
        Feynman-Kac correctors in diffusion (Skreta et al., 2025), https://arxiv.org/abs/2503.02819
        The superposition of diffusion models using the Ito density estimator (Skreta et al., 2024), https://arxiv.org/abs/2412.17762
        Reduce, reuse, recycle (Du et al., 2023), https://arxiv.org/abs/2302.11552
    """

    corrector_steps: int = 1
    delta: float = 0.1
    spread: float | None = None
    resample_below: float = 0.5
    weighted: bool | None = None
    gaussians: tuple[Gaussian, ...] | None = None
    first: Gaussian | None = None

    usual: ClassVar[tuple[int, float, float]] = (100, 0.02, 10.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("spread", self.spread, above=0, optional=True)
        check_integer("corrector_steps", self.corrector_steps, 0)
        check_number("delta", self.delta, above=0, below=1)
        check_number("resample_below", self.resample_below, least=0)
        for gaussian in check_instance("gaussians", self.gaussians, tuple) or ():
            check_instance("gaussians", gaussian, Gaussian)
        check_instance("first", self.first, Gaussian)
        check_instance("weighted", self.weighted, bool)

    @property
    def _spread(self) -> float:
        return self.spread or 1.0

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        return self._first(like).to(like).from_standard(noise.normal(like))

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        if self.gaussians is not None:
            return self, x
        density, known = ComposedDensity(energy), known_range(energy)
        leaves = [self.find_start(leaf, x, noise) for leaf in density.leaves]
        low = self.sigma_min or known[0] or min(leaf[0] for leaf in leaves)
        high = min(max(leaf[1] for leaf in leaves), known[1] or math.inf)
        tuned, found = first = self._fit(density, x, noise, low, high)
        highest = high if self.sigma_max else known[1] or high * 2**_DOUBLINGS
        while not found.fits and found.sigma < highest:
            tuned, found = self._fit(density, x, noise, low, min(2 * found.sigma, highest))
        tuned, found = (tuned, found) if found.fits else first  # the weights tell whether its points are too far from the Gaussian
        return tuned if found.is_standard else replace(tuned, first=Gaussian(found.mean, found.scale)), x

    def _fit(self, density: ComposedDensity, x: Tensor, noise: Noise, low: float, high: float) -> tuple[FeynmanKac, LevelStart]:
        """Returns the sampler with levels and the Gaussians of the leaves at the highest, and that of the expression there."""
        starts = [find_start(leaf, x, noise, (low, high), (low, high), warn=False)[2] for leaf in density.leaves]
        gaussians = tuple(Gaussian(start.mean.double(), start.scale.double()) for start in starts)
        tuned = replace(self, levels=self.count_between(low, high), sigma_min=low, sigma_max=high, gaussians=gaussians)
        xi = noise.child("expression").normal(torch.zeros_like(x))
        if self.spread is None:
            slopes = tuned._first_state(density, xi * math.hypot(high, 1), range(len(xi))).slopes.mean(0)
            precisions = torch.stack([1 / start.variance.double().mean() for start in starts]).to(slopes)
            spread = (slopes.sum() / (slopes * precisions).sum()).sqrt().item()
            tuned = replace(tuned, spread=None if not spread > 0 or _UNIT[0] < spread < _UNIT[1] else spread)
        return tuned, fit_start(lambda points: tuned._first_state(density, points, range(len(points))).grad, xi, high)

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> WeightedParticles:
        density, base = ComposedDensity(energy), self._first(x)
        if len(self._gaussians) != len(density.leaves):
            listed = f"There are {len(self._gaussians)} Gaussians for the {len(density.leaves)} leaves of {energy}"
            raise OptionError(f"{listed}: leave them out.")
        state = self._first_state(density, self.start(x, noise), noise.chains)
        log_weight = state.value + base.energy(state.x.double())
        return replace(state, log_weight=log_weight if self._weighs else torch.zeros_like(log_weight))

    def _first_state(self, density: ComposedDensity, x: Tensor, chains: Sequence[int]) -> WeightedParticles:
        """Returns the state of points at the highest level, without weights."""
        high, base = self.sigma_range[1], self._first(x)
        values, scores = density.scores(x, high)
        starts = torch.stack([-gaussian.to(x.double()).energy(x.double()) for gaussian in self._gaussians], 1)
        zeros = torch.zeros_like(starts)
        blank = WeightedParticles(
            x=x,
            energy=zeros[:, 0],
            grad=x,
            log_weight=zeros[:, 0],
            log_density=torch.where(density.known.to(x.device), values, starts),
            scores=scores,
            slopes=zeros,
            potential=zeros[:, 0],
            seen=(base.mean + (x - base.mean) * (self._spread / base.scale).square()).to(x),
            widening=zeros[:, 0],
            value=zeros[:, 0],
            residual=zeros,
            ancestor=torch.tensor(list(chains), device=x.device),
            lowest=1.0,
            weighted=self._weighs,
        )
        return self._settle(density, blank, high)

    def _first(self, like: Tensor) -> Gaussian:
        """The Gaussian from which chains start, in float64."""
        if self.first is not None:
            return self.first.to(like.double())
        return Gaussian.from_options(0.0, math.hypot(self.sigma_range[1], self._spread), like.double())

    def step(self, energy: Energy, state: WeightedParticles, noise: Noise) -> tuple[WeightedParticles, Info]:
        density, step = ComposedDensity(energy), noise.step
        s, n = (self.level(min(number, self.total_steps)) for number in (step, step + 1))
        count = min(self.corrector_steps, GUIDED_STEPS) if density.has_plain else self.corrector_steps
        if step < self.total_steps:
            state = self._descend(density, state, s, n, noise)
        else:
            count = max(count, _LAST_STEPS) if self._weighs else count
        length = self.delta * n**2
        scale = math.sqrt(2 * length - length**2 / (n**2 + self._spread**2))  # exact for a Gaussian with the standard deviation `_spread`
        for number in range(1, count + 1):
            x = torch.add(state.x - length * state.grad, noise.normal(state.x, stream=2 * number), alpha=scale)
            state = self._move(density, state, x, n)
        if step >= self.total_steps:
            state = self._move(density, state, torch.sub(state.x, state.grad, alpha=n**2), n)
            first = self._first(state.x)
            x = check_precise_terms(energy, state.x, n, float((first.mean.abs() + first.scale).max()), "feynman-kac")
            state = replace(state, x=x)
        return state, Info(scalars={"sigma": s})

    def couple(self, energy: Energy, state: WeightedParticles, noise: Noise) -> tuple[WeightedParticles, Mapping[str, float]]:
        if not self._weighs:
            return state, {"weighted": 0.0}
        ancestors = float(len(state.ancestor.unique()))
        if not state.weighted:
            if noise.step == self.total_steps:
                self._warn(state, energy)
            return state, {"weighted": 0.0, "ess": math.nan, "ancestors": ancestors, "log_z": math.nan}
        count, log_weight = len(state.x), state.log_weight
        share = torch.softmax(log_weight, 0)[:, None] * state.slopes.abs()  # a leaf is followed well where it counts
        drift = (share * state.residual).sum(0) / share.sum(0).clamp_min(torch.finfo(share.dtype).tiny)
        log_weight = log_weight + (state.slopes * drift).sum(1)
        log_z = (log_weight.logsumexp(0) - math.log(count)).item()
        if not math.isfinite(log_z):
            raise OptionError(f"No chain has reached a point where {energy} has a density: take more chains, or a higher `sigma_max`.")
        ess = effective_sample_size(log_weight)
        state = replace(state, log_weight=log_weight, lowest=min(state.lowest, ess / count), residual=torch.zeros_like(state.residual))
        scalars = {"weighted": 1.0, "ess": ess, "ancestors": ancestors, "log_z": log_z}
        if self.weighted is None and count >= _FEWEST and ess < count * _COLLAPSED:
            return replace(state, weighted=False), {**scalars, "weighted": 0.0}
        if noise.step == self.total_steps:
            self._warn(state, energy)
        if noise.step != self.total_steps - 1 and ess >= count * self.resample_below:
            return state, scalars
        rows = systematic_resample(log_weight, noise.uniform(state.x, stream=1)[0])
        taken = {name: value[rows] for name, value in vars(state).items() if isinstance(value, Tensor)}
        return replace(state, **{**taken, "log_weight": torch.full_like(log_weight, log_z)}), scalars

    def check_init(self, energy: Energy, x: Tensor) -> None:
        """Raises, because the particles start at draws whose density is known."""
        raise OptionError(f"feynman-kac draws its start points, so that the weights of {energy} are known: leave out init.")

    traits: ClassVar[Traits] = replace(NoiseLevels.traits, log_densities=True, start=start, couple=couple, check_init=check_init)

    @property
    def _weighs(self) -> bool:
        return self.weighted is not False

    @property
    def _gaussians(self) -> tuple[Gaussian, ...]:
        if self.gaussians is None:
            raise OptionError("FeynmanKac has no Gaussians for the highest level yet: let `sample` tune it.")
        return self.gaussians

    def _descend(self, density: ComposedDensity, state: WeightedParticles, s: float, n: float, noise: Noise) -> WeightedParticles:
        """Moves points from level $s$ to level $n$, with their weights and log densities."""
        d, low, size, score = s**2 - n**2, n**2 + self._spread**2, state.x[0].numel(), -state.grad
        rho = 1 + d / low
        change = torch.add(d * score, noise.normal(state.x), alpha=math.sqrt(d / rho))
        rises = products(state.scores, change[:, None]) - d / 2 * products(state.scores, state.scores)
        common = size / 2 * math.log(rho) - sum_of_each(change.double().square()) / (2 * low)
        mean_common = size / 2 * (math.log(rho) - d / rho / low) - sum_of_each(score.double().square()) * d**2 / (2 * low)
        log_weight = state.log_weight + rho * d / 2 * state.potential + (state.slopes.sum(1) - 1) * mean_common
        after = self._move(density, state, state.x + change, n, state.log_density + rho * rises + common[:, None])
        if density.has_others:
            pull = score - combine(state.slopes, state.scores)
            old = density.value(after.log_density, state.x, s, state.seen) + state.widening
            log_weight = log_weight + rise(old, after.value) - rho * products(pull[:, None], change[:, None])[:, 0]
        left = after.log_density - state.log_density - rho * rises - common[:, None]
        residual = torch.where(density.known.to(log_weight.device), left, 0.0)
        return replace(after, log_weight=log_weight, residual=residual) if self._weighs else after

    def _move(
        self, density: ComposedDensity, state: WeightedParticles, x: Tensor, level: float, log_density: Tensor | None = None
    ) -> WeightedParticles:
        """Returns the state at other points of a level, with their log densities; None for points at the level of the state."""
        values, scores = density.scores(x, level)
        if log_density is None:
            log_density = state.log_density + products(state.scores + scores, (x - state.x)[:, None]) / 2
        log_density = torch.where(density.known.to(x.device), values, log_density)
        return self._settle(density, replace(state, x=x, scores=scores, log_density=log_density), level)

    def _settle(self, density: ComposedDensity, state: WeightedParticles, level: float) -> WeightedParticles:
        """Returns a state with $F$ and its derivatives at its points and log densities."""
        seen, pull, widening = state.seen, None, torch.zeros_like(state.value)
        if density.has_plain:
            seen, found, wide = density.denoise(state.log_density, state.scores, state.x, level)
            pull, widening = -wide.pull, wide.rise.double()
        else:
            found = density.derivatives(state.log_density, state.x, level, seen)
        score = combine(found.slopes, state.scores) + found.direct
        score = score if pull is None else score + pull
        flat = state.scores.flatten(2).double() if state.scores.ndim > 2 else state.scores[..., None].double()
        gram = flat @ flat.mT
        squares = sum_of_each(score.double().square()) - (found.slopes * gram.diagonal(dim1=1, dim2=2)).sum(1)
        energies = torch.zeros_like(found.value) if not density.known.all() else -found.value
        potential = (found.curvatures * gram).sum((1, 2)) + squares
        own = {"seen": seen, "widening": widening, "value": found.value + widening}
        return replace(state, energy=energies.to(state.x), grad=-score, slopes=found.slopes, potential=potential, **own)

    def _warn(self, state: WeightedParticles, energy: Energy) -> None:
        few = len(state.x) < _FEWEST and len(ComposedDensity(energy).leaves) + ComposedDensity(energy).has_others > 1
        if self.weighted is None and few:
            seen = f"Weights correct the draws of {energy} only among the chains of a call, and this one has {len(state.x)}."
            SamplingWarning("ess", seen, f"Draw {_ENOUGH} chains or more, and take some of them.").emit()
        if state.lowest < _COLLAPSED and len(state.x) >= _FEWEST:
            seen = f"The weights of {energy} collapsed: at a level {len(state.x)} chains were worth {state.lowest * len(state.x):.1f}"
            what = "." if state.weighted else ", and from there on the draws follow correctors alone."
            advice = "Draw more chains, take more `levels`, or less sharpened terms; `annealed` draws without weights."
            SamplingWarning("ess", seen + what, advice).emit()
