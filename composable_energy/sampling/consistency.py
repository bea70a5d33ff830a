"""Whether the parts of a trace that was read from a file belong together."""

from __future__ import annotations

from dataclasses import fields
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from composable_energy.sampling.sampler import State
from composable_energy.sampling.trace import Trace

_MOST_STEPS = 2**32


def inconsistency(trace: Trace, like: State) -> str | None:
    """Returns what does not fit in a trace; None if all does.

    Args:
        trace: The trace of an interrupted run.
        like: The state of one chain.
    """
    n = len(trace.chains)
    if type(trace.steps) is not int or not 0 <= trace.steps < _MOST_STEPS:
        return f"steps is {trace.steps!r}"
    if trace.diverged_at.dtype != torch.int64 or trace.diverged_at.shape != (n,):
        return "the divergences have another shape"
    for field in fields(like):
        if not _fits(getattr(trace.state, field.name), getattr(like, field.name), n):
            return f"{field.name} of the state has another shape or type"
    return _inconsistent_records(trace, n)


def _fits(value: Any, like: Any, rows: int) -> bool:
    if isinstance(like, Tensor):
        shape = (rows, *like.shape[1:]) if like.ndim and len(like) == 1 else like.shape
        return isinstance(value, Tensor) and value.shape == shape and value.is_floating_point() == like.is_floating_point()
    if isinstance(like, Real) and not isinstance(like, bool):
        return isinstance(value, Real) and not isinstance(value, bool)
    return like is None or type(value) is type(like)


def _inconsistent_records(trace: Trace, n: int) -> str | None:
    if trace.energies.ndim != 2 or (len(trace.energies) and trace.energies.shape[1] != n) or len(trace.energies) > trace.steps:
        return "the energies have another shape"
    if trace.acceptance is not None and trace.acceptance.shape != trace.energies.shape:
        return "the rates of acceptance have another shape"
    steps, points = trace.point_steps, trace.points
    if not isinstance(steps, list) or not all(type(step) is int and 0 < step <= trace.steps for step in steps):
        return "the steps of the points are invalid"
    if points is not None and points.shape[:2] != (len(steps), n):
        return "the points have another shape"
    scalars = trace.scalars
    if not isinstance(scalars, dict) or not all(isinstance(values, list) for values in scalars.values()):
        return "the scalars are invalid"
    if not all(isinstance(value, Real) for values in scalars.values() for value in values):
        return "a scalar is no number"
    return None
