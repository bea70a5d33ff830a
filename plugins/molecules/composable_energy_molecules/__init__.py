"""Side chains of proteins on the torus: generated rotamer statistics, a conditional energy, clashes, events, files."""

from composable_energy_molecules.angles import dihedral, place_atom, recovered, wrap
from composable_energy_molecules.baselines import FrequentRotamer, VonMisesMixture
from composable_energy_molecules.clash import ClashEnergy, side_chain_atoms
from composable_energy_molecules.energy import SideChainEnergy
from composable_energy_molecules.events import Wells, arc
from composable_energy_molecules.generated import GeneratedRotamers, generate
from composable_energy_molecules.library import AngleLibrary, SideChainContrast
from composable_energy_molecules.prediction import log_probs, predict, resample
from composable_energy_molecules.residues import RESIDUES, Residue, SideChains, angle_mask, angle_periods, context_of
from composable_energy_molecules.structures import read_side_chains

__all__ = [
    "RESIDUES",
    "AngleLibrary",
    "ClashEnergy",
    "FrequentRotamer",
    "GeneratedRotamers",
    "Residue",
    "SideChainContrast",
    "SideChainEnergy",
    "SideChains",
    "VonMisesMixture",
    "Wells",
    "angle_mask",
    "angle_periods",
    "arc",
    "context_of",
    "dihedral",
    "generate",
    "log_probs",
    "place_atom",
    "predict",
    "read_side_chains",
    "recovered",
    "resample",
    "side_chain_atoms",
    "wrap",
]
