"""Checkpoints of a running call: one record of tensors and JSON, replaced atomically, from which the same call continues."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields, is_dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import ExpressionError, FileFormatError, OptionError
from composable_energy.files import digest_of, exclusive, exists, expanded, read_record, write_record
from composable_energy.sampling.chains import Chains, Observer, TraceRecorder
from composable_energy.sampling.problem import Problem
from composable_energy.sampling.sampler import Info, Sampler, State
from composable_energy.sampling.trace import Trace, Values

_VERSION = 4
_TENSORS = ("diverged_at", "energies", "acceptance", "points")
_PLAIN = (bool, int, float, str, type(None))
_MOST_STEPS = 2**32
_START_CHAINS = 64  # chains whose values at the start are kept
_MAX_SHARE = 1 / 20  # of the time, spent on writing
_ANEW = "give another path, or delete it to begin anew"


class Checkpoint(Observer):
    """Keeps the state of all chains in a file. If the file exists, the call continues from it, with the bits of an uninterrupted call.

    The file stays at the end; a call with more `steps` continues. It also holds energies and gradients at points of the chains: the energy
    is evaluated there again, and another energy is refused.

    Args:
        path: The path of the file.
        every: The least time between two writings, in seconds; 0 writes after each step.

    Raises:
        OptionError: An argument has another type, or the time is negative.
    """

    def __init__(self, path: str | Path, every: float = 10.0) -> None:
        if not isinstance(path, str | Path):
            raise OptionError(f"Checkpoint takes the path of a file, got {path!r}.")
        if not isinstance(every, Real) or isinstance(every, bool) or not every >= 0:  # pyright: ignore[reportOperatorIssue]
            raise OptionError(f"Checkpoint takes a number of seconds, at least 0, as `every`, got {every!r}.")
        self.path, self.every = path, every


class CheckpointFile(Observer):
    """The file of a call: read at its start, and written every so often, at the end, and when the loop is broken off.

    Args:
        checkpoint: The path, and how often it is written.
        problem: What is sampled. Its seed is that of the file where the call gives none.
        held: Takes the lock of the file, for the time of the call.

    Attributes:
        problem: The problem with the seed of the file.
        recorder: Records the steps; it is set before the loop.

    Raises:
        FileFormatError: The file is damaged, or no checkpoint.
        StorageError: Another call, here or in another process, writes the file.
        OptionError: It belongs to another call.
        StorageError: The lock cannot be created.
    """

    recorder: TraceRecorder

    def __init__(self, checkpoint: Checkpoint, problem: Problem, held: ExitStack) -> None:
        self.path, self.every = expanded(checkpoint.path), checkpoint.every
        held.enter_context(exclusive(self.path))
        call = json.loads(json.dumps(_described(problem)))
        self.saved = self._read(call) if exists(self.path) else None
        if self.saved is not None:
            problem = replace(problem, noise=replace(problem.noise, seed=self.saved[0]["call"]["seed"]))
        self.problem, self.call = problem, {**call, "seed": problem.noise.seed}
        self.due, self.written = time.monotonic() + self.every, 0
        self.start: Values | None = None
        self.last: tuple[int, Values] | None = None  # a step, and the values there

    def _read(self, here: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        try:
            record, tensors = read_record(self.path, "checkpoint", _VERSION)
            there = dict(record["call"])
        except (FileFormatError, KeyError, TypeError, ValueError) as error:
            reason = error.args[0] if isinstance(error, FileFormatError) else f"{self.path} has no call."
            raise FileFormatError(f"{reason} To begin anew, give another path, or delete the checkpoint.") from None
        seed = there.get("seed")
        if type(seed) is not int or not 0 <= seed < 2**64:
            raise FileFormatError(f"{self.path} is inconsistent (its seed is {seed!r}): {_ANEW}.")
        here = {**here, "seed": seed} if here["seed"] is None else here
        wrong = [f"{name} was {there.get(name)!r}, is {value!r}" for name, value in here.items() if there.get(name) != value]
        if wrong:
            raise OptionError(f"{self.path} belongs to another call ({'; '.join(wrong)}): {_ANEW}.")
        return record, tensors

    # The interrupted run --------------------------------------------------------------------------------------------------------------

    def check_energy(self) -> None:
        """Raises if the energy is not that of the interrupted run.

        Raises:
            FileFormatError: The values that identify the energy are missing, or their shapes do not fit.
            OptionError: The energy is another one.
        """
        if self.saved is not None:
            self.problem.check_same_energy(self._reference(), f"{self.path} belongs to a call", f"{_ANEW.capitalize()}.")

    def trace(self, blank: Trace, chains: Chains) -> Trace | None:
        """Returns the trace of the interrupted run; None if there was none.

        Args:
            blank: A trace of the call without steps.
            chains: The chains, before their start: a state of one of them shows the shapes.
        """
        if self.saved is None:
            return None
        (record, tensors), trace, like = self.saved, blank, chains.started_at(range(1))
        tensors = {name: value if name == "diverged_at" else value.to(like.x.device) for name, value in tensors.items()}
        try:
            found: dict[str, Any] = {name: tensors[name] for name in _TENSORS if name in tensors}
            found |= {name: record[name] for name in ("steps", "scalars", "point_steps")}
            found |= {"chains": range(len(found["diverged_at"])), "reference": self._reference()}
            trace = replace(blank, state=_read_state(record["state"], tensors, like), **found)
            problem = _inconsistency(trace, like)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, FileFormatError):
                raise
            problem = f"{type(error).__name__}: {error}"
        if problem:
            raise FileFormatError(f"The checkpoint is inconsistent ({problem}): {_ANEW}.")
        self.start = trace.reference[0]
        return trace

    def _reference(self) -> tuple[Values, ...]:
        record, tensors = self.saved or ({}, {})
        names, device = [field.name for field in fields(Values)], self.problem.points.device
        try:
            values = tuple(Values(*(tensors[f"reference.{i}.{name}"].to(device) for name in names)) for i in range(record["reference"]))
        except (KeyError, TypeError) as error:
            raise FileFormatError(f"The checkpoint lacks values of the energy ({error}): give another path, or delete it.") from error
        if not values or not all(value.is_consistent() for value in values):
            raise FileFormatError(
                "The values of the energy in the checkpoint are missing, or their shapes do not fit: give another path, or delete it."
            )
        return values

    # While the call runs --------------------------------------------------------------------------------------------------------------

    def on_start(self, chains: Chains) -> None:
        limit = None if self.problem.own_conditions else _START_CHAINS
        self.start = self.start or chains.values(limit)
        self.before, self.written = chains.snapshot(), chains.step

    def on_step(self, chains: Chains, info: Info) -> None:
        if time.monotonic() >= self.due:
            self._write(chains, self._values(chains))
        self.before = chains.snapshot()

    def on_end(self, chains: Chains, error: BaseException | None) -> None:
        if error is None and chains.step > self.written:
            self._write(chains, self._values(chains))
        elif error is not None:
            self._write(self.before, self._last_finite(self.before))

    def _values(self, chains: Chains) -> Values:
        """Returns energies and gradients at the current points of the active chains."""
        if self.last is None or self.last[0] != chains.step:
            self.last = chains.step, chains.values()
        return self.last[1]

    def _last_finite(self, chains: Chains) -> Values | None:
        """Returns the last values that are finite, those of now unless the energy itself has broken off the loop."""
        earlier = self.last[1] if self.last else self.start
        try:
            now = self._values(chains)
        except Exception:  # the error that broke off the loop is raised after the file is written
            return earlier
        return now if now.energies.isfinite().all() and now.grads.isfinite().all() else earlier

    def _write(self, chains: Chains, now: Values | None) -> None:
        """Replaces the file atomically: after a crash either the old or the new one is there, whole.

        Raises:
            ExpressionError: The sampler's state holds an object that a file cannot.
        """
        began, trace = time.monotonic(), self.recorder.trace(chains)
        tensors: dict[str, Tensor] = {name: getattr(trace, name) for name in _TENSORS if getattr(trace, name) is not None}
        reference = [values for values in (self.start, now) if values is not None]
        for i, values in enumerate(reference):
            tensors |= {f"reference.{i}.{field.name}": getattr(values, field.name) for field in fields(values)}
        record = {"call": self.call, "steps": trace.steps, "scalars": trace.scalars, "point_steps": trace.point_steps}
        record |= {"state": _add_state(tensors, chains.state), "reference": len(reference)}
        write_record(self.path, "checkpoint", _VERSION, record, tensors)
        ended, self.written = time.monotonic(), chains.step
        self.due = ended + (max(self.every, (ended - began) / _MAX_SHARE) if self.every else 0)


def _described(problem: Problem) -> dict[str, Any]:
    """Returns the arguments of a call as plain data: a file of other arguments is refused."""
    call, resume = problem.call, problem.call.resume
    resumed = None if resume is None or resume.state is None else digest_of({"state": resume.state.x})
    return {
        "sampler": _describe(problem.sampler),
        "seed": call.seed,
        "shape": problem.points.shape,
        "noise": problem.noise.kind,
        "trace": call.trace,
        "burn_in": call.burn_in,
        "first_chain": problem.noise.chains[0],
        "dtype": str(problem.points.dtype),
        "event": problem.points.event,
        "init": None if problem.init is None else digest_of({"init": problem.init}),
        "resumed": None if resume is None else f"{resume.steps} steps, {resumed}",
    }


def _describe(value: Any) -> str:
    """Returns a sampler, or an option of one, as text that is the same in another process."""
    if isinstance(value, Tensor):
        return f"tensor {digest_of({'': value})}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_describe, value))})"
    if is_dataclass(value):
        own = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, Sampler) or type(value).__repr__ is object.__repr__:
        own = {name: item for name, item in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    else:
        return repr(value)
    return f"{type(value).__qualname__}({', '.join(f'{name}={_describe(item)}' for name, item in own.items())})"


def _add_state(tensors: dict[str, Tensor], state: State) -> dict[str, Any]:
    """Adds the tensors of a state, and returns its plain fields."""
    plain: dict[str, Any] = {}
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            tensors[f"state.{field.name}"] = value
        elif isinstance(value, _PLAIN):
            plain[field.name] = value
        else:
            raise ExpressionError(
                f"{type(state).__name__}.{field.name} is a {type(value).__name__}: a checkpoint holds tensors, numbers and text; "
                "make it one of these, or sample without a `Checkpoint`."
            )
    return plain


def _read_state(plain: Mapping[str, Any], tensors: Mapping[str, Tensor], like: State) -> State:
    names = [field.name for field in fields(like)]
    missing = [name for name in names if name not in plain and f"state.{name}" not in tensors]
    if missing:
        raise FileFormatError(
            f"The checkpoint lacks {', '.join(missing)} of the state: another version of the sampler wrote it, or it was edited; {_ANEW}."
        )
    return replace(like, **{name: plain[name] if name in plain else tensors[f"state.{name}"] for name in names})


def _inconsistency(trace: Trace, like: State) -> str | None:
    """Returns which parts of a trace do not belong together; None if all do."""
    n, steps, points = len(trace.chains), trace.point_steps, trace.points
    if type(trace.steps) is not int or not 0 <= trace.steps < _MOST_STEPS:
        return f"steps is {trace.steps!r}"
    if trace.diverged_at.dtype != torch.int64 or trace.diverged_at.shape != (n,):
        return "the divergences have another shape"
    for field in fields(like):
        if not _fits(getattr(trace.state, field.name), getattr(like, field.name), n):
            return f"{field.name} of the state has another shape or type"
    if trace.energies.ndim != 2 or (len(trace.energies) and trace.energies.shape[1] != n) or len(trace.energies) > trace.steps:
        return "the energies have another shape"
    if trace.acceptance is not None and trace.acceptance.shape != trace.energies.shape:
        return "the rates of acceptance have another shape"
    if not isinstance(steps, list) or not all(type(step) is int and 0 < step <= trace.steps for step in steps):
        return "the steps of the points are invalid"
    if points is not None and points.shape[:2] != (len(steps), n):
        return "the points have another shape"
    scalars = trace.scalars
    if not isinstance(scalars, dict) or not all(isinstance(values, list) for values in scalars.values()):
        return "the scalars are invalid"
    return None if all(isinstance(value, Real) for values in scalars.values() for value in values) else "a scalar is no number"


def _fits(value: Any, like: Any, rows: int) -> bool:
    if isinstance(like, Tensor):
        shape = (rows, *like.shape[1:]) if like.ndim and len(like) == 1 else like.shape
        return isinstance(value, Tensor) and value.shape == shape and value.is_floating_point() == like.is_floating_point()
    if isinstance(like, Real) and not isinstance(like, bool):
        return isinstance(value, Real) and not isinstance(value, bool)
    return like is None or type(value) is type(like)
