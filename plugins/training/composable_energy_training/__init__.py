"""Training of energies: objectives, a trainer that resumes exactly, recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from composable_energy.lazy import lazy_exports

if TYPE_CHECKING:
    from composable_energy_training.attributes import AttributeHeads
    from composable_energy_training.augmentation import Augmentation
    from composable_energy_training.callbacks import Callback, CSVLog, SampleSheet, TensorBoard
    from composable_energy_training.contrastive import ContrastiveDivergence
    from composable_energy_training.denoising import DenoisingScoreMatching
    from composable_energy_training.improved import ImprovedContrastiveDivergence
    from composable_energy_training.joint import JointEnergyClassifier
    from composable_energy_training.monitor import Event, Monitor
    from composable_energy_training.objective import Batch, Loss, Objective, Place
    from composable_energy_training.optimizing import Optimizer
    from composable_energy_training.ranks import Ranks, join, leave
    from composable_energy_training.recipes import Recipe, open_recipe
    from composable_energy_training.replay import ReplayBuffer
    from composable_energy_training.trainer import Report, Trainer
    from composable_energy_training.values import ValueHeads

__all__ = [
    "AttributeHeads",
    "Augmentation",
    "Batch",
    "CSVLog",
    "Callback",
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
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

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "attributes": ("AttributeHeads",),
        "augmentation": ("Augmentation",),
        "callbacks": ("CSVLog", "Callback", "SampleSheet", "TensorBoard"),
        "contrastive": ("ContrastiveDivergence",),
        "denoising": ("DenoisingScoreMatching",),
        "improved": ("ImprovedContrastiveDivergence",),
        "joint": ("JointEnergyClassifier",),
        "monitor": ("Event", "Monitor"),
        "objective": ("Batch", "Loss", "Objective", "Place"),
        "optimizing": ("Optimizer",),
        "ranks": ("Ranks", "join", "leave"),
        "recipes": ("Recipe", "open_recipe"),
        "replay": ("ReplayBuffer",),
        "trainer": ("Report", "Trainer"),
        "values": ("ValueHeads",),
    },
)
