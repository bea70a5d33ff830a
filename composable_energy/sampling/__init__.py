"""Sampling: the driver `sample`, and the classes and functions for authors of samplers."""

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.noise import Noise
from composable_energy.sampling.checkpoint import Checkpoint
from composable_energy.sampling.convergence import emit_warnings, warn_of_spacing
from composable_energy.sampling.driver import Latents, sample
from composable_energy.sampling.evaluation import energies_and_gradients, energy_and_gradient
from composable_energy.sampling.kernels import Kernel, StepCoefficients, langevin_step, normal, reference_step, underdamped_step
from composable_energy.sampling.loop import Observer, Stop
from composable_energy.sampling.moments import RunningMoments
from composable_energy.sampling.progress import Progress
from composable_energy.sampling.sampler import Info, Sampler, State, Traits, bound_conditions, start_points
from composable_energy.sampling.selection import SamplerLike, resolve_sampler
from composable_energy.sampling.trace import Trace
from composable_energy.sampling.unconstrained import plain_energy
from composable_energy.sampling.wrappers import has_rows, repeated
from composable_energy.twins import twin

__all__ = [
    "Checkpoint",
    "Info",
    "Kernel",
    "Latents",
    "Noise",
    "Observer",
    "Progress",
    "RunningMoments",
    "Sampler",
    "SamplerLike",
    "State",
    "StepCoefficients",
    "Stop",
    "Trace",
    "Traits",
    "bound_conditions",
    "emit_warnings",
    "energies_and_gradients",
    "energy_and_gradient",
    "has_rows",
    "langevin_step",
    "normal",
    "plain_energy",
    "reference_step",
    "repeated",
    "resolve_sampler",
    "sample",
    "start_points",
    "twin",
    "underdamped_step",
    "unsqueeze_to",
    "warn_of_spacing",
]
