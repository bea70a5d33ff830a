"""Negative samples: chains of the model's own distribution, whose energy contrastive training raises."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached

from composable_energy import Energy, SamplingWarning
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import OptionError, SamplingDiverged
from composable_energy.options import check_integer
from composable_energy.sampling import Sampler, SamplerLike, Trace, resolve_sampler, sample
from composable_energy.sampling.noise import Noise
from composable_energy_training.objective import Batch, RankContext, require_energy
from composable_energy_training.replay_buffer import ReplayBuffer, Start, draw_starts, resolve_start


@dataclass(frozen=True)
class NegativeSamples:
    """Negative samples of a batch.

    Args:
        x: The points, with shape $(B, *)$.
        noise: The noise of their chains.
        slots: Their slots of the replay buffer, with shape $(B,)$; None without a buffer.
        scalars: The share of chains that `diverged`, and the mean `acceptance` rate of a sampler that rejects.
    """

    x: Tensor
    noise: Noise
    slots: Tensor | None = None
    scalars: Mapping[str, Tensor] = field(default_factory=dict)


class NegativeSampler:
    """Draws negative samples for the rows of a batch, by chains that continue from step to step or start again at each step.

    Args:
        steps: Steps of a chain for each training step.
        sampler: The name, class or instance of a sampler.
        options: Options of the sampler.
        buffer: Slots of the `ReplayBuffer`, over all processes.
        fresh: The probability of a new start, see `ReplayBuffer`.
        start: The distribution of starts, see `ReplayBuffer`; `"data"` starts each chain at its row of the batch, for chains that do not
            persist.
        augment: The augmentation of chains, see `ReplayBuffer`.
        persistent: Whether chains continue from step to step.
    """

    def __init__(
        self,
        *,
        steps: int,
        sampler: SamplerLike,
        options: Mapping[str, Any] | None,
        buffer: int,
        fresh: float,
        start: Start | Literal["data"],
        augment: Callable[[Tensor, Noise], Tensor] | None,
        persistent: bool,
    ) -> None:
        if start == "data" and persistent:
            raise OptionError(
                "Persistent chains cannot start at data: set start to 'uniform', 'normal' or a function; or persistent=False."
            )
        self.steps, self.capacity = check_integer("steps", steps), check_integer("buffer", buffer)
        self._start = None if start == "data" else resolve_start(start)
        self._sampler_request = sampler, dict(options or {})
        self._buffer_options = {"fresh": fresh, "augment": augment}
        self.persistent = persistent
        self.sampler: Sampler | None = None
        self.buffer: ReplayBuffer | None = None
        self._rejects = False  # known after the first draw

    def begin(self, model: nn.Module, context: RankContext) -> None:
        """Builds the sampler, and fills the buffer with starts.

        Raises:
            OptionError: The model is not an energy, an option does not fit, or the sampler has no step size.
            PluginNotFound: No plug-in offers the sampler.
        """
        sampler = resolve_sampler(require_energy(model), *self._sampler_request)
        if getattr(sampler, "step_size", 1.0) is None:
            name = type(sampler).__name__.lower()
            raise OptionError(f"{name} needs step_size, or it would be tuned again at each training step: options={{'step_size': ...}}.")
        self.sampler = sampler
        if self.persistent and self._start is not None:
            self.buffer = ReplayBuffer(self.capacity, context, self._start, **self._buffer_options)

    def draw(self, model: nn.Module, batch: Batch, conditions: Mapping[str, Tensor], steps: int | None = None) -> NegativeSamples:
        """Draws a point for each row from the model in eval mode; a chain that diverges is replaced by a new start.

        Args:
            model: The energy.
            batch: The rows.
            conditions: Conditions of the energy, one value for each row.
            steps: The number of steps, if it differs from the usual one; 0 returns the starts of the chains.
        """
        if self.sampler is None:
            raise OptionError("The objective is not prepared: call `begin(model, context)` before the first loss.")
        energy = require_energy(model)
        energy = energy.given(**conditions) if conditions else energy
        slots, x = self._draw_starts(batch)
        noise = batch.noise.child(f"chains {batch.step}")  # `sample` keys by its own steps, which repeat at each training step
        steps = self.steps if steps is None else steps
        if steps == 0:
            return NegativeSamples(x, noise, slots, {"diverged": x.new_zeros(())})
        try:
            x, trace = _run_chains(energy, self.sampler, x, noise, steps)
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
        if self.buffer is not None and samples.slots is not None:
            self.buffer.write(samples.slots, x)

    def state(self) -> Mapping[str, Tensor]:
        """Returns the state of the buffer."""
        return {} if self.buffer is None else self.buffer.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Loads the state of the buffer."""
        if self.buffer is not None:
            self.buffer.restore(state)

    def _draw_starts(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        if self.buffer is not None:
            return self.buffer.draw(batch.noise)
        if self._start is None:
            return None, batch.x.detach()
        return None, draw_starts(self._start, torch.zeros_like(batch.x), batch.noise.child("start"))


def _run_chains(energy: Energy, sampler: Sampler, x: Tensor, noise: Noise, steps: int) -> tuple[Tensor, Trace]:
    """Runs chains. The last step is taken by `Traits.move` if the sampler has it: it saves the gradient at the final points."""
    first, moves = _first_chain(noise), steps > 1 and sampler.traits.move is not None
    with cached(), warnings.catch_warnings():  # parametrized weights, such as spectral norms, are computed once
        warnings.simplefilter("ignore", SamplingWarning)  # negative samples come from short chains
        x, trace = sample(
            energy.latents,
            tuple(x.shape),
            sampler=sampler,
            steps=steps - moves,
            init=x,
            seed=noise.seed,
            first_chain=first,
            allow_improper=True,
            on_divergence="keep",
            trace=True,
        )
    noise = Noise(noise.seed, range(first, first + len(x)), steps, trace.noise)
    points = sampler.traits.move(sampler, trace.state, noise) if moves and sampler.traits.move is not None else None
    return x if points is None else points, trace


def _first_chain(noise: Noise) -> int:
    chains = noise.chains
    if not chains or list(chains) != list(range(chains[0], chains[0] + len(chains))):
        raise OptionError(f"The row numbers of a batch must be consecutive, got {chains!r}.")
    return chains[0]
