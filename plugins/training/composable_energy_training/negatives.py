"""Negative samples: points that a model thinks likely, drawn by any sampler, on which training raises the energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached

from composable_energy.checks import check_count
from composable_energy.energy import Energy
from composable_energy.errors import OptionError, SamplingDiverged
from composable_energy.noise import Noise
from composable_energy.sampling import Sampler, Trace, sample
from composable_energy.sampling.request import resolve_noise
from composable_energy.sampling.selection import SamplerLike, resolve_sampler
from composable_energy_training.inputs import energy_of
from composable_energy_training.objective import Batch, Place
from composable_energy_training.replay import ReplayBuffer, Start, fresh_points, start_of

__all__ = ["Drawn", "Negatives"]


@dataclass(frozen=True)
class Drawn:
    """Negative samples.

    Args:
        x: The points, with shape $(B, *)$.
        noise: The noise that their chains were drawn with.
        slots: Their slots of the buffer, with shape $(B,)$; None without one.
        scalars: What the sampler told: the share of chains that `diverged`, and the mean `acceptance` if it ever rejects.
    """

    x: Tensor
    noise: Noise
    slots: Tensor | None = None
    scalars: Mapping[str, Tensor] = field(default_factory=dict)


class Negatives:
    """Draws negative samples for the rows of a batch; the chains go on from step to step, or start anew at each.

    Args:
        steps: Steps of a chain for each step of training.
        sampler: A name, a class or an instance.
        options: The sampler's options.
        buffer: Slots of the `ReplayBuffer`, over all processes.
        fresh: As for `ReplayBuffer`.
        start: As for `ReplayBuffer`; `"data"` starts each chain at its row of the batch, for chains that do not persist.
        augment: As for `ReplayBuffer`.
        persistent: Whether chains go on.
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
            raise OptionError("Chains that persist need a start without data: 'uniform', 'normal' or a function; or take persistent=False.")
        self.steps, self.capacity = check_count("steps", steps), check_count("buffer", buffer)
        self._start = None if start == "data" else start_of(start)
        self._asked = sampler, dict(options or {})
        self._settings = {"fresh": fresh, "augment": augment}
        self.persistent = persistent
        self.sampler: Sampler | None = None
        self.buffer: ReplayBuffer | None = None
        self._rejects = False  # known after a call

    def begin(self, model: nn.Module, place: Place) -> None:
        """Settles the sampler, and fills the buffer with starts.

        Raises:
            OptionError: The model is no energy, or options do not fit.
            PluginNotFound: No plug-in offers the sampler.
        """
        self.sampler = resolve_sampler(energy_of(model), *self._asked)
        if self.persistent and self._start is not None:
            self.buffer = ReplayBuffer(self.capacity, place, self._start, **self._settings)

    def draw(self, model: nn.Module, batch: Batch, conditions: Mapping[str, Tensor], steps: int | None = None) -> Drawn:
        """Draws a point for each row, from a twin of the model in eval mode.

        A chain that diverges does not end the training: a fresh start takes its place.

        Args:
            model: The energy.
            batch: The rows.
            conditions: What the energy is bound to, one value for each row.
            steps: How many, if others than usual; 0 returns the points where the chains start.
        """
        if self.sampler is None:
            raise OptionError("The objective has not begun: call `begin(model, place)` before its first loss.")
        energy = energy_of(model)
        energy = energy.given(**conditions) if conditions else energy
        slots, x = self._begun(batch)
        noise = batch.noise.child(f"chains {batch.step}")  # what `sample` keys by its own steps is another at each step of training
        steps = self.steps if steps is None else steps
        if steps == 0:
            return Drawn(x, noise, slots, {"diverged": x.new_zeros(())})
        try:
            x, trace = _drawn(energy, self.sampler, x, noise, steps)
            lost, rates = trace.diverged, trace.acceptance
        except SamplingDiverged:  # no chain had a finite energy at its start
            lost, rates = torch.ones(len(x), dtype=torch.bool), x.new_zeros(1) if self._rejects else None
        self._rejects = rates is not None
        scalars = {"diverged": lost.to(x).mean()}
        if rates is not None:
            scalars["acceptance"] = rates.nanmean().to(x)
        if lost.any():  # known on the CPU, so that nobody waits
            fresh = batch.x if self._start is None else fresh_points(self._start, torch.zeros_like(x), batch.noise.child("instead"))
            x = torch.where(lost.to(x.device).view(-1, *[1] * (x.ndim - 1)), fresh, x)
        return Drawn(x, noise, slots, scalars)

    def keep(self, drawn: Drawn, x: Tensor) -> None:
        """Keeps the points that chains go on from at the next step."""
        if self.buffer is not None and drawn.slots is not None:
            self.buffer.write(drawn.slots, x)

    def state(self) -> Mapping[str, Tensor]:
        return {} if self.buffer is None else self.buffer.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if self.buffer is not None:
            self.buffer.restore(state)

    def _begun(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        if self.buffer is not None:
            return self.buffer.draw(batch.noise)
        if self._start is None:
            return None, batch.x.detach()
        return None, fresh_points(self._start, torch.zeros_like(batch.x), batch.noise.child("start"))


def _drawn(energy: Energy, sampler: Sampler, x: Tensor, noise: Noise, steps: int) -> tuple[Tensor, Trace]:
    """Draws; the last step is left to `move` where the sampler has it, for nobody asks for the gradient at the last points."""
    first, moves = _first(noise), steps > 1 and type(sampler).move is not Sampler.move
    with cached():  # weights that are computed, as by spectral norms, stay as they are meanwhile
        x, trace = sample(
            energy,
            tuple(x.shape),
            sampler=sampler,
            steps=steps - moves,
            init=x,
            seed=noise.seed,
            first_chain=first,
            latents=True,
            allow_improper=True,
            on_divergence="keep",
            trace=True,
        )
    for ids, _, state in trace.states if moves else ():
        chains = range(first, first + len(x)) if len(ids) == len(x) else tuple(first + i for i in ids)
        points = sampler.move(state, Noise(noise.seed, chains, steps, resolve_noise(None, x.device)))
        if points is not None:
            x[torch.as_tensor(ids, device=x.device)] = points
    return x, trace


def _first(noise: Noise) -> int:
    """The first of the rows, which follow each other."""
    chains = noise.chains
    if not chains or list(chains) != list(range(chains[0], chains[0] + len(chains))):
        raise OptionError(f"Rows of a batch follow each other, got {chains!r}.")
    return chains[0]
