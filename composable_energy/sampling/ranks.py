"""The processes that share the chains of a call, as `torchrun` starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, distributed

from composable_energy.errors import ComposableEnergyError, OptionError, ProcessLost

Share = Literal["gather", "shard"]
T = TypeVar("T")
_LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "broken pipe", "socket", "peer")


@dataclass(frozen=True)
class Ranks:
    """The processes of a call. Every method that communicates is called by all of them at the same time.

    It raises `ProcessLost` if another process has ended, or does not answer within the time limit of the process group.

    Args:
        rank: The number of this process.
        size: The number of processes.
        share: Whether each process returns all points or its own.
    """

    rank: int
    size: int
    share: Share

    @classmethod
    def of(cls, share: Share | None) -> Ranks | None:
        """Returns the processes that share a call; None for a process that draws alone.

        Raises:
            OptionError: `share` is unknown, or `torch.distributed` is not initialised.
        """
        if share is None:
            return None
        if share not in ("gather", "shard"):
            raise OptionError(f"ranks is 'gather', 'shard' or None, got {share!r}.")
        if not (distributed.is_available() and distributed.is_initialized()):
            raise OptionError(
                f"ranks={share!r} needs a process group: start the program with `torchrun --nproc-per-node=N`, and call "
                "`torch.distributed.init_process_group()` in it first. A process that draws alone leaves `ranks` out."
            )
        return cls(distributed.get_rank(), distributed.get_world_size(), share)

    def own(self, n: int) -> range:
        """Returns which of `n` points this process draws; two processes differ by at most one point.

        Raises:
            OptionError: There are fewer points than processes.
        """
        if n < self.size:
            raise OptionError(f"{self.size} processes share {n} points: ask for as many at least.")
        return range(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def gather_rows(self, own: Tensor) -> Tensor:
        """Returns the rows of all processes one after another."""
        counts = self.gather(len(own))
        whole = own.clone(memory_format=torch.contiguous_format).reshape(len(own), -1)
        data = whole.view(torch.uint8)  # not every backend takes every dtype, and all take bytes
        padded = data.new_zeros((max(counts), *data.shape[1:]))
        padded[: len(own)] = data
        parts = [torch.empty_like(padded) for _ in counts]
        with detect_loss():
            distributed.all_gather(parts, padded)
        rows = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        return rows.view(own.dtype).reshape(-1, *own.shape[1:])

    def gather(self, own: T) -> list[T]:
        """Returns the objects of all processes, in the order of their numbers."""
        parts: list[Any] = [None] * self.size
        with detect_loss():
            distributed.all_gather_object(parts, own)
        return parts

    def broadcast(self, own: T) -> T:
        """Returns the object of the first process."""
        box: list[Any] = [own]
        with detect_loss():
            distributed.broadcast_object_list(box)
        return box[0]


@contextmanager
def detect_loss() -> Iterator[None]:
    """Returns a context in which the loss of another process raises `ProcessLost`."""
    try:
        yield
    except ComposableEnergyError:
        raise
    except RuntimeError as error:
        if isinstance(error, getattr(distributed, "DistError", ())) or any(word in str(error).lower() for word in _LOST):
            raise ProcessLost(
                "Another process of this run was lost, or did not answer in time; its own output says why. The checkpoints are intact: "
                f"start the same command again to resume from the last one. ({str(error).splitlines()[0]})"
            ) from error
        raise
