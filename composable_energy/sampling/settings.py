"""Settings of a call: what it says, what a trace says that it goes on from, and what both come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy.noise import Kind
from composable_energy.sampling.asking import Asked
from composable_energy.sampling.sampler import Sampler
from composable_energy.sampling.trace import Trace

__all__ = ["check_resume", "last_points", "length", "noise_kind", "start_points"]


def start_points(init: Tensor | None, asked: Asked) -> Tensor | None:
    """Returns a copy of the points to start at."""
    if init is None:
        return None
    if init.shape != (asked.n, *asked.event):
        raise ShapeError(f"init must have the shape {(asked.n, *asked.event)} of the points, got {tuple(init.shape)}.")
    return init.detach().clone()


def last_points(resume: Trace) -> Tensor:
    """Returns points of the chains of a trace, wherever they are."""
    return resume.states[0][2].x if resume.states else resume.stopped[0].state.x


def length(sampler: Sampler, steps: int | None, done: int) -> int:
    """Returns how many steps to take.

    Args:
        sampler: The sampler.
        steps: How many are asked for.
        done: How many were taken before.

    Raises:
        OptionError: The sampler takes fewer.
    """
    total = sampler.total_steps
    if total is None:
        return sampler.default_steps if steps is None else steps
    if steps is None:
        steps = max(1, total - done)
    if done + steps > total:
        before = f"{done} are done, and " if done else ""
        raise OptionError(f"{sampler} takes {total} steps: {before}{steps} were asked for.")
    return steps


def noise_kind(kind: Any, device: torch.device) -> Kind:
    """Returns the kind of noise for a device; raises if there is none such."""
    if kind not in (None, "blocks", "philox"):
        raise OptionError(f"noise is 'blocks' or 'philox', got {kind!r}.")
    if device.type == "cpu":
        return kind or "blocks"
    if kind == "blocks":
        raise OptionError(f"noise='blocks' is drawn on the CPU, the points are on {device}: there it is 'philox'.")
    return "philox"


def check_resume(resume: Trace, given: dict[str, Any], best_of: int, first_chain: int, shape: int | Sequence[int]) -> None:
    """Raises if what a call says is not what the trace says that it goes on from."""
    if not isinstance(resume, Trace):
        raise OptionError(f"resume takes the Trace that `sample(..., trace=True)` returned, got {type(resume).__name__}.")
    wrong = [name for name, value in given.items() if value is not None and value != getattr(resume, name, None)]
    wrong += ["best_of"] * (best_of not in (1, resume.best_of)) + ["first_chain"] * (first_chain not in (0, resume.first_chain))
    wrong += ["shape"] * (tuple(shape) != resume.shape if isinstance(shape, Sequence) else shape != resume.shape[0])
    if wrong:
        raise OptionError(f"A resumed call goes on as it began, {resume}: leave out {', '.join(wrong)}.")
