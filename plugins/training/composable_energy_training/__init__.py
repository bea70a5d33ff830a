"""Training of energies: objectives, a trainer that resumes exactly, recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from composable_energy.lazy import lazy_exports

if TYPE_CHECKING:
    from composable_energy_training.augmentation import Augmentation
    from composable_energy_training.callbacks import Callback, CSVLog, SampleSheet, TensorBoard
    from composable_energy_training.contrastive_divergence import ContrastiveDivergence
    from composable_energy_training.heads import AttributeHeads, ValueHeads
    from composable_energy_training.improved_contrastive_divergence import ImprovedContrastiveDivergence
    from composable_energy_training.joint_classifier import JointEnergyClassifier
    from composable_energy_training.monitor import Alert, Monitor
    from composable_energy_training.objective import Batch, Loss, Objective, RankContext
    from composable_energy_training.optimizer import Optimizer
    from composable_energy_training.ranks import Ranks, join, leave
    from composable_energy_training.recipe import Recipe, open_recipe
    from composable_energy_training.replay_buffer import ReplayBuffer
    from composable_energy_training.report import Report
    from composable_energy_training.score_matching import DenoisingScoreMatching
    from composable_energy_training.trainer import Trainer

__all__ = [
    "Alert",
    "AttributeHeads",
    "Augmentation",
    "Batch",
    "CSVLog",
    "Callback",
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "ImprovedContrastiveDivergence",
    "JointEnergyClassifier",
    "Loss",
    "Monitor",
    "Objective",
    "Optimizer",
    "RankContext",
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
        "augmentation": ("Augmentation",),
        "callbacks": ("CSVLog", "Callback", "SampleSheet", "TensorBoard"),
        "contrastive_divergence": ("ContrastiveDivergence",),
        "heads": ("AttributeHeads", "ValueHeads"),
        "improved_contrastive_divergence": ("ImprovedContrastiveDivergence",),
        "joint_classifier": ("JointEnergyClassifier",),
        "monitor": ("Alert", "Monitor"),
        "objective": ("Batch", "Loss", "Objective", "RankContext"),
        "optimizer": ("Optimizer",),
        "ranks": ("Ranks", "join", "leave"),
        "recipe": ("Recipe", "open_recipe"),
        "replay_buffer": ("ReplayBuffer",),
        "report": ("Report",),
        "score_matching": ("DenoisingScoreMatching",),
        "trainer": ("Trainer",),
    },
)
