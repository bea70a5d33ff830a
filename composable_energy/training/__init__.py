"""Training of energies: objectives, a trainer that resumes to the bit, recipes."""

from composable_energy.training.objective import Batch, Loss, Objective, Place

__all__ = ["Batch", "Loss", "Objective", "Place"]
