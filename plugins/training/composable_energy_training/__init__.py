"""Training of energies: objectives, a trainer that resumes exactly, recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from composable_energy.lazy import lazy_exports

if TYPE_CHECKING:
    from composable_energy_training.augmentation import Augmentation
    from composable_energy_training.callbacks import Callback, CSVLog, SampleSheet, TensorBoard
    from composable_energy_training.combined import CombinedObjective
    from composable_energy_training.contrastive_divergence import ContrastiveDivergence
    from composable_energy_training.energy_discrepancy import EnergyDiscrepancy
    from composable_energy_training.energy_matching import EnergyMatching
    from composable_energy_training.heads import AttributeHeads, ValueHeads
    from composable_energy_training.improved_contrastive_divergence import ImprovedContrastiveDivergence
    from composable_energy_training.joint_classifier import JointEnergyClassifier
    from composable_energy_training.label_contrast import LabelContrast
    from composable_energy_training.monitor import Alert, Monitor
    from composable_energy_training.noise_contrastive import NoiseContrastive
    from composable_energy_training.noise_distributions import FlowNoise, GaussianNoise, NoiseDistribution
    from composable_energy_training.objective import Batch, Loss, Objective, RankContext
    from composable_energy_training.optimizer import Optimizer
    from composable_energy_training.ranks import Ranks, join, leave
    from composable_energy_training.recipe import Recipe, open_recipe
    from composable_energy_training.recovery_likelihood import DiffusionRecoveryLikelihood
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
    "CombinedObjective",
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "DiffusionRecoveryLikelihood",
    "EnergyDiscrepancy",
    "EnergyMatching",
    "FlowNoise",
    "GaussianNoise",
    "ImprovedContrastiveDivergence",
    "JointEnergyClassifier",
    "LabelContrast",
    "Loss",
    "Monitor",
    "NoiseContrastive",
    "NoiseDistribution",
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
        "callbacks": ("Callback", "CSVLog", "SampleSheet", "TensorBoard"),
        "combined": ("CombinedObjective",),
        "contrastive_divergence": ("ContrastiveDivergence",),
        "energy_discrepancy": ("EnergyDiscrepancy",),
        "energy_matching": ("EnergyMatching",),
        "heads": ("AttributeHeads", "ValueHeads"),
        "improved_contrastive_divergence": ("ImprovedContrastiveDivergence",),
        "joint_classifier": ("JointEnergyClassifier",),
        "label_contrast": ("LabelContrast",),
        "monitor": ("Alert", "Monitor"),
        "noise_contrastive": ("NoiseContrastive",),
        "noise_distributions": ("FlowNoise", "GaussianNoise", "NoiseDistribution"),
        "objective": ("Batch", "Loss", "Objective", "RankContext"),
        "optimizer": ("Optimizer",),
        "ranks": ("Ranks", "join", "leave"),
        "recipe": ("Recipe", "open_recipe"),
        "recovery_likelihood": ("DiffusionRecoveryLikelihood",),
        "replay_buffer": ("ReplayBuffer",),
        "report": ("Report",),
        "score_matching": ("DenoisingScoreMatching",),
        "trainer": ("Trainer",),
    },
)
