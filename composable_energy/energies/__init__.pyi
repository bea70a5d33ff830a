from composable_energy.energies.bases import RelativeEnergy as RelativeEnergy
from composable_energy.energies.bases import WeightedBase as WeightedBase
from composable_energy.energies.energy import Energy as Energy
from composable_energy.energies.identity import Origin as Origin
from composable_energy.energies.lift import CallableEnergy as CallableEnergy
from composable_energy.energies.lift import DistributionEnergy as DistributionEnergy
from composable_energy.energies.lift import ScoreEnergy as ScoreEnergy
from composable_energy.energies.lift import as_energy as as_energy
