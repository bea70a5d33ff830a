r"""One training step: the losses of this process's rows, gradients averaged over processes, and an update if all numbers are finite.

After it the average of the weights follows, $\bar\theta \leftarrow k \bar\theta + (1 - k) \theta$; it samples better than the last weights.
"""

import copy
import math
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from composable_energy.errors import OptionError, SamplingDiverged
from composable_energy_training.batches import split_batch
from composable_energy_training.objective import Batch, Loss, Objective
from composable_energy_training.optimizer import Optimizer
from composable_energy_training.precision import DTYPES, Precision
from composable_energy_training.ranks import Ranks


class EMA:
    """Exponential moving average (EMA) of a model's parameters, in a copy; buffers, as of spectral norms, are copied unchanged."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.model = decay, copy.deepcopy(model).eval().requires_grad_(False)

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
            own.copy_(tensors[name].view_as(own))


class TrainStep:
    """Takes the training steps of a run; weights keep their dtype in any precision."""

    def __init__(
        self, model: nn.Module, objective: Objective, optimizer: Optimizer, precision: Precision, ranks: Ranks, device: torch.device
    ) -> None:
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not self.parameters:
            raise OptionError(f"{type(model).__name__} has no parameter that requires a gradient: there is nothing to train.")
        self.settings, self.accumulate, self.ranks, self.device = optimizer, optimizer.accumulate, ranks, device
        self.buffers = [(module, name) for module in model.modules() for name, _ in module.named_buffers(recurse=False)]
        self.optimizer = optimizer.build(self.parameters)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self._losses = ranks.wrap(_LossModule(model, objective, precision, device))

    def __call__(self, batch: Batch, rate: float) -> tuple[dict[str, float], bool]:
        """Takes a step, and returns the means over all rows of the loss, the gradient norm and the objective's scalars. The second value
        says whether loss and gradient were finite; if not, the weights and buffers, such as statistics of batch norm, are unchanged."""
        self.optimizer.zero_grad(set_to_none=True)
        before = [(buffer := getattr(*place), buffer.clone()) for place in self.buffers]
        parts: list[dict[str, Tensor]] = []
        for number, part in enumerate(split_batch(batch, self.accumulate), 1):
            with self.ranks.detect_loss(), nullcontext() if number == self.accumulate else self.ranks.skip_sync(self._losses):
                seed = part.noise.child(f"torch {part.noise.step} {part.noise.chains[0]}").seed  # for dropout
                torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would keep a stack trace of each call until a GPU is used
                if self.device.type == "cuda":
                    torch.cuda.manual_seed(seed)
                value, scalars = self._losses(part)
                self.scaler.scale(value / self.accumulate).backward()
            parts.append({**scalars, "loss": value.detach().float()})
        self.scaler.unscale_(self.optimizer)
        means = self._means(parts, self.settings.clip_(self.optimizer).to(self.device))
        if finite := math.isfinite(means["loss"]) and math.isfinite(means["gradient"]):
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["share"]
            self.scaler.step(self.optimizer)
        for place, (buffer, old) in zip(self.buffers, before, strict=True) if not finite else ():
            setattr(*place, buffer.copy_(old))  # a module may have replaced its buffer
        self.scaler.update()
        return means, finite

    def state(self) -> dict[str, Tensor]:
        """Returns the state of the optimizer, by the names of parameters."""
        state = self.optimizer.state
        return {f"{name}.{key}": value for name, parameter in self.parameters.items() for key, value in state.get(parameter, {}).items()}

    def restore(self, tensors: dict[str, Tensor], scaler: dict[str, float]) -> None:
        """Loads the state of the optimizer that `state` returned, and the state of the gradient scaler."""
        self.optimizer.state.clear()
        for name, tensor in tensors.items():
            name, _, key = name.rpartition(".")
            parameter = self.parameters[name]
            own = tensor.cpu().clone().view(()) if key == "step" else torch.empty_like(parameter).copy_(tensor.view_as(parameter))
            self.optimizer.state[parameter][key] = own.detach()
        if any(state.keys() != {"step", "exp_avg", "exp_avg_sq"} for state in self.optimizer.state.values()):
            raise ValueError("the state of the optimizer is not that of Adam")
        if scaler:
            self.scaler.load_state_dict(scaler)

    def _means(self, parts: list[dict[str, Tensor]], norm: Tensor) -> dict[str, float]:
        """Averages scalars over parts and processes; a single process waits for the device once."""
        loss = self.ranks.mean(torch.stack([part["loss"] for part in parts]).mean())
        if self.ranks.size > 1 and not math.isfinite(loss):  # then the scalars of the processes may differ in name
            return {"loss": float(loss), "gradient": float(norm)}
        names = sorted(set.intersection(*map(set, parts)) - {"loss", "gradient"})  # the objective cannot replace these two
        values = [torch.stack([part[name].float() for part in parts]).mean() for name in names]
        scalars = self.ranks.mean(torch.stack(values)) if names else loss.new_zeros(0)
        return dict(zip(["loss", "gradient", *names], torch.cat([loss.view(1), norm.view(1).to(loss), scalars]).tolist(), strict=True))


class _LossModule(nn.Module):
    """The objective as a module with the model's parameters, as DistributedDataParallel needs it."""

    def __init__(self, model: nn.Module, objective: Objective, precision: Precision, device: torch.device) -> None:
        super().__init__()
        self.model, self.objective, self.precision, self.device = model, objective, precision, device

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        try:
            with nullcontext() if self.precision == "float32" else torch.autocast(self.device.type, DTYPES[self.precision]):
                loss = self.objective.loss(self.model, batch)
            value = loss.value if isinstance(loss, Loss) else None
            if not isinstance(value, Tensor) or value.shape or not value.requires_grad:
                raise OptionError(f"{type(self.objective).__name__} must return a `Loss` whose value has shape () and a graph.")
            return loss.value, {name: torch.as_tensor(value, device=self.device).detach() for name, value in loss.scalars.items()}
        except SamplingDiverged:  # a NaN loss with a graph: the step is skipped in all processes, and the monitor counts it
            return torch.stack([parameter.sum() for parameter in self.model.parameters() if parameter.requires_grad]).sum() * math.nan, {}
