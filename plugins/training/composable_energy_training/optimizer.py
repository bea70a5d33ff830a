"""Adam with a learning-rate schedule, gradient clipping, an average of weights, and the precision of its gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number
from composable_energy_training.precision import Precision, check_precision

_LOWEST = 0.01


@dataclass(frozen=True)
class Optimizer:
    r"""Adam, or AdamW if `weight_decay` is positive.

    Args:
        rate: The learning rate.
        betas: $\beta_1, \beta_2$ of the moments. $\beta_1 = 0$, no momentum, is usual for contrastive divergence.
        weight_decay: Decoupled weight decay as in AdamW; 0 is plain Adam.
        warm_up: Steps of a linear warm-up from 0.
        decay: The fraction of all steps, at the end, over which the rate falls linearly to 1%.
        milestones: Pairs (step, factor): the rate is multiplied by the factor from that step on.
        slow: Pairs (beginning of names, share): parameters of the model whose name begins so have this share of the rate. Of several pairs
            the first counts. For parts that were trained before.
        clip: The largest total norm of the gradients; or `"adam"`, which clips each element to $\pm(3 \sqrt{v} + 0.1)$ with Adam's
            second-moment estimate $v$ (Du & Mordatch, 2019); None does not clip.
        ema: The decay of averaged weights, such as 0.999; None for no average.
        accumulate: The number of parts that a batch is split into, to save memory.
        precision: The precision of the networks: `"float32"`, `"bfloat16"`, or, on CUDA, `"float16"`; `"auto"` is bfloat16 where the device
            has instructions for it and float32 elsewhere. Weights stay in their dtype. A resumed run keeps its precision.
    """

    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warm_up: int = 0
    decay: float = 0.0
    milestones: Sequence[tuple[int, float]] = ()
    slow: Sequence[tuple[str, float]] = ()
    clip: float | Literal["adam"] | None = None
    ema: float | None = None
    accumulate: int = 1
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        check_number("rate", self.rate, above=0)
        check_number("weight_decay", self.weight_decay, least=0)
        check_number("warm_up", self.warm_up, least=0)
        check_integer("accumulate", self.accumulate)
        check_precision(self.precision)
        check_number("ema", self.ema, least=0, below=1, optional=True)
        if check_number("decay", self.decay, least=0) > 1:
            raise OptionError(f"decay is a fraction of the steps and must be in [0, 1], got {self.decay!r}.")
        if self.clip is not None and self.clip != "adam" and (not isinstance(self.clip, int | float) or not self.clip > 0):
            raise OptionError(f"clip must be a positive norm, 'adam' or None, got {self.clip!r}.")
        try:
            object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
            object.__setattr__(self, "milestones", tuple((int(step), float(factor)) for step, factor in self.milestones))
            object.__setattr__(self, "slow", tuple((str(name), float(share)) for name, share in self.slow))
        except (TypeError, ValueError) as error:
            given = f"betas={self.betas!r}, milestones={self.milestones!r}, slow={self.slow!r}"
            raise OptionError(f"betas must be two numbers, milestones and slow sequences of pairs, got {given}.") from error
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise OptionError(f"betas must be two numbers in [0, 1), got {self.betas!r}.")
        if not all(step > 0 and factor > 0 for step, factor in self.milestones):
            raise OptionError(f"milestones must be pairs (step, factor) of positive numbers, got {self.milestones!r}.")
        if not all(share > 0 for _, share in self.slow):
            raise OptionError(f"slow must be pairs (beginning of names, positive share), got {self.slow!r}.")

    def build(self, parameters: Sequence[nn.Parameter] | Mapping[str, nn.Parameter]) -> torch.optim.Adam:
        """Returns torch's optimizer of parameters, by their names if `slow` is set, with a group for each share of the rate, under `share`.

        Raises:
            OptionError: No parameter has a name that begins with one of `slow`.
        """
        named = dict(parameters) if isinstance(parameters, Mapping) else {str(i): one for i, one in enumerate(parameters)}
        shares = {name: next((share for start, share in self.slow if name.startswith(start)), 1.0) for name in named}
        for start, _ in self.slow:
            if not any(name.startswith(start) for name in named):
                raise OptionError(f"slow names {start!r}, but no trained parameter has a name that begins so.")
        falling = sorted(set(shares.values()), reverse=True)
        groups = [{"params": [named[name] for name, own in shares.items() if own == share], "share": share} for share in falling]
        if self.weight_decay:
            return torch.optim.AdamW(groups, self.rate, self.betas, weight_decay=self.weight_decay, foreach=True)
        return torch.optim.Adam(groups, self.rate, self.betas, foreach=True)

    def rate_at(self, step: int, steps: int) -> float:
        """Returns the learning rate of a step, from 1 on, of a run of some steps."""
        rate = self.rate * min(1.0, step / self.warm_up) if self.warm_up else self.rate
        if self.decay:
            rate *= max(_LOWEST, min(1.0, (steps - step) / (self.decay * steps)))
        for milestone, factor in self.milestones:
            rate *= factor if step >= milestone else 1.0
        return rate

    def describe(self) -> dict[str, Any]:
        """Returns the settings of the steps as plain data, for checkpoints; without `slow` if it is empty, because older runs had none."""
        apart = {"ema", "accumulate", "precision", *([] if self.slow else ["slow"])}
        return {key: value for key, value in asdict(self).items() if key not in apart}

    def clip_(self, optimizer: torch.optim.Adam) -> Tensor:
        """Clips gradients in place and returns their norm before, with shape $()$. If it is not finite, do not use the gradients."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None]
        if isinstance(self.clip, (int, float)):
            return nn.utils.clip_grad_norm_(parameters, self.clip)
        norms = [parameter.grad.norm() for parameter in parameters]
        norm = torch.stack(norms).norm() if norms else torch.zeros(())
        if self.clip == "adam":
            for parameter in parameters:
                state = optimizer.state.get(parameter)
                mean = state["exp_avg_sq"] / (1 - self.betas[1] ** state["step"].item()) if state else torch.zeros_like(parameter)
                bound = mean.sqrt_().mul_(3).add_(0.1)
                torch.clamp(parameter.grad, -bound, bound, out=parameter.grad)
        return norm
