"""The loop: step after step until the end, or until a callback, a divergence or the user stops it."""

from __future__ import annotations

import sys
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
from composable_energy.sampling.sampler import Info, State
from composable_energy.sampling.trace import Trace

__all__ = ["Callback", "Run"]

Callback = Callable[[int, State, Info], object]


@dataclass
class Run:
    """A run of some chains.

    Args:
        chains: The chains.
        recorder: What takes note of each step.
        blank: What is known of the call from the beginning.
        file: Where the state is kept every so often.
        ranks: The processes that share the chains.
        first: How many steps were done before this run.
    """

    chains: Chains
    recorder: Recorder
    blank: Trace
    file: Checkpoint | None
    ranks: Ranks | None
    first: int = 0

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
                self._write(self.file)
                self.chains.restore(now)
            raise
        if self.file is not None and self.chains.step > self.first:
            self._write(self.file)

    def trace(self) -> Trace:
        """Returns the trace of this process so far."""
        return self.recorder.trace(self.blank, self.chains, self.chains.step - self.first)

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

    def _write(self, file: Checkpoint) -> None:
        """Writes one file of all chains, whoever draws them."""
        record = self.trace() if self.ranks is None else gathered(self.trace(), self.ranks)
        if self.ranks is None or self.ranks.rank == 0:
            file.write(record)


def _is_true(answer: Any) -> bool:
    """Whether a callback says so itself or by a comparison, which gives a tensor; any other return value means nothing."""
    return answer is True or (getattr(answer, "dtype", None) in (torch.bool, bool) and bool(answer.all()))
