"""Progress of a call: evaluations while pilot chains tune a sampler, then steps; on stderr or for a function of the user."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from torch import Tensor
from tqdm import tqdm

from composable_energy.energies.energy import Energy
from composable_energy.errors import OptionError
from composable_energy.sampling.chains import Chains, Observer
from composable_energy.sampling.sampler import Info, Sampler
from composable_energy.sampling.wrappers import EnergyWrapper

ProgressFunction = Callable[[str, int, int | None], object]
"""A function of what runs (`"tuning"` or `"sampling"`), of the evaluations or steps that are done, and of their number, if it is known."""

_LINES = "─━"
_FORMATS = {
    "tuning": "{desc}: {n_fmt} evaluations in {elapsed}",
    "sampling": "{desc} {bar:30} {n_fmt}/{total_fmt} steps, {rate_noinv_fmt}, eta {remaining}",
}


class Progress(Observer):
    """Shows progress bars on stderr, or calls a function.

    Args:
        report: A function of what runs, `"tuning"` or `"sampling"`, of how many evaluations or steps are done, and of their number, None
            while that is not known; None shows bars.

    Raises:
        OptionError: It is no function.
    """

    def __init__(self, report: ProgressFunction | None = None) -> None:
        if not (report is None or callable(report)):
            raise OptionError(f"Progress takes a function of what runs, what is done and the total, or nothing for bars, got {report!r}.")
        self.report = report

    @contextmanager
    def opened(self, sampler: Sampler) -> Iterator[Progress]:
        """Yields an observer with a function, that of bars, which are closed at the end, if it has none."""
        if self.report is not None:
            yield self
            return
        with closing(_Bars(type(sampler).__name__.lower())) as bars:
            yield Progress(bars)

    def on_start(self, chains: Chains) -> None:
        if self.report is not None:
            self.report("sampling", chains.step, chains.last_step)

    def on_step(self, chains: Chains, info: Info) -> None:
        self.on_start(chains)


class _Bars:
    """Shows a bar on stderr for what runs, one after another."""

    def __init__(self, name: str) -> None:
        self.name, self.shown = name, ""
        self.bar: tqdm[Any] | None = None

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if self.bar is None or what != self.shown:
            self.close()
            self.shown = what
            self.bar = tqdm(
                total=total,
                initial=done,
                file=sys.stderr,
                disable=sys.stderr is None,  # closed
                desc=f"{what} {self.name}",
                ascii=_bar_characters(),
                bar_format=_FORMATS[what],
                unit=" steps",
            )
        self.bar.update(done - self.bar.n)
        if done == total:
            self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def counted(energy: Energy, sampler: Sampler, report: ProgressFunction | None) -> Energy:
    """Returns the energy that pilot chains evaluate, with its evaluations reported; their number is not known before.

    Args:
        energy: The energy.
        sampler: The sampler that is tuned.
        report: The function that is called; None for none.
    """
    return energy if report is None or type(sampler).tune is Sampler.tune else _CountedEnergy(energy, report)


class _CountedEnergy(EnergyWrapper):
    """An energy whose evaluations are reported."""

    def __init__(self, energy: Energy, report: ProgressFunction) -> None:
        super().__init__(energy)
        self.report, self.count = report, 0

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        self._count()
        return self.energy(x, **conditions)

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        self._count()
        return self.energy.with_gradient(x, **conditions)

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.energy.evidence(x, **conditions)

    def _count(self) -> None:
        self.count += 1
        self.report("tuning", self.count, None)


def _bar_characters() -> str | bool:
    """Returns thin and thick lines, or True for those of ASCII where the terminal has no others."""
    try:
        _LINES.encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except (LookupError, UnicodeEncodeError):
        return True
    return _LINES
