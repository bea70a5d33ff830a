r"""Averaged weights: $\bar\theta \leftarrow k \bar\theta + (1 - k) \theta$ after each step, which sample better than the last ones."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from composable_energy.errors import OptionError

__all__ = ["Average"]


class Average:
    r"""An exponential moving average of a model's parameters, in a copy of the model.

    What the model keeps in buffers, such as the vectors of spectral normalisation, is copied as it is.

    Args:
        model: What is averaged.
        decay: The most that is kept in a step, $k = \min(\text{decay}, (1 + t) / (10 + t))$ at step $t$, so that the beginning is soon
            forgotten.

    Raises:
        OptionError: The decay is not in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        check_decay(decay)
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes the model's weights in, after a step."""
        keep = min(self.decay, (1 + step) / (10 + step))
        own, new = ([parameter.detach() for parameter in one.parameters()] for one in (self.model, model))
        if own:
            get_ema_multi_avg_fn(keep)(own, new, step)
        for mine, its in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(its)


def check_decay(decay: float) -> None:
    """Raises if a decay is none."""
    if not 0 <= decay < 1:
        raise OptionError(f"ema is the share of the average that a step keeps, in [0, 1), got {decay!r}.")
