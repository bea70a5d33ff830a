"""Contrastive divergence: lowers the energy of data and raises that of chains, improved also through the last step of the sampler."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached

from composable_energy import Energy, SamplingWarning
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import OptionError, SamplingDiverged
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Noise, Sampler, SamplerLike, Trace, resolve_sampler, twin
from composable_energy.supports import contains, format_support
from composable_energy_training.objective import Batch, Loss, Objective, RankContext, as_float32, get_conditions, require_energy
from composable_energy_training.replay_buffer import ReplayBuffer, Start, draw_starts, resolve_start
from composable_energy_training.second_derivatives import differentiable_gradient

Factor = float | Tensor


@dataclass(frozen=True)
class NegativeSamples:
    """Negative samples of a batch."""

    x: Tensor  # the points, with shape (B, *)
    noise: Noise  # the noise of their chains
    slots: Tensor | None = None  # their slots of the replay buffer, with shape (B,); None without a buffer
    # The share of chains that `diverged`, and the mean `acceptance` rate of a sampler that rejects.
    scalars: Mapping[str, Tensor] = field(default_factory=dict)


class ContrastiveDivergence(Objective):
    r"""The difference of energies between data $x$ and chains $x'$ of the model:

    $$\langle E(x) - E(x') \rangle + \alpha \langle E(x)^2 + E(x')^2 \rangle$$

    If the chains are samples of the model, its gradient at $\alpha = 0$ is that of the negative log likelihood, $\langle \nabla_\theta E
    \rangle_\text{data} - \langle \nabla_\theta E \rangle_\text{model}$ (Hinton, 2002). Persistent chains (Tieleman, 2008) do better than
    short ones. The squares keep energies near zero, since the difference does not determine their level (Du & Mordatch, 2019).

    Energies of data and chains have the same weights, in training mode; chains run in eval mode. A diverged chain gets a new start.

    Args:
        steps: Steps of each chain for each training step.
        sampler: The name, class or instance of a sampler. It needs a step size, or it would be tuned at each training step.
        options: Options of the sampler.
        buffer: Slots of the replay buffer, over all processes; at least the batch size.
        fresh: The probability that a row gets a new start instead of its chain.
        start: `"uniform"` on $[0, 1]$, `"normal"`, or a function of (like, noise); without persistence also `"data"`, as in Hinton (2002).
        l2: $\alpha$. With 1, as in Du & Mordatch (2019), energies are near 0, and the density is much flatter than that of the data.
        condition: An attribute of the data, classes or numbers, that becomes the condition `y` of the energy, for data and chains alike. A
            chain of the buffer continues under the value of the row that draws it.
        augment: A function of (points, noise) that is applied to chains of the buffer when they are drawn.
        persistent: Whether chains continue from step to step.

    References:
        Training products of experts by minimizing contrastive divergence (Hinton, 2002).
        Training restricted Boltzmann machines using approximations to the likelihood gradient (Tieleman, 2008).
        Implicit generation and modeling with energy-based models (Du & Mordatch, 2019), https://arxiv.org/abs/1903.08689
    """

    def __init__(
        self,
        *,
        steps: int,
        sampler: SamplerLike = "langevin",
        options: Mapping[str, Any] | None = None,
        buffer: int = 10_000,
        fresh: float = 0.05,
        start: Start | Literal["data"] = "uniform",
        l2: float = 0.01,
        condition: str | None = None,
        augment: Callable[[Tensor, Noise], Tensor] | None = None,
        persistent: bool = True,
    ) -> None:
        if start == "data" and persistent:
            raise OptionError("Persistent chains cannot start at data: set start='uniform', 'normal' or a function; or persistent=False.")
        self.steps, self.slots, self.l2 = check_integer("steps", steps), check_integer("buffer", buffer), check_number("l2", l2, least=0)
        self.condition, self.persistent = condition, persistent
        self._start = None if start == "data" else resolve_start(start)
        self._sampler_request, self._buffer_options = (sampler, dict(options or {})), {"fresh": fresh, "augment": augment}
        self.chosen: Sampler | None = None
        self.replay: ReplayBuffer | None = None
        self._rejects = False  # known after the first draw

    def begin(self, model: nn.Module, context: RankContext) -> None:
        """Builds the sampler, and fills the buffer with starts.

        Raises:
            OptionError: The model is not an energy, an option does not fit, or the sampler has no step size.
        """
        sampler = resolve_sampler(require_energy(model), *self._sampler_request)
        if getattr(sampler, "step_size", 1.0) is None:
            name = type(sampler).__name__.lower()
            raise OptionError(f"{name} needs step_size, or it would be tuned again at each training step: options={{'step_size': ...}}.")
        support = require_energy(model).support
        if self._start is not None and support is not None:
            like = torch.zeros(64, *context.event_shape, dtype=context.dtype, device=context.device)
            if not contains(support, draw_starts(self._start, like, Noise(context.seed, range(64)))).all():
                where = f"the support of {model}, {format_support(support)}"
                raise OptionError(f"Chains start outside of {where}: set `start` to a function of (like, noise) with points inside.")
        self.chosen = sampler
        if self.persistent and self._start is not None:
            self.replay = ReplayBuffer(self.slots, context, self._start, **self._buffer_options)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        r"""Returns the loss. Its scalars are `energy`, `energy_negative`, `gap` $\langle E(x') - E(x) \rangle$, `magnitude`
        $\langle |E| \rangle$ over both, `spread`, the standard deviation of energies within each, `distance`, by how many widths of
        the data the means and widths of data and chains differ, `diverged`, the share of chains that diverged, and `acceptance`.
        """
        conditions = get_conditions(require_energy(model), batch, self.condition)
        samples = self.draw(model, batch, conditions, self.steps)
        self.keep(samples, samples.x)
        value, scalars = contrast(model, batch.x, samples.x, conditions, self.l2)
        return Loss(value, {**scalars, **samples.scalars})

    def draw(self, model: nn.Module, batch: Batch, conditions: Mapping[str, Tensor], steps: int) -> NegativeSamples:
        """Draws a point for each row from the model in eval mode, or its start with 0 steps; chains that diverge get new starts."""
        if self.chosen is None:
            raise OptionError("The objective is not prepared: call `begin(model, context)` before the first loss.")
        energy = require_energy(model)
        energy = energy.given(**conditions) if conditions else energy
        if self.replay is not None:
            slots, x = self.replay.draw(batch.noise)
        elif self._start is None:
            slots, x = None, batch.x.detach()
        else:
            slots, x = None, draw_starts(self._start, torch.zeros_like(batch.x), batch.noise.child("start"))
        noise = batch.noise.child(f"chains {batch.step}")  # `sample` keys by its own steps, which repeat at each training step
        if steps == 0:
            return NegativeSamples(x, noise, slots, {"diverged": x.new_zeros(())})
        try:
            x, trace = _run_chains(energy, self.chosen, x, noise, steps)
            diverged, rates = trace.diverged, trace.acceptance
        except SamplingDiverged:  # no chain had a finite energy at its start
            diverged, rates = torch.ones(len(x), dtype=torch.bool), x.new_zeros(1) if self._rejects else None
        self._rejects = rates is not None
        scalars = {"diverged": diverged.to(x).mean()}
        if rates is not None:
            scalars["acceptance"] = rates.nanmean().to(x)
        if diverged.any():  # a tensor on the CPU: no synchronization
            fresh = batch.x if self._start is None else draw_starts(self._start, torch.zeros_like(x), batch.noise.child("instead"))
            x = torch.where(unsqueeze_to(diverged.to(x.device), x), fresh, x)
        return NegativeSamples(x, noise, slots, scalars)

    def keep(self, samples: NegativeSamples, x: Tensor) -> None:
        """Stores the points from which chains continue at the next step."""
        if self.replay is not None and samples.slots is not None:
            self.replay.write(samples.slots, x)

    def state(self) -> Mapping[str, Tensor]:
        return {} if self.replay is None else self.replay.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if self.replay is not None:
            self.replay.restore(state)


def contrast(
    model: nn.Module, x: Tensor, negatives: Tensor, conditions: Mapping[str, Tensor], l2: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss of contrastive divergence, and its scalars."""
    with cached():  # parametrized weights, such as spectral norms, are computed once for both
        # two calls need half the memory of one in the backward pass
        positive, negative = (as_float32(model(points, **conditions)) for points in (x, negatives))
    value = positive.mean() - negative.mean() + l2 * (positive.square().mean() + negative.square().mean())
    low, high = positive.detach().mean(), negative.detach().mean()
    variances = positive.detach().var(correction=0), negative.detach().var(correction=0)
    return value, {
        "energy": low,
        "energy_negative": high,
        "gap": high - low,
        "magnitude": (positive.detach().abs().mean() + negative.detach().abs().mean()) / 2,
        "spread": ((variances[0] + variances[1]) / 2).sqrt(),
        "distance": _distance(x.detach().reshape(len(x), -1), negatives.detach().reshape(len(x), -1)),
    }


def _distance(x: Tensor, negatives: Tensor) -> Tensor:
    """Returns by how much the means and the widths of data and chains differ, in widths of the data; not finite where they have none."""
    variances = [points.var(0, correction=0).sum() for points in (x, negatives)]
    shift = (x.mean(0) - negatives.mean(0)).square().sum() - (variances[0] + variances[1]) / len(x)  # without what chance adds
    return (shift.clamp_min(0) + (variances[1].sqrt() - variances[0].sqrt()).square()).sqrt() / variances[0].sqrt()


def _run_chains(energy: Energy, sampler: Sampler, x: Tensor, noise: Noise, steps: int) -> tuple[Tensor, Trace]:
    """Runs chains. The last step is by `Traits.move`, if the sampler has it and points are coordinates: it saves the last gradient."""
    chains, moves = noise.chains, steps > 1 and sampler.traits.move is not None and energy.support is None
    if not chains or list(chains) != list(range(chains[0], chains[0] + len(chains))):
        raise OptionError(f"The row numbers of a batch must be consecutive, got {chains!r}.")
    options: Any = {"seed": noise.seed, "first_chain": chains[0], "allow_improper": True, "on_divergence": "keep"}
    options |= {"sampler": sampler, "steps": steps - moves, "init": x, "trace": True}
    with cached():  # parametrized weights, such as spectral norms, are computed once
        x, trace = SamplingWarning.muted(energy.latents.sample, tuple(x.shape), **options)  # negative samples come from short chains
    noise = Noise(noise.seed, range(chains[0], chains[0] + len(x)), steps, trace.noise)
    points = sampler.traits.move(sampler, trace.state, noise) if moves and sampler.traits.move is not None else None
    return x if points is None else points, trace


def run_langevin(
    gradient: Callable[[Tensor], Tensor], x: Tensor, noise: Noise, factors: Iterable[tuple[Factor, Factor]]
) -> tuple[Tensor, Tensor]:
    r"""Runs chains $x' = x - a_k \nabla E(x) + b_k\, \xi$, and returns their last points and the share of those that diverged.

    It is for steps that differ between rows and change over time, as no sampler's do. A chain that is not finite in the end is replaced by
    its start. The factors $(a_k, b_k)$ of each step are numbers, or tensors with shape $(B,)$.
    """
    start = x = x.detach()
    for number, pair in enumerate(factors, 1):
        drift, scale = (unsqueeze_to(factor.to(x), x) if isinstance(factor, Tensor) else factor for factor in pair)
        x = x - drift * gradient(x) + scale * noise.at(number).normal(x)
    finite = x.flatten(1).isfinite().all(1)
    return torch.where(unsqueeze_to(finite, x), x, start), 1 - finite.to(x).mean()


class ImprovedContrastiveDivergence(ContrastiveDivergence):
    r"""Contrastive divergence with the term that it neglects: chains depend on the parameters as well (Du et al., 2021).

    The last of $K$ Langevin steps keeps its graph,

    $$x_K = \text{clamp}\bigl(x_{K-1} - \tfrac{\lambda}{2} \nabla E_\theta(x_{K-1}) + \sqrt{\lambda T}\, \xi\bigr),$$

    and the loss of `ContrastiveDivergence` with negative samples $x_K$ gets the terms

    $$\beta \langle E(x_K) \rangle - \gamma \langle \log \lVert x_K - n(x_K) \rVert \rangle.$$

    Here the parameters of $E$ are constant, and gradients flow through $x_K$ alone: they move chains to low energies, and away from the
    nearest other chain $n(x_K)$ of the buffer, an estimate of their entropy. A chain is compared with others of its row's lane, so that
    the loss does not depend on the number of processes; the paper compares with any chains of the buffer. All other arguments are
    those of `ContrastiveDivergence`.

    Args:
        steps: $K$.
        options: Options of `langevin`: `step_size` $\lambda$, `temperature` $T$, `clamp`, `max_gradient`.
        buffer: Slots of the replay buffer, over all processes; at least two for each row of a batch.
        kl: $\beta$.
        entropy: $\gamma$.
        among: The number of chains with which each is compared; all others of its lane if there are fewer.
        entropy_after: The number of chains, drawn so far, after which the entropy term is used; before, the buffer holds mostly starts.

    References:
        Improved contrastive divergence training of energy based models (Du et al., 2021), https://arxiv.org/abs/2012.01316
    """

    def __init__(
        self,
        *,
        steps: int,
        options: Mapping[str, Any] | None = None,
        buffer: int = 10_000,
        fresh: float = 0.001,
        start: Start = "uniform",
        l2: float = 0.01,
        condition: str | None = None,
        augment: Callable[[Tensor, Noise], Tensor] | None = None,
        kl: float = 1.0,
        entropy: float = 0.3,
        among: int = 100,
        entropy_after: int = 1000,
    ) -> None:
        chains = {"buffer": buffer, "fresh": fresh, "start": start, "augment": augment}
        super().__init__(steps=steps, options=options, l2=l2, condition=condition, **chains)
        self.kl, self.entropy = check_number("kl", kl, least=0), check_number("entropy", entropy, least=0)
        self.among, self.entropy_after = check_integer("among", among), check_integer("entropy_after", entropy_after, least=0)
        self._batch_size = 0

    def begin(self, model: nn.Module, context: RankContext) -> None:
        super().begin(model, context)
        if getattr(self.chosen, "metric", None) is not None or require_energy(model).support is not None:
            raise OptionError("Improved contrastive divergence supports no metric, and no energy with a support.")
        self._batch_size = context.batch_size

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        r"""Returns the loss. Its scalars are those of `ContrastiveDivergence`, and the means `kl` of $E(x_K)$ in eval mode and
        `log_distance` of $\log \lVert x_K - n(x_K) \rVert$.
        """
        conditions = get_conditions(require_energy(model), batch, self.condition)
        samples = self.draw(model, batch, conditions, self.steps - 1)
        energy = require_energy(model).given(**conditions) if conditions else require_energy(model)
        last = self._take_last_step(energy, samples)
        kl = as_float32(twin(energy)(last)).mean()
        distance = last.new_zeros(())  # of chains to their nearest neighbours, the mean logarithm
        if self.replay is not None and samples.slots is not None and self.entropy:
            squared = (last - self.replay.nearest(last, samples.slots, batch.noise, self.among)).flatten(1).square().sum(1)
            distance = squared.clamp_min(torch.finfo(squared.dtype).tiny).log().mean() / 2
        self.keep(samples, last)
        value, scalars = contrast(model, batch.x, last.detach(), conditions, self.l2)
        value = value + self.kl * kl
        if batch.step * self._batch_size > self.entropy_after:
            value = value - self.entropy * distance
        return Loss(value, {**scalars, **samples.scalars, "kl": kl.detach(), "log_distance": distance.detach()})

    def _take_last_step(self, energy: Energy, samples: NegativeSamples) -> Tensor:
        """Takes the next Langevin step of the chains, with a graph."""
        sampler: Any = self.chosen
        with _eval_mode(energy):
            gradient = differentiable_gradient(energy, samples.x)[1]
        if sampler.max_gradient is not None:
            gradient = gradient.clamp(-sampler.max_gradient, sampler.max_gradient)
        xi = samples.noise.at(self.steps).normal(samples.x)
        x = samples.x - sampler.step_size / 2 * gradient + math.sqrt(sampler.step_size * sampler.temperature) * xi
        return x if sampler.clamp is None else x.clamp(*sampler.clamp)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switches the modules of a model to eval mode; restores their modes on exit."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
