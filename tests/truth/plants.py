"""Errors that are planted on purpose, each in another place and through public classes; the comparison has to find them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, energy_and_gradient
from tests.truth.expressions import Case

Plant = Callable[[Case], tuple[ce.Energy, Sampler | None]]


@dataclass(frozen=True)
class Unadjusted(Sampler):
    """Langevin steps of a length for which their bias is large, without the correction that would remove it."""

    step_size: float = 0.8
    noise: float = 1.0
    traits = Traits(steps=300)

    def init(self, energy: ce.Energy, x: Tensor, noise: Noise) -> State:
        return State(x, *energy_and_gradient(energy, x))

    def step(self, energy: ce.Energy, state: State, noise: Noise) -> tuple[State, Info]:
        x = state.x - self.step_size / 2 * state.grad + self.noise * math.sqrt(self.step_size) * noise.normal(state.x)
        return State(x, *energy_and_gradient(energy, x)), Info()


@dataclass(frozen=True)
class LoudNoise(Unadjusted):
    """Short Langevin steps whose noise is a fifth too large."""

    step_size: float = 0.05
    noise: float = 1.2
    traits = Traits(steps=1500)


@dataclass(frozen=True)
class Standing(Unadjusted):
    """Chains that stay near their start."""

    step_size: float = 1e-4
    traits = Traits(steps=20)


def _count_twice(case: Case) -> tuple[ce.Energy, Sampler | None]:
    """Counts a part twice, as two copies of a base would be."""
    return case.energy & ce.as_energy(lambda x: x.square().flatten(1).sum(1) / 2, event_shape=case.energy.event_shape), None


def _leave_out_the_volume(case: Case) -> tuple[ce.Energy, Sampler | None]:
    """Adds the logarithm of the volume of positive coordinates, so that chains follow the density without it."""
    extra = ce.as_energy(lambda x: x.log().flatten(1).sum(1), event_shape=case.energy.event_shape)
    return case.energy & extra.on(torch.distributions.constraints.positive), None


def _stand(case: Case) -> tuple[ce.Energy, Sampler | None]:
    """Draws a function whose recommended sampler starts at standard normal points, and leaves chains there."""
    shape = case.energy.event_shape or (case.space.event,)
    energy = ce.as_energy(lambda x, energy: energy(x), modules=[case.energy], event_shape=shape)
    energy.recommended = ce.Recommendation("langevin")
    return energy, Standing()


PLANTS: Mapping[str, tuple[tuple[str, ...], Plant]] = {
    "temperature": (("line", "plane", "half-line", "simplex"), lambda case: (case.energy / 1.5, None)),
    "base twice": (("line", "plane", "box"), _count_twice),
    "volume": (("half-line", "quadrant"), _leave_out_the_volume),
    "correction": (("line", "plane"), lambda case: (case.energy, Unadjusted())),
    "noise": (("line", "plane"), lambda case: (case.energy, LoudNoise())),
    "start": (("line", "plane"), _stand),
}
