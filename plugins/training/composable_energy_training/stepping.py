"""One step: the losses of this process's rows, the gradients of all, and weights that follow them unless something is not finite."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.errors import OptionError, SamplingDiverged
from composable_energy_training.batches import parts_of
from composable_energy_training.objective import Batch, Objective
from composable_energy_training.optimizing import Optimizer
from composable_energy_training.precision import DTYPES, Precision, check_precision
from composable_energy_training.ranks import Ranks

__all__ = ["Stepping"]


class Stepping:
    """What makes the steps of a run.

    Args:
        model: What is trained; its parameters that ask for gradients are.
        objective: What is minimized.
        optimizer: How weights follow gradients.
        precision: What networks compute in, not `"auto"`; weights stay as they are.
        accumulate: How many parts a batch is cut into, one after another, to need less memory.
        ranks: The processes that share a batch.
        device: Of the model.

    Raises:
        OptionError: The precision is unknown, or not for this device, or nothing can be trained.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        precision: Precision,
        accumulate: int,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        check_precision(precision, device)
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not self.parameters:
            raise OptionError(f"{type(model).__name__} has no parameter that asks for a gradient: there is nothing to train.")
        self.settings, self.accumulate, self.ranks, self.device = optimizer, accumulate, ranks, device
        self.optimizer = optimizer.of(list(self.parameters.values()))
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self._losses = ranks.wrapped(_Losses(model, objective, precision, device))

    def __call__(self, batch: Batch, rate: float) -> tuple[dict[str, float], bool]:
        """Makes a step.

        Args:
            batch: This process's rows.
            rate: The learning rate.

        Returns:
            The means over all rows: the loss, the norm of the gradient, and what the objective tells; and whether all was finite. If not,
            the weights are as they were.
        """
        self.optimizer.zero_grad(set_to_none=True)
        told: list[dict[str, Tensor]] = []
        for part, rows in enumerate(parts_of(batch, self.accumulate), 1):
            with self.ranks.guarded(), nullcontext() if part == self.accumulate else self.ranks.later(self._losses):
                self._seed(rows.noise.child(f"torch {rows.noise.step} {rows.noise.chains[0]}").seed)
                value, scalars = self._losses(rows)
                self.scaler.scale(value / self.accumulate).backward()
            told.append({"loss": value.detach().float(), **scalars})
        self.scaler.unscale_(self.optimizer)
        means = self._means(told, self.settings.clip_(self.optimizer).to(self.device))
        finite = math.isfinite(means["loss"]) and math.isfinite(means["gradient"])
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return means, finite

    def state(self) -> dict[str, Tensor]:
        """Returns the moments by the names of their parameters."""
        state = self.optimizer.state
        return {f"{name}.{key}": value for name, parameter in self.parameters.items() for key, value in state.get(parameter, {}).items()}

    def restore(self, tensors: dict[str, Tensor], scaler: dict[str, float]) -> None:
        """Takes over what `state` returned, and the state of the scaler."""
        self.optimizer.state.clear()
        for name, tensor in tensors.items():
            name, _, key = name.rpartition(".")
            parameter = self.parameters[name]
            own = tensor.cpu().clone() if key == "step" else torch.empty_like(parameter).copy_(tensor)
            self.optimizer.state[parameter][key] = own.detach()
        if scaler:
            self.scaler.load_state_dict(scaler)

    def _seed(self, seed: int) -> None:
        """Seeds what dropout asks. `torch.manual_seed` would note a stack for each call as long as no GPU was used, and keep it."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _means(self, told: list[dict[str, Tensor]], norm: Tensor) -> dict[str, float]:
        """Over parts and processes, with one wait for the device in a process that is alone."""
        loss = self.ranks.mean(torch.stack([part["loss"] for part in told]).mean())
        if self.ranks.size > 1 and not math.isfinite(loss):  # then processes may not tell the same
            return {"loss": float(loss), "gradient": float(norm)}
        names = sorted(set.intersection(*(set(part) for part in told)) - {"loss"})
        if names:
            scalars = self.ranks.mean(torch.stack([torch.stack([part[name].float() for part in told]).mean() for name in names]))
        else:
            scalars = loss.new_zeros(0)
        return dict(zip(["loss", "gradient", *names], torch.cat([loss.view(1), norm.view(1).to(loss), scalars]).tolist(), strict=True))


class _Losses(nn.Module):
    """The objective as a module, whose parameters are the model's: what DistributedDataParallel takes."""

    def __init__(self, model: nn.Module, objective: Objective, precision: Precision, device: torch.device) -> None:
        super().__init__()
        self.model, self.objective, self.precision, self.device = model, objective, precision, device

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        try:
            with self._context():
                loss = self.objective.loss(self.model, batch)
            return loss.value, {name: value.detach() for name, value in loss.scalars.items()}
        except SamplingDiverged:  # chains that are not finite end like a loss that is not: the step is skipped, and the monitor told
            nothing = torch.stack([parameter.sum() for parameter in self.model.parameters() if parameter.requires_grad]).sum()
            return nothing * math.nan, {}

    def _context(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.precision == "float32" else torch.autocast(self.device.type, DTYPES[self.precision])
