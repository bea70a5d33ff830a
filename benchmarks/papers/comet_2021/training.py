"""Training for a number of steps, or of seconds of one processor."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from composable_energy_training.precision import DTYPES, Precision, native_precision

PRECISION = native_precision(torch.device("cpu"))
"""The precision of trainings with `precision="auto"` on this processor."""

SLOW = 0.05
"""The share of the learning rate for parameters that were trained before: an encoder that convolutional energies start with."""


@dataclass(frozen=True)
class Budget:
    """The length and the settings of a training.

    The learning rate of Adam rises linearly in the first `warm_up` steps. Then it is constant, with a tenth in the last `tail` of the
    budget; or it falls to 0 as half a cosine, if `cosine`.
    """

    seconds: float = 150.0  # processor seconds
    steps: int | None = None  # number of steps, instead of seconds
    rate: float = 1e-3
    warm_up: int = 200  # steps of warm-up
    tail: float = 0.15  # share of the budget with a tenth of the rate
    cosine: bool = False  # whether the rate falls as half a cosine
    clip: float = 1.0  # largest norm of the gradients
    batch: int = 16
    precision: Precision = "float32"  # of the loss; trainings that are compared at equal time have float32

    def spent(self, seconds: float, steps: int) -> float:
        """Returns the share of the budget that is used."""
        return seconds / self.seconds if self.steps is None else steps / self.steps

    def rate_at(self, step: int, spent: float) -> float:
        """Returns the learning rate of a step; the first step is 1."""
        left = (1 + math.cos(math.pi * spent)) / 2 if self.cosine else 0.1 if spent >= 1 - self.tail else 1.0
        return self.rate * min(1.0, step / max(self.warm_up, 1)) * left


def fit(
    loss: Callable[[Tensor, int], Tensor],
    parameters: Iterable[nn.Parameter],
    count: int,
    budget: Budget,
    seed: int = 0,
    slow: Iterable[nn.Parameter] = (),
) -> dict[str, float]:
    """Trains by Adam on random batches until the budget is used."""
    trained, known = [parameter for parameter in parameters if parameter.requires_grad], {id(parameter) for parameter in slow}
    groups = [{"params": [one for one in trained if (id(one) in known) == late], "share": SLOW if late else 1.0} for late in (False, True)]
    adam = torch.optim.Adam([group for group in groups if group["params"]], budget.rate, foreach=True)
    generator = torch.Generator().manual_seed(seed)
    precision = PRECISION if budget.precision == "auto" else budget.precision
    started, steps, seconds, losses = time.process_time(), 0, 0.0, []
    while (spent := budget.spent(seconds, steps)) < 1:
        steps += 1
        for group in adam.param_groups:
            group["lr"] = group["share"] * budget.rate_at(steps, spent)
        adam.zero_grad(set_to_none=True)
        with torch.autocast("cpu", DTYPES[precision], enabled=precision != "float32"):
            value = loss(torch.randint(count, (budget.batch,), generator=generator), steps)
        value.backward()
        nn.utils.clip_grad_norm_(trained, budget.clip, foreach=True)
        adam.step()
        losses.append(float(value.detach()))
        seconds = time.process_time() - started
    last = losses[-max(1, steps // 10) :]
    return {"steps": steps, "seconds": seconds, "loss": sum(last) / len(last)}
