"""Training of energies: objectives, a trainer that resumes to the bit, recipes."""

from composable_energy.training.attributes import AttributeHeads
from composable_energy.training.augmentation import Augmentation
from composable_energy.training.callbacks import Callback, CSVLog, SampleSheet, TensorBoard
from composable_energy.training.contrastive import ContrastiveDivergence
from composable_energy.training.denoising import DenoisingScoreMatching
from composable_energy.training.energy_recipe import EnergyRecipe
from composable_energy.training.improved import ImprovedContrastiveDivergence
from composable_energy.training.joint import JointEnergyClassifier
from composable_energy.training.monitor import Event, Monitor
from composable_energy.training.objective import Batch, Loss, Objective, Place
from composable_energy.training.optimizing import Optimizer
from composable_energy.training.ranks import Ranks, join, leave
from composable_energy.training.recipes import Recipe, open_recipe
from composable_energy.training.replay import ReplayBuffer
from composable_energy.training.trainer import Report, Trainer
from composable_energy.training.values import ValueHeads

__all__ = [
    "AttributeHeads",
    "Augmentation",
    "Batch",
    "CSVLog",
    "Callback",
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "EnergyRecipe",
    "Event",
    "ImprovedContrastiveDivergence",
    "JointEnergyClassifier",
    "Loss",
    "Monitor",
    "Objective",
    "Optimizer",
    "Place",
    "Ranks",
    "Recipe",
    "ReplayBuffer",
    "Report",
    "SampleSheet",
    "TensorBoard",
    "Trainer",
    "ValueHeads",
    "join",
    "leave",
    "open_recipe",
]
