"""Combine energy-based models with logic: `(E_male & ~E_smile).sample(shape)`."""

from composable_energy.energy import Energy, Recommendation, RelativeEnergy, WeightedBase

__version__ = "0.1.0"
