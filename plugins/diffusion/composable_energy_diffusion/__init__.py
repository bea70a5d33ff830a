"""Diffusion models as energies: schedules, parametrisations, samplers along noise levels, and the likelihood of the probability flow."""

from composable_energy_diffusion.energy import DiffusionEnergy
from composable_energy_diffusion.likelihood import LogLikelihood, log_likelihood
from composable_energy_diffusion.parametrisations import PARAMETRISATIONS, clean_of, noise_of, output_of
from composable_energy_diffusion.samplers import ODE, SDE
from composable_energy_diffusion.schedules import (
    EDM,
    SCHEDULES,
    Cosine,
    DiscreteVP,
    LinearVP,
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    schedule_of,
)

__all__ = [
    "EDM",
    "ODE",
    "PARAMETRISATIONS",
    "SCHEDULES",
    "SDE",
    "Cosine",
    "DiffusionEnergy",
    "DiscreteVP",
    "LinearVP",
    "LogLikelihood",
    "RectifiedFlow",
    "Schedule",
    "VarianceExploding",
    "clean_of",
    "log_likelihood",
    "noise_of",
    "output_of",
    "schedule_of",
]
