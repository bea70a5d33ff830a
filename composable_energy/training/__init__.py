"""Training of energies: objectives, a trainer that resumes to the bit, recipes."""

from composable_energy.training.objective import Batch, Loss, Objective, Place
from composable_energy.training.recipes import Recipe, open_recipe

__all__ = ["Batch", "Loss", "Objective", "Place", "Recipe", "open_recipe"]
