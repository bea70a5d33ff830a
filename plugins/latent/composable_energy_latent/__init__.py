"""Generators controlled by attributes in their latent space (LACE): attributes, a flow, sequential edits, files."""

from composable_energy_latent.attributes import Attributes, attribute, continuous, graded
from composable_energy_latent.edit import EditWeights, edit
from composable_energy_latent.edits import Edits, EditStep
from composable_energy_latent.errors import EditError, GeneratorError, LabelError
from composable_energy_latent.fit import fit_attributes
from composable_energy_latent.generator import Generator, latent
from composable_energy_latent.lace import LACE
from composable_energy_latent.loaders import load_generator
from composable_energy_latent.networks import LatentHeads
from composable_energy_latent.report import AttributeReport, FitReport

__all__ = [
    "LACE",
    "AttributeReport",
    "Attributes",
    "EditError",
    "EditStep",
    "EditWeights",
    "Edits",
    "FitReport",
    "Generator",
    "GeneratorError",
    "LabelError",
    "LatentHeads",
    "attribute",
    "continuous",
    "edit",
    "fit_attributes",
    "graded",
    "latent",
    "load_generator",
]
