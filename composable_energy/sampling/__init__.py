"""Sampling: the driver `sample`, and what an author of a sampler needs."""

from composable_energy.noise import Noise
from composable_energy.sampling.compile import compiled
from composable_energy.sampling.driver import sample
from composable_energy.sampling.request import resolve_noise
from composable_energy.sampling.sampler import Info, Sampler, State, energy_and_gradient
from composable_energy.sampling.selection import SamplerLike, resolve_sampler
from composable_energy.sampling.trace import Trace
from composable_energy.sampling.unconstrained import plain_energy
from composable_energy.sampling.wrappers import has_rows, repeated
from composable_energy.twins import twin

__all__ = [
    "Info",
    "Noise",
    "Sampler",
    "SamplerLike",
    "State",
    "Trace",
    "compiled",
    "energy_and_gradient",
    "has_rows",
    "plain_energy",
    "repeated",
    "resolve_noise",
    "resolve_sampler",
    "sample",
    "twin",
]
