"""COMET: energies of the components of a picture, found without labels."""

from composable_energy_comet.attention import AttentionEncoder
from composable_energy_comet.comet import Comet
from composable_energy_comet.component import ComponentEnergy
from composable_energy_comet.conv import ConvEnergy
from composable_energy_comet.making import comet, comet_global, load_comet, save_comet
from composable_energy_comet.objective import Decomposition, charbonnier, squared_error
from composable_energy_comet.parts import joined, recombined
from composable_energy_comet.quadratic import QuadraticEnergy
from composable_energy_comet.reading import component_scores, merged
from composable_energy_comet.sampler import InnerDescent
from composable_energy_comet.vectors import VectorEncoder

__all__ = [
    "AttentionEncoder",
    "Comet",
    "ComponentEnergy",
    "ConvEnergy",
    "Decomposition",
    "InnerDescent",
    "QuadraticEnergy",
    "VectorEncoder",
    "charbonnier",
    "comet",
    "comet_global",
    "component_scores",
    "joined",
    "load_comet",
    "merged",
    "recombined",
    "save_comet",
    "squared_error",
]
