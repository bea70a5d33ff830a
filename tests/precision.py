"""Trainings in tests compute in float32: in bfloat16 they take ten times as long on a processor that has no such numbers."""

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from composable_energy_training import Trainer


def train_in_float32(patch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Makes the trainers that some modules set up compute in float32, whatever these ask for."""

    def trainer(*arguments: Any, **options: Any) -> Trainer:
        return Trainer(*arguments, **{**options, "optimizer": replace(options["optimizer"], precision="float32")})

    for module in modules:
        patch.setattr(module, "Trainer", trainer)
