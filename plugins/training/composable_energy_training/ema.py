r"""Exponential moving average of weights, $\bar\theta \leftarrow k \bar\theta + (1 - k) \theta$ after each step; it samples better than the
last weights."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    r"""Exponential moving average (EMA) of a model's parameters, in a copy of the model.

    Buffers, such as the vectors of spectral normalization, are copied unchanged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Updates the average with the model's weights after a step."""
        keep = min(self.decay, (1 + step) / (10 + step))
        averages, weights = ([parameter.detach() for parameter in one.parameters()] for one in (self.model, model))
        if averages:
            get_ema_multi_avg_fn(keep)(averages, weights, step)
        for own, new in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(new)


def copy_tensors(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copies saved tensors into a model in place, so that other references to its tensors see the new values."""
    for name, own in model.state_dict().items():
        if isinstance(own, Tensor):
            own.copy_(tensors[name])
