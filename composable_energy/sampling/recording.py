"""Recording a call: what each step told, gathered into a `Trace` at the end and whenever a checkpoint is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from composable_energy.sampling.chains import Chains
from composable_energy.sampling.ranks import Ranks
from composable_energy.sampling.sampler import Info, State
from composable_energy.sampling.states import weighted_mean
from composable_energy.sampling.trace import Trace
from composable_energy.sampling.values import join_values

__all__ = ["Recorder", "gathered", "shown"]


class Recorder:
    """What the steps of a call told.

    Args:
        steps: Whether to keep what each step told; else only where the chains are.
        every: Keeps the points of every so many steps; None keeps none.
        burn_in: How many steps pass before points are kept.
        before: What an interrupted run of the same call recorded.
    """

    def __init__(self, steps: bool, every: int | None, burn_in: int, before: Trace | None = None) -> None:
        self.steps, self.every, self.burn_in = steps, every, burn_in
        self.before = before
        self.energies: list[Tensor] = []
        self.rates: list[Tensor] = []
        self.points: list[Tensor] = []
        self.point_steps: list[int] = []
        self.scalars: dict[str, list[Any]] = {}

    def add(self, chains: Chains, info: Info) -> None:
        """Takes note of a step."""
        if not self.steps:
            return
        self.energies.append(chains.spread(lambda state: shown(chains, state).energy))
        if info.acceptance is not None:
            self.rates.append(info.acceptance)
        for name, value in info.scalars.items():
            self.scalars.setdefault(name, []).append(value)
        if self.every is not None and chains.step > self.burn_in and (chains.step - self.burn_in) % self.every == 0:
            self.points.append(chains.spread(lambda state: state.x))
            self.point_steps.append(chains.step)

    def trace(self, blank: Trace, chains: Chains, done: int) -> Trace:
        """Returns the trace so far.

        Args:
            blank: What is known of the call from the beginning.
            chains: The chains, where they are now.
            done: How many steps this run took, from which the record is taken; a step that was broken off is left out.
        """
        record = replace(
            blank,
            steps=chains.step,
            chains=chains.own,
            batch_size=chains.size,
            states=chains.saved(),
            stopped=list(chains.stopped),
            diverged_at=chains.diverged_at,
            diverged=chains.diverged_at >= 0,
            restarts=chains.restarts,
        )
        if not self.steps:
            return record
        kept = [step for step in self.point_steps if step <= chains.step]
        energies = _stacked(self._earlier("energies", chains.own), self.energies[:done])
        record.energies = record.energies if energies is None else energies
        record.acceptance = _stacked(self._earlier("acceptance", chains.own), self.rates[:done])
        record.points = _stacked(self._earlier("points", chains.own), self.points[: len(kept)])
        record.point_steps = (self.before.point_steps if self.before else []) + kept
        earlier = self.before.scalars if self.before else {}
        names = dict.fromkeys([*earlier, *self.scalars])
        record.scalars = {name: [*earlier.get(name, []), *self.scalars.get(name, [])[:done]] for name in names}
        return record

    def _earlier(self, name: str, own: range) -> Tensor | None:
        """What an interrupted run recorded of the chains of this process; the file may tell of those of others too."""
        values = None if self.before is None else getattr(self.before, name)
        if self.before is None or values is None:
            return None
        first = self.before.chains.start
        return values[:, own.start - first : own.stop - first]


def shown(chains: Chains, state: State) -> State:
    """Returns a state as records and callbacks get it: its energies are not numbers where the energy has no value."""
    return state if chains.roster.energy.has_value else replace(state, energy=torch.full_like(state.energy, torch.nan))


def gathered(record: Trace, ranks: Ranks) -> Trace:
    """Returns one trace of all chains from those of each process."""
    parts = ranks.objects(record)

    def steps(name: str) -> Tensor | None:
        """Joins chains side by side; a process whose chains have all stopped told fewer steps."""
        values = [getattr(part, name) for part in parts]
        some = next((value for value in values if value is not None), None)
        if some is None:
            return None
        longest, blanks = max(len(value) for value in values if value is not None), []
        for part, value in zip(parts, values, strict=True):
            done = 0 if value is None else len(value)
            blank = some.new_full((longest - done, len(part.chains) if longest else 0, *some.shape[2:]), float("nan"))
            blanks.append(blank if value is None else torch.cat([value, blank]) if len(blank) else value)
        return torch.cat(blanks, 1)

    shares = [(part.branch_shares, len(part.kept)) for part in parts if part.branch_shares is not None]
    total = sum(count for _, count in shares)
    mean = torch.stack([share * (count / total) for share, count in shares]).sum(0) if shares else None
    return replace(
        parts[0],
        chains=range(parts[0].chains.start, parts[-1].chains.stop),
        states=[group for part in parts for group in part.states],
        stopped=[some for part in parts for some in part.stopped],
        branch_shares=mean,
        scalars=_scalars(parts),
        reference=tuple(join_values(values) for values in zip(*(part.reference for part in parts), strict=True)),
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in ("kept", "diverged", "diverged_at", "restarts")},
        **{name: steps(name) for name in ("energies", "acceptance", "points")},
    )


def _scalars(parts: Sequence[Trace]) -> dict[str, list[float]]:
    """Joins what each process has recorded of its chains, weighted with how many of them took each step."""
    joined: dict[str, list[float]] = {}
    for name in dict.fromkeys(name for part in parts for name in part.scalars):
        known = [(part, part.scalars[name]) for part in parts if name in part.scalars]
        joined[name] = [
            weighted_mean([(_going(part, len(values) - place), values[place]) for part, values in known if place < len(values)])
            for place in range(max(len(values) for _, values in known))
        ]
    return joined


def _going(part: Trace, back: int) -> int:
    """Returns how many chains of a process took the step that is the `back`-th from its end."""
    step, at = part.steps - back + 1, part.diverged_at
    return len(at) if part.on_divergence == "restart" else int(((at < 0) | (at >= step)).sum())


def _stacked(before: Tensor | None, steps: Sequence[Tensor]) -> Tensor | None:
    parts = ([] if before is None else [before]) + ([torch.stack(list(steps))] if steps else [])
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else None
