"""The processes of a training run, as `torchrun` starts them: each computes its rows of every batch, and all have the same weights.

On SIGTERM or Ctrl-C the step in progress ends, a checkpoint is written, and the process exits.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, distributed, nn

from composable_energy.distributed import detect_loss
from composable_energy.errors import ComposableEnergyError, OptionError

T = TypeVar("T")


def join(timeout: float = 600.0) -> Ranks:
    """Joins the process group that `torchrun` started, if any, and returns the processes, with the device of this one.

    Processes with a GPU each communicate by nccl, others by gloo. A process group that exists already is kept. A process counts as
    lost after `timeout` seconds.

    Raises:
        ProcessLost: A process did not join in time.
    """
    if "RANK" in os.environ and distributed.is_available() and not distributed.is_initialized():
        if (device := Ranks().device).type == "cuda":
            torch.cuda.set_device(device)
        with detect_loss():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout))
    return Ranks.current()


def leave() -> None:
    """Destroys the process group, if there is one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@dataclass(frozen=True)
class Ranks:
    """The processes of a run. Methods that communicate must be called by all processes at the same time."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Returns the processes of the process group, or a single one."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @property
    def device(self) -> torch.device:
        """The default device of this process: the GPU with its number on this machine, if there is one, else the CPU."""
        number = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", number) if number < torch.cuda.device_count() else torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def select_rows(self, batch_size: int, accumulate: int) -> range:
        """Returns this process's rows of a batch.

        Raises:
            OptionError: The batch cannot be divided evenly.
        """
        if batch_size < 1 or accumulate < 1 or batch_size % (self.size * accumulate):
            raise OptionError(f"batch_size must be a multiple of {self.size} processes times accumulate={accumulate}, got {batch_size}.")
        share = batch_size // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Returns a module whose gradients are averaged over the processes; a loss may leave parameters unused."""
        if self.size == 1:
            return module
        device = next(module.parameters()).device
        with detect_loss():
            return nn.parallel.DistributedDataParallel(_WithUnused(module, device), find_unused_parameters=True)

    def mean(self, values: Tensor) -> Tensor:
        """Returns the means over the processes."""
        if self.size == 1:
            return values
        with detect_loss():
            total = values.clone()
            distributed.all_reduce(total)
            return total / self.size

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns tensors on the CPU whose rows are those of all processes, concatenated in order."""
        if self.size == 1:
            return dict(tensors)
        parts: list[Any] = [None] * self.size
        with detect_loss():
            distributed.all_gather_object(parts, {name: tensor.cpu() for name, tensor in tensors.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in tensors}

    def call_on_first(self, function: Callable[[], T]) -> T:
        """Calls a function in the first process; returns its result, or raises its error, in all processes."""
        if self.size == 1:
            return function()
        box: list[Any] = [None, None]
        if self.is_first:
            try:
                box[0] = function()
            except ComposableEnergyError as error:
                box[1] = error
        with detect_loss():
            distributed.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def skip_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Returns a context in which gradients accumulate without being averaged."""
        return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()

    def detect_loss(self) -> AbstractContextManager[Any]:
        """Returns a context in which the loss of another process raises `ProcessLost`."""
        return detect_loss() if self.size > 1 else nullcontext()


class _WithUnused(nn.Module):
    """A module with an unused parameter: DistributedDataParallel warns if it searches for unused parameters and finds none."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.module = module
        self.unused = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


class Termination:
    """Whether SIGTERM or Ctrl-C has arrived. The signal sets a flag, so that a step is never left half done."""

    def __init__(self) -> None:
        self.requested: int | None = None

    @contextmanager
    def watch(self, enabled: bool = True) -> Iterator[None]:
        """A context in which a signal sets `requested`, and ends the run on exit; restores the handlers. A second Ctrl-C ends it at once. A
        handler of the program stays in place. Outside of the main thread nothing is watched, since Python allows handlers there only."""
        self.requested, own = None, dict[int, Any]()
        if enabled and threading.current_thread() is threading.main_thread():
            defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
            own = {number: default for number, default in defaults.items() if signal.getsignal(number) == default}
        try:
            for number in own:
                signal.signal(number, self._handle)
            yield
            if self.requested:
                self.exit("at the end")
        finally:
            for number, default in own.items():
                signal.signal(number, default)

    def exit(self, when: str) -> NoReturn:
        """Ends the run: by KeyboardInterrupt after Ctrl-C, else by SystemExit with the status of a process that SIGTERM ended."""
        if self.requested == signal.SIGINT:
            raise KeyboardInterrupt(f"Training was interrupted {when}.")
        raise SystemExit(128 + signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = number
