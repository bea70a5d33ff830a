"""Writes checkpoints while a call runs."""

from __future__ import annotations

import time
from dataclasses import replace
from numbers import Real
from pathlib import Path

from composable_energy.errors import OptionError
from composable_energy.sampling.chains import Chains
from composable_energy.sampling.checkpoint import CheckpointFile
from composable_energy.sampling.loop import Observer, TraceRecorder
from composable_energy.sampling.sampler import Info
from composable_energy.sampling.values import Evaluator, Values
from composable_energy.sampling.wrappers import has_rows

_START_CHAINS = 64  # chains whose values at the start are kept
_MAX_SHARE = 1 / 20  # of the time, spent on writing


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


class CheckpointObserver(Observer):
    """Writes the state of all chains to a file every so often, at the end, and when the loop is broken off.

    Args:
        file: The file.
        seconds: The least time between two writings, in seconds; 0 writes after each step.
        recorder: Records the steps.
        evaluator: Evaluates the energies and gradients that identify the energy.
        start: Values of the interrupted run at the start; None evaluates them.
    """

    def __init__(self, file: CheckpointFile, seconds: float, recorder: TraceRecorder, evaluator: Evaluator, start: Values | None) -> None:
        self.file, self.seconds, self.recorder, self.evaluator = file, seconds, recorder, evaluator
        self.start = start
        self.due = time.monotonic() + seconds
        self.written = 0
        self.last: tuple[int, Values] | None = None  # a step, and the values there

    def on_start(self, chains: Chains) -> None:
        limit = None if has_rows(self.evaluator.energy) else _START_CHAINS
        self.start = self.start or _values(self.evaluator, chains, limit)
        self.before, self.written = chains.snapshot(), chains.step

    def on_step(self, chains: Chains, info: Info) -> None:
        if time.monotonic() >= self.due:
            self._write(chains)
        self.before = chains.snapshot()

    def on_end(self, chains: Chains, error: BaseException | None) -> None:
        if error is None and chains.step > self.written:
            self._write(chains)
        elif error is not None:
            self._write(self.before, self._last_finite(self.before))

    def values(self, chains: Chains) -> Values:
        """Returns energies and gradients at the current points of the active chains."""
        if self.last is None or self.last[0] != chains.step:
            self.last = chains.step, _values(self.evaluator, chains)
        return self.last[1]

    def _last_finite(self, chains: Chains) -> Values | None:
        """Returns the last values that are finite, those of now unless the energy itself has broken off the loop."""
        earlier = self.last[1] if self.last else self.start
        try:
            now = self.values(chains)
        except Exception:  # the error that broke off the loop is raised after the file is written
            return earlier
        return now if now.energies.isfinite().all() and now.grads.isfinite().all() else earlier

    def _write(self, chains: Chains, now: Values | None = None) -> None:
        began = time.monotonic()
        reference = (self.start, self.values(chains) if now is None else now)
        self.file.write(replace(self.recorder.trace(chains), reference=tuple(values for values in reference if values is not None)))
        ended, self.written = time.monotonic(), chains.step
        self.due = ended + (max(self.seconds, (ended - began) / _MAX_SHARE) if self.seconds else 0)


def final_reference(evaluator: Evaluator, chains: Chains) -> Values:
    """Returns the values that a trace keeps: those of the states where they hold them, which costs nothing."""
    if not chains.active or not evaluator.states_hold_values:
        return _values(evaluator, chains)
    return Values.of_state(chains.active_ids(), chains.active_state())


def _values(evaluator: Evaluator, chains: Chains, limit: int | None = None) -> Values:
    ids, x = chains.active_ids()[:limit], chains.state.x
    return evaluator.values(ids, x[(ids - chains.own.start).to(x.device)])
