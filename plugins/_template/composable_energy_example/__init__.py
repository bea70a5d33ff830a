"""An energy and a sampler for composable-energy, to copy."""

from composable_energy_example.energies import Ring
from composable_energy_example.samplers import RandomWalk

__all__ = ["RandomWalk", "Ring"]
