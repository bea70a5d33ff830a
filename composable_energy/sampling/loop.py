"""The sampling loop, the interface of observers that see each step, and two of them: `Stop`, and the recorder of the trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.sampling.chains import Chains
from composable_energy.sampling.sampler import Info, State
from composable_energy.sampling.states import to_floats
from composable_energy.sampling.trace import Trace
from composable_energy.sampling.unconstrained import plain_energy

D = TypeVar("D", State, Info)


class Observer:
    """What looks at the chains of a call while they run; a subclass overrides the methods it needs.

    The chains are not to be changed. They have `step` and `last_step`, the `sampler`, the `energy` as the sampler gets it, the `state` of
    all chains in the coordinates that these use, `diverged_at`, and `visible_state()`.

    Example:
        >>> import torch, composable_energy as ce
        >>> class Means(ce.sampling.Observer):
        ...     def on_step(self, chains, info):
        ...         if chains.step % 50 == 0:
        ...             print(chains.step, chains.visible_state().x.shape)
        >>> bowl = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> _ = bowl.sample((5, 2), steps=100, seed=0, observers=[Means()])
        50 torch.Size([5, 2])
        100 torch.Size([5, 2])
    """

    watches = True  # whether `on_step` is called

    def on_start(self, chains: Chains) -> None:
        """Called before the first step."""

    def on_step(self, chains: Chains, info: Info) -> bool | None:
        """Called after each step; returning True stops the loop after this step."""

    def on_end(self, chains: Chains, error: BaseException | None) -> None:
        """Called after the last step, or with the error that broke off the loop."""


def run(chains: Chains, last_step: int, observers: Sequence[Observer]) -> None:
    """Takes all steps, or fewer if an observer stops the loop or all chains of the call were stopped.

    Args:
        chains: The chains, which have started.
        last_step: The number of the last step, counted from the start of the chains.
        observers: The observers, which are called in their order.

    Raises:
        OptionError: The chains took more steps already.
        Diverged: Chains diverged, and the policy ends the sampling.
    """
    error, chains.last_step = None, last_step
    if chains.step > last_step:
        raise OptionError(f"{chains.step} steps are done already, {last_step} were asked for in all: ask for at least as many.")
    for observer in observers:
        observer.on_start(chains)
    watching = [observer for observer in observers if observer.watches]
    try:
        while chains.step < last_step and chains.active:
            info, stop = chains.advance(), False
            for observer in watching:
                stop = observer.on_step(chains, info) is True or stop
            if stop:
                break
    except BaseException as caught:
        error = caught
        raise
    finally:
        for observer in observers:
            observer.on_end(chains, error)


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
        over = True
        if chains.active:
            state = chains.visible_state()
            info = replace(info, scalars=dict(zip(info.scalars, to_floats(list(info.scalars.values())), strict=True)))
            if len(state.x) < len(chains.own):
                info = replace(info, chains=chains.active_ids().tolist())
            over = _is_true(self.function(chains.step, _copied(state), _copied(info)))
        return over


def _copied(value: D) -> D:
    """Returns a state or an info with tensors and dicts of its own, so that a function which writes into them changes no chain."""
    own = {field.name: getattr(value, field.name) for field in fields(value)}
    kinds = {name: item.clone() for name, item in own.items() if isinstance(item, Tensor)}
    kinds |= {name: dict(item) for name, item in own.items() if isinstance(item, dict)}
    return replace(value, **kinds)


class TraceRecorder(Observer):
    """Records each step, and returns the trace.

    Args:
        blank: A trace of the call without steps.
        every: Keeps the points of every k-th step after the burn-in; None keeps none.
        before: The trace of an interrupted run of the same call.
    """

    def __init__(self, blank: Trace, *, steps: bool, every: int | None, before: Trace | None = None) -> None:
        self.blank, self.steps, self.every, self.before = blank, steps, every, before
        self.watches = steps
        self.energies: list[Tensor] = []
        self.acceptance: list[Tensor] = []
        self.points: list[Tensor] = []
        self.point_steps: list[int] = []
        self.scalars: dict[str, list[Any]] = {}
        self.first = 0
        self._energies: Callable[[State], Tensor] = lambda state: state.energy

    def on_start(self, chains: Chains) -> None:
        self.first = chains.step
        plain = plain_energy(chains.energy) is not None and chains.energy.has_value
        self._energies = (lambda state: state.energy) if plain else (lambda state: chains.visible_state(state).energy)

    def on_step(self, chains: Chains, info: Info) -> None:
        self.energies.append(self._energies(chains.state))
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
        trace = replace(
            self.blank,
            steps=chains.step,
            chains=chains.own,
            state=chains.state,
            diverged_at=chains.diverged_at,
            relocated=chains.relocated,
        )
        if not self.steps:
            return trace
        done, kept = chains.step - self.first, [step for step in self.point_steps if step <= chains.step]
        energies = self._joined("energies", self.energies[:done])
        trace.energies = trace.energies if energies is None else energies
        trace.acceptance = self._joined("acceptance", self.acceptance[:done])
        trace.points = self._joined("points", self.points[: len(kept)])
        trace.point_steps = (self.before.point_steps if self.before else []) + kept
        earlier = self.before.scalars if self.before else {}
        names = dict.fromkeys([*earlier, *self.scalars])
        trace.scalars = {name: [*earlier.get(name, []), *to_floats(self.scalars.get(name, [])[:done])] for name in names}
        return trace

    def _joined(self, name: str, steps: Sequence[Tensor]) -> Tensor | None:
        """Returns the record of this run after that of the interrupted one."""
        before = None if self.before is None else getattr(self.before, name)
        parts = [] if before is None or not len(before) else [before]
        parts += [torch.stack(list(steps))] if steps else []
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else None


def _is_true(answer: Any) -> bool:
    """Returns whether the function returned True itself or a comparison that holds for all; other values mean nothing."""
    return answer is True or (getattr(answer, "dtype", None) in (torch.bool, bool) and bool(answer.all()))
