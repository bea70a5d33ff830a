"""Chains shared among the processes of `torch.distributed`, by their ids."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, TypeVar, cast

import torch.distributed.nn  # defaults of its functions hold a process group that exists at its import: its threads crash at exit
from torch import distributed

from composable_energy import sampling
from composable_energy.energies.energy import Energy
from composable_energy.errors import ComposableEnergyError, OptionError, ProcessLost
from composable_energy.options import check_integer
from composable_energy.sampling.selection import recommendations
from composable_energy.sampling.wrappers import has_rows
from composable_energy.supports import join

T = TypeVar("T")
_LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "broken pipe", "socket", "peer")


def sample(energy: Energy, shape: int | Sequence[int], *, gather: bool = True, **call: Any) -> Any:
    """Draws points by `Energy.sample` in several processes; all of them make the same call, and draw the points of one process.

    Trace, warnings, observers and the checkpoint of a process, whose name ends with its number, are of its own chains.

    Args:
        energy: The energy.
        shape: The shape $(n, *)$ of all points, or $n$.
        gather: Whether each process returns all points, or its own.
        **call: The other arguments of `Energy.sample`.

    Returns:
        The points; with `trace`, the pair of points and the trace of this process.

    Raises:
        OptionError: There is no process group, there are fewer points than processes, or the sampler couples all chains, as `smc`.
        ProcessLost: Another process has ended, or does not answer within the time limit of the process group.
    """
    n, *event = shape if isinstance(shape, Sequence) else (shape,)
    own, resume = own_chains(n), call.get("resume")
    options = {name: value for name, value in call.items() if name not in signature(sampling.sample).parameters}
    sampler = sampling.resolve_sampler(energy, call.get("sampler"), options) if resume is None else resume.sampler
    if sampler.traits.couple is not None:
        raise OptionError(f"{type(sampler).__name__} couples all chains: draw in one process, or in each with a seed of its own.")
    if has_rows(energy) and len(own) < n:
        way = "bind the rows of `own_chains(n)` in each process, and call `sample` with their start as `first_chain`, and one seed"
        raise OptionError(f"{energy} has a bound condition for each point: {way}; `gather_rows` joins the points.")
    if resume is None:
        box = [secrets.randbits(63) if call.get("seed") is None else call["seed"]]
        with detect_loss():
            distributed.broadcast_object_list(box)
        init = join(start, energy.variables) if isinstance(start := call.get("init"), Mapping) and energy.variables else start
        if call.get("steps") is None and sampler.total_steps is None and (call.get("sampler") or not recommendations(energy)):
            call["steps"] = sampler.traits.steps  # no process knows whether the chains of others have converged
        call |= {"seed": box[0], "first_chain": own.start, "init": None if init is None else init[own.start : own.stop]}
    part = f"{distributed.get_rank()}-of-{distributed.get_world_size()}"
    call["observers"] = [
        sampling.Checkpoint(f"{one.path}.{part}", one.every) if isinstance(one, sampling.Checkpoint) else one
        for one in call.get("observers", ())
        if own.start == 0 or not isinstance(one, sampling.Progress)
    ]
    drawn, error = cast(Any, None), cast(Exception | None, None)
    try:
        drawn = energy.sample((len(own), *event) if isinstance(shape, Sequence) else len(own), **call)
    except Exception as own_error:
        error = own_error
    problems = _gather_objects(error and f"{type(error).__name__}: {error}")  # no process waits for one that has ended
    if error is not None:
        raise error
    if any(problems):
        raise ProcessLost(f"Another process of this call ended: {next(filter(None, problems))}")
    if not gather:
        return drawn
    return (gather_rows(drawn[0]), drawn[1]) if isinstance(drawn, tuple) else gather_rows(drawn)


def own_chains(n: int) -> range:
    """Returns which of `n` chains this process draws; two processes differ by at most one chain."""
    if not (distributed.is_available() and distributed.is_initialized()):
        way = "start the program with `torchrun --nproc-per-node=N`, and call `torch.distributed.init_process_group()` in it first"
        raise OptionError(f"There is no process group: {way}. In a single process call `E.sample`.")
    rank, size, n = distributed.get_rank(), distributed.get_world_size(), check_integer("The number of points", n)
    if n < size:
        raise OptionError(f"{size} processes share {n} points: ask for as many at least.")
    return range(rank * n // size, (rank + 1) * n // size)


def gather_rows(own: Any) -> Any:
    """Returns the rows of all processes one after another, also those of each named variable."""
    if isinstance(own, dict):
        return {name: gather_rows(values) for name, values in own.items()}
    counts = _gather_objects(len(own))
    data = own.clone(memory_format=torch.contiguous_format).reshape(len(own), -1).view(torch.uint8)  # all backends take bytes
    padded = data.new_zeros((max(counts), *data.shape[1:]))
    padded[: len(own)] = data
    parts = [torch.empty_like(padded) for _ in counts]
    with detect_loss():
        distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).view(own.dtype).reshape(-1, *own.shape[1:])


def _gather_objects(own: T) -> list[T]:
    parts: list[Any] = [None] * distributed.get_world_size()
    with detect_loss():
        distributed.all_gather_object(parts, own)
    return parts


@contextmanager
def detect_loss() -> Iterator[None]:
    """Returns a context in which the loss of another process raises `ProcessLost`."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, getattr(distributed, "DistError", ())) or any(word in str(error).lower() for word in _LOST)
        if lost and not isinstance(error, ComposableEnergyError):
            raise ProcessLost(
                "Another process of this run was lost, or did not answer in time; its own output says why. The checkpoints are intact: "
                f"start the same command again to resume from the last one. ({str(error).splitlines()[0]})"
            ) from error
        raise
