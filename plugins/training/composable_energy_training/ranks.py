"""Several processes that train one model, as `torchrun` starts them: each has its rows of every batch, and all have the same weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from composable_energy.errors import ComposableEnergyError, OptionError, ProcessLost
from composable_energy.sampling.ranks import Ranks as Sharing

__all__ = ["Ranks", "join", "leave"]

T = TypeVar("T")
_LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "broken pipe", "socket", "peer")


def join(timeout: float = 600.0) -> Ranks:
    """Joins the processes that `torchrun` started; a process that is alone joins nobody.

    Processes with a GPU each talk by nccl, others by gloo. A program that has joined already stays as it is.

    Args:
        timeout: How many seconds to wait for another process before it counts as lost.

    Returns:
        The processes, with the device of this one.

    Raises:
        ProcessLost: Not all came.
    """
    if "RANK" in os.environ and distributed.is_available() and not distributed.is_initialized():
        device = Ranks().device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with _lost_told():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout))
    return Ranks.of()


def leave() -> None:
    """Ends what `join` began."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@dataclass(frozen=True)
class Ranks:
    """The processes of a run; what their methods do, all of them do at the same time.

    Args:
        rank: The number of this one.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls) -> Ranks:
        """Returns those of the process group, or one alone."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @property
    def device(self) -> torch.device:
        """Where this one should compute: on the GPU of its number on its machine, if there is one."""
        place = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", place) if place < torch.cuda.device_count() else torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def own(self, batch_size: int, accumulate: int) -> range:
        """Returns this process's rows of a batch.

        Raises:
            OptionError: The batch cannot be divided evenly.
        """
        if batch_size < 1 or accumulate < 1 or batch_size % (self.size * accumulate):
            raise OptionError(
                f"batch_size must be a multiple of the number of processes, {self.size}, times `accumulate`, {accumulate}; "
                f"got {batch_size}."
            )
        share = batch_size // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def wrapped(self, module: nn.Module) -> nn.Module:
        """Returns a module whose gradients are the means over all processes; losses need not know all of its parameters."""
        if self.size == 1:
            return module
        device = next(module.parameters()).device
        with _lost_told():
            return nn.parallel.DistributedDataParallel(_Shared(module, device), find_unused_parameters=True)

    def mean(self, values: Tensor) -> Tensor:
        """Returns the means over all processes."""
        if self.size == 1:
            return values
        with _lost_told():
            total = values.clone()
            distributed.all_reduce(total)
            return total / self.size

    def joined(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns tensors with the rows of all processes one after another."""
        if self.size == 1:
            return dict(own)
        with _lost_told():
            return {name: Sharing(self.rank, self.size, "gather").gather_rows(_there(tensor)) for name, tensor in own.items()}

    def agreed(self, call: Callable[[], T]) -> T:
        """Calls something in the first process, and returns what it returned, or raises what it raised, in all of them."""
        if self.size == 1:
            return call()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = call()
            except ComposableEnergyError as error:
                box[1] = error
        with _lost_told():
            distributed.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def handed_out(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the tensors of the first process."""
        if self.size == 1:
            return dict(own)
        described = self.agreed(lambda: [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in own.items()])
        out = {}
        with _lost_told():
            for name, dtype, shape in described:
                tensor = _there(own[name].contiguous() if self.first else torch.empty(shape, dtype=dtype))
                if tensor.numel():
                    distributed.broadcast(tensor.reshape(-1).view(torch.uint8), 0)
                out[name] = tensor
        return out

    def later(self, module: nn.Module) -> Any:
        """A context in which gradients are kept and not yet shared."""
        return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()

    def guarded(self) -> Any:
        """A context in which a process that is gone is told as one."""
        return _lost_told() if self.size > 1 else nullcontext()


class _Shared(nn.Module):
    """A module beside a parameter that no loss knows: DistributedDataParallel looks for such parameters, and complains where it finds
    none."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.module = module
        self.unknown = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


def _there(tensor: Tensor) -> Tensor:
    """A tensor where the processes can share it: nccl knows GPUs only."""
    return tensor.cuda() if distributed.get_backend() == "nccl" else tensor.cpu()


@contextmanager
def _lost_told() -> Iterator[None]:
    try:
        yield
    except ComposableEnergyError:
        raise
    except RuntimeError as error:
        if isinstance(error, getattr(distributed, "DistError", ())) or any(word in str(error).lower() for word in _LOST):
            raise ProcessLost(
                "Another process of this run was lost, or did not answer in time; see what it said at its end. The checkpoints are "
                f"whole: start the same command again, and it goes on from the last one. ({str(error).splitlines()[0]})"
            ) from error
        raise
