"""Training of energies: objectives, a trainer that resumes to the bit, recipes."""

from composable_energy.training.contrastive import ContrastiveDivergence
from composable_energy.training.objective import Batch, Loss, Objective, Place
from composable_energy.training.recipes import Recipe, open_recipe
from composable_energy.training.replay import ReplayBuffer

__all__ = ["Batch", "ContrastiveDivergence", "Loss", "Objective", "Place", "Recipe", "ReplayBuffer", "open_recipe"]
