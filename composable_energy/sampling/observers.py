"""Observers of the library: what stops a call, shows its progress, and records its trace."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from composable_energy.errors import OptionError
from composable_energy.sampling.chains import Chains, Observer, to_floats
from composable_energy.sampling.sampler import Info, Sampler, State
from composable_energy.sampling.trace import Trace
from composable_energy.sampling.wrappers import plain_energy

D = TypeVar("D", State, Info)
_FORMATS = {
    "tuning": "{desc}: {n_fmt} evaluations in {elapsed}",
    "sampling": "{desc} {bar:30} {n_fmt}/{total_fmt} steps, {rate_noinv_fmt}, eta {remaining}",
}


class Stop(Observer):
    """Calls a function after each step, which stops the sampling by True or by a tensor of True alone, such as `state.energy < 3`.

    Args:
        function: A function of the step number, counted from 1, the state of the active chains, and the sampler's info. Points and energies
            are those of the support, gradients those of its unconstrained coordinates. They are copies.

    Raises:
        OptionError: It is no function.
    """

    def __init__(self, function: Callable[[int, State, Info], object]) -> None:
        if not callable(function):
            raise OptionError(f"Stop takes a function of a step, a state and an info, got {function!r}.")
        self.function = function

    def on_step(self, chains: Chains, info: Info) -> bool:
        if not chains.active:
            return True
        info = replace(info, scalars=dict(zip(info.scalars, to_floats(list(info.scalars.values())), strict=True)))
        if chains.active < chains.count:
            info = replace(info, chains=chains.active_ids().tolist())
        answer: Any = self.function(chains.step, _copied(chains.visible_state()), _copied(info))
        return answer is True or (getattr(answer, "dtype", None) in (torch.bool, bool) and bool(answer.all()))


def _copied(value: D) -> D:
    """Returns a state or an info with tensors of its own, so that a function which writes into them changes no chain."""
    own = {field.name: getattr(value, field.name) for field in fields(value)}
    return replace(value, **{name: item.clone() for name, item in own.items() if isinstance(item, Tensor)})


class Progress(Observer):
    """Shows progress bars on stderr, or calls a function.

    Args:
        report: A function of what runs, `"tuning"` or `"sampling"`, of how many evaluations or steps are done, and of their number, None
            while that is not known; None shows bars.

    Raises:
        OptionError: It is no function.
    """

    def __init__(self, report: Callable[[str, int, int | None], object] | None = None) -> None:
        if not (report is None or callable(report)):
            raise OptionError(f"Progress takes a function of what runs, what is done and the total, or nothing for bars, got {report!r}.")
        self.report, self.shown = report, ""
        self.bar: tqdm[Any] | None = None

    def on_tuning(self, sampler: Sampler, evaluations: int) -> None:
        self._show("tuning", sampler, evaluations, None)

    def on_start(self, chains: Chains) -> None:
        self._show("sampling", chains.sampler, chains.step, chains.last_step)

    def on_step(self, chains: Chains, info: Info) -> None:
        self.on_start(chains)

    def on_end(self, chains: Chains, error: BaseException | None) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def _show(self, what: str, sampler: Sampler, done: int, total: int | None) -> None:
        if self.report is not None:
            self.report(what, done, total)
            return
        if self.bar is None or what != self.shown:
            if self.bar is not None:
                self.bar.close()
            name = f"{what} {type(sampler).__name__.lower()}"
            off = sys.stderr is None  # closed
            self.shown, form = what, _FORMATS[what]
            self.bar = tqdm(total=total, initial=done, file=sys.stderr, disable=off, desc=name, bar_format=form, unit=" steps")
        self.bar.update(done - self.bar.n)


class TraceRecorder(Observer):
    """Records each step, and returns the trace.

    Args:
        blank: A trace of the call without steps.
        steps: Whether steps are recorded.
        every: Keeps the points of every k-th step after the burn-in; None keeps none.
        before: The trace of an interrupted run of the same call.
    """

    def __init__(self, blank: Trace, *, steps: bool, every: int | None, before: Trace | None = None) -> None:
        self.blank, self.watches, self.every, self.before, self.first, self.plain = blank, steps, every, before, 0, False
        self.energies, self.acceptance, self.points = list[Tensor](), list[Tensor](), list[Tensor]()
        self.point_steps, self.scalars = list[int](), dict[str, list[Any]]()

    def on_start(self, chains: Chains) -> None:
        self.first = chains.step
        self.plain = plain_energy(chains.energy) is not None and chains.energy.has_value

    def on_step(self, chains: Chains, info: Info) -> None:
        state = chains.state if self.plain else chains.visible_state(chains.state)
        self.energies.append(state.energy)
        if info.acceptance is not None:
            self.acceptance.append(info.acceptance)
        for name, value in info.scalars.items():
            self.scalars.setdefault(name, []).append(value)
        after = chains.step - self.blank.burn_in
        if self.every is not None and after > 0 and after % self.every == 0:
            self.points.append(chains.state.x)  # as in a checkpoint; `sample` shows the points of the support
            self.point_steps.append(chains.step)

    def trace(self, chains: Chains) -> Trace:
        """Returns the trace up to the current step of the chains; the record of a later step, which was broken off, is left out."""
        found = replace(self.blank, steps=chains.step, state=chains.state, diverged_at=chains.diverged_at, relocated=chains.relocated)
        if not self.watches:
            return found
        done, before = chains.step - self.first, self.before or self.blank
        kept = [step for step in self.point_steps if step <= chains.step]
        for name, count in (("energies", done), ("acceptance", done), ("points", len(kept))):
            earlier, steps = getattr(before, name), getattr(self, name)[:count]
            parts = [] if earlier is None or not len(earlier) else [earlier]
            parts += [torch.stack(steps)] if steps else []
            setattr(found, name, torch.cat(parts) if len(parts) > 1 else parts[0] if parts else getattr(self.blank, name))
        found.point_steps, found.scalars = before.point_steps + kept, dict(before.scalars)
        for name, values in self.scalars.items():
            found.scalars[name] = [*before.scalars.get(name, []), *to_floats(values[:done])]
        return found
