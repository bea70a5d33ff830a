"""Generators controlled by attributes in their latent space (LACE): attributes, a flow, sequential edits, files."""

from composable_energy_latent.attributes import Attributes, attribute, continuous, graded
from composable_energy_latent.errors import EditError, GeneratorError, LabelError
from composable_energy_latent.generator import Generator, latent
from composable_energy_latent.lace import LACE
from composable_energy_latent.loaders import load_generator
from composable_energy_latent.networks import LatentHeads

__all__ = [
    "LACE",
    "Attributes",
    "EditError",
    "Generator",
    "GeneratorError",
    "LabelError",
    "LatentHeads",
    "attribute",
    "continuous",
    "graded",
    "latent",
    "load_generator",
]
