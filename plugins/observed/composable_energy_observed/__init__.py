"""Observations and rewards as terms of expressions: `base & ce.observed(y, operator, noise)`, `base & ce.reward(r, beta)`."""

from composable_energy_observed.energy import ObservedEnergy
from composable_energy_observed.interface import Function, Operator
from composable_energy_observed.noises import Gaussian, Noise, Poisson, Quantised, noise_of
from composable_energy_observed.operators import OPERATORS, Blur, Chain, Downsample, Identity, Linear, Mask, Radon, operator_of
from composable_energy_observed.reward import RewardEnergy

__all__ = [
    "OPERATORS",
    "Blur",
    "Chain",
    "Downsample",
    "Function",
    "Gaussian",
    "Identity",
    "Linear",
    "Mask",
    "Noise",
    "ObservedEnergy",
    "Operator",
    "Poisson",
    "Quantised",
    "Radon",
    "RewardEnergy",
    "noise_of",
    "operator_of",
]
