"""The loop: step after step until the end, or until a callback, a divergence or the user stops it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from composable_energy.errors import OptionError
from composable_energy.sampling.chains import Chains
from composable_energy.sampling.checkpoint import Checkpoint
from composable_energy.sampling.ranks import Ranks
from composable_energy.sampling.recording import Recorder, gathered, shown
from composable_energy.sampling.rows import has_rows
from composable_energy.sampling.sampler import Info, State
from composable_energy.sampling.trace import Trace
from composable_energy.sampling.values import Evaluator, Values

__all__ = ["Callback", "Run"]

_STARTS = 64  # chains whose energies at the start a checkpoint keeps

Callback = Callable[[int, State, Info], object]


@dataclass
class Run:
    """A run of some chains.

    Args:
        chains: The chains.
        recorder: What takes note of each step.
        blank: What is known of the call from the beginning.
        evaluator: Tells the energies and gradients that a later call compares its own with.
        file: Where the state is kept every so often.
        ranks: The processes that share the chains.
        first: How many steps were done before this run.
    """

    chains: Chains
    recorder: Recorder
    blank: Trace
    evaluator: Evaluator
    file: Checkpoint | None
    ranks: Ranks | None
    first: int = 0
    _start: Values | None = None
    _now: tuple[int, Values] | None = None  # at which step, and the values there

    def begin(self, at: Trace | None) -> None:
        """Starts the chains, or takes them up where a trace left them.

        Raises:
            Diverged: Energies at the start are not finite.
        """
        if at is None:
            self.chains.begin()
        else:
            self.chains.resume(at)
        self.first = self.chains.step
        if self.file is not None:
            known = () if at is None else at.reference
            every = has_rows(self.evaluator.energy)
            self._start = known[0].of(self.chains.own) if len(known) > 1 else self._values(None if every else _STARTS)

    def go(self, end: int, callback: Callback | None, progress: bool) -> None:
        """Takes steps until there were as many as asked for.

        Whatever breaks off a run with a file, an interrupt from the keyboard among others, leaves the last whole step there.

        Raises:
            OptionError: There were more already.
            Diverged: Chains diverged, and the policy does not go on.
        """
        if self.first > end:
            raise OptionError(f"{self.first} steps are done already, {end} were asked for in all: ask for at least as many.")
        show = progress and (self.ranks is None or self.ranks.rank == 0)
        name = type(self.chains.sampler).__name__.lower()
        before = None
        try:
            with tqdm(total=end, initial=self.first, file=sys.stderr, disable=not show, desc=name, leave=False) as bar:
                while self.chains.step < end:
                    if self.file is not None:
                        before = self.chains.snapshot()
                    info = self.chains.advance()
                    self.recorder.add(self.chains, info)
                    bar.update()
                    if self._is_over(callback, info):
                        break
                    if self.file is not None and self._agree(self.file.due):
                        self._write(self.file)
        except BaseException:
            if self.file is not None and before is not None and self.ranks is None:
                now = self.chains.snapshot()
                self.chains.restore(before)
                self._write(self.file, broken=True)
                self.chains.restore(now)
            raise
        if self.file is not None and self.chains.step > self.first:
            self._write(self.file)

    def trace(self) -> Trace:
        """Returns the trace of this process so far."""
        return self.recorder.trace(self.blank, self.chains, self.chains.step - self.first)

    def values(self) -> Values:
        """Returns energies and gradients where the chains of this process are that go on."""
        if self._now is None or self._now[0] != self.chains.step:
            self._now = self.chains.step, self._values(None)
        return self._now[1]

    def reference(self) -> Values:
        """Returns the values that a trace keeps: those of the states where they hold them, which costs nothing."""
        chunks, evaluated = self.chains.chunks, self._now is not None and self._now[0] == self.chains.step
        if evaluated or not chunks or not self.evaluator.as_states:
            return self.values()
        return Values.of_states([i for chunk in chunks for i in chunk.ids], [chunk.state for chunk in chunks])

    def _last_values(self) -> Values | None:
        """Returns the last values that are good, those of now if the energy still works."""
        before = self._now[1] if self._now else self._start
        try:
            now = self.values()
        except Exception:  # the energy itself may be what broke off the run, and its error is raised after the file is written
            return before
        return now if now.energies.isfinite().all() and now.grads.isfinite().all() else before

    def _values(self, count: int | None) -> Values:
        chunks = self.chains.chunks
        ids = [i for chunk in chunks for i in chunk.ids][:count]
        points = [chunk.state.x for chunk in chunks] or [self.chains.roster.like[None][:0]]
        return self.evaluator.values(ids, torch.cat(points)[:count])

    def _is_over(self, callback: Callback | None, info: Info) -> bool:
        chains = self.chains
        if callback is None:
            return not chains.chunks and self.ranks is None
        if chains.stopped:
            info = replace(info, chains=sorted(i - chains.own.start for chunk in chains.chunks for i in chunk.ids))
        over = not chains.chunks or _is_true(callback(chains.step, shown(chains, chains.state()), info))
        return over if self.ranks is None else all(self.ranks.objects(over))

    def _agree(self, due: bool) -> bool:
        return due if self.ranks is None else self.ranks.first(due)

    def _write(self, file: Checkpoint, *, broken: bool = False) -> None:
        """Writes one file of all chains, whoever draws them; after a break the energy may be broken, too."""
        began = time.monotonic()
        now = self._last_values() if broken else self.values()
        record = replace(self.trace(), reference=tuple(values for values in (self._start, now) if values is not None))
        record = record if self.ranks is None else gathered(record, self.ranks)
        if self.ranks is None or self.ranks.rank == 0:
            file.write(record, began)


def _is_true(answer: Any) -> bool:
    """Whether a callback says so itself or by a comparison, which gives a tensor; any other return value means nothing."""
    return answer is True or (getattr(answer, "dtype", None) in (torch.bool, bool) and bool(answer.all()))
