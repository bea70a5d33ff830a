"""Progress bars on stderr: of the steps, and of the evaluations while pilot chains tune a sampler."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from tqdm import tqdm

from composable_energy.energy import Energy
from composable_energy.sampling.chains import Chains
from composable_energy.sampling.loop import Observer
from composable_energy.sampling.sampler import Info, Sampler
from composable_energy.sampling.wrappers import EnergyWrapper

__all__ = ["Progress", "tuning_progress"]

_LINES = "─━"


class Progress(Observer):
    """Shows a bar of the steps.

    Args:
        last_step: The number of the last step.
    """

    def __init__(self, last_step: int) -> None:
        self.last_step = last_step

    def on_start(self, chains: Chains) -> None:
        self.bar = tqdm(
            total=self.last_step,
            initial=chains.step,
            file=sys.stderr,
            desc=f"sampling {_name(chains.sampler)}",
            ascii=_bar_characters(),
            bar_format="{desc} {bar:30} {n_fmt}/{total_fmt} steps, {rate_noinv_fmt}, eta {remaining}",
            unit=" steps",
        )

    def on_step(self, chains: Chains, info: Info) -> None:
        self.bar.update()

    def on_end(self, chains: Chains, error: BaseException | None) -> None:
        self.bar.close()


@contextmanager
def tuning_progress(energy: Energy, sampler: Sampler) -> Iterator[Energy]:
    """Yields an energy whose evaluations advance a bar; their number is not known before.

    Args:
        energy: The energy that pilot chains evaluate.
        sampler: The sampler that they tune.
    """
    if type(sampler).tune is Sampler.tune:
        yield energy
        return
    with tqdm(file=sys.stderr, desc=f"tuning {_name(sampler)}", bar_format="{desc}: {n_fmt} evaluations in {elapsed}") as bar:
        yield _CountedEnergy(energy, bar)


class _CountedEnergy(EnergyWrapper):
    """An energy whose evaluations advance a bar."""

    def __init__(self, energy: Energy, bar: tqdm[Any]) -> None:
        super().__init__(energy)
        self.bar = bar

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        self.bar.update()
        return self.energy(x, **conditions)

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        self.bar.update()
        return self.energy.with_gradient(x, **conditions)

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.energy.evidence(x, **conditions)


def _bar_characters() -> str | bool:
    """Returns thin and thick lines, or True for those of ASCII where the terminal has no others."""
    try:
        _LINES.encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except (LookupError, UnicodeEncodeError):
        return True
    return _LINES


def _name(sampler: Sampler) -> str:
    return type(sampler).__name__.lower()
