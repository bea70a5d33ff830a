r"""A monitor watches a run and acts when it goes astray, as runs of contrastive divergence do.

Signs are running means of what the objective tells: the *gap* $E(x') - E(x)$ between chains and data, the *magnitude* $|E|$, the loss,
the *acceptance* of the sampler; and steps whose loss or gradient is not finite, which are skipped in any case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from composable_energy.errors import OptionError, TrainingDiverged

__all__ = ["Event", "Monitor", "Watch", "stopped"]

Action = Literal["lower", "rollback", "stop"]


@dataclass(frozen=True)
class Event:
    """Something that a monitor saw, and what was done.

    Args:
        step: When.
        sign: `"gap"`, `"magnitude"`, `"loss"`, `"acceptance"`, `"diverged"` or `"nonfinite"`.
        seen: What was seen, with figures.
        action: `"lower"`, `"rollback"` or `"stop"`.
    """

    step: int
    sign: str
    seen: str
    action: Action

    def __str__(self) -> str:
        done = {"lower": "the rate is lowered", "rollback": "back to the last good checkpoint at a lower rate", "stop": "stopped"}
        return f"step {self.step}: {self.seen}; {done[self.action]}"


@dataclass(frozen=True)
class Monitor:
    r"""When a run has gone astray, and what to do then. A threshold of None is not watched.

    Args:
        action: `"lower"` multiplies the learning rate by `factor`; `"rollback"` also goes back to the last good checkpoint and takes
            other random numbers from there on; `"stop"` raises `TrainingDiverged`. The checkpoints survive all of them.
        gap: The largest size of the mean gap $E(x') - E(x)$. Far above zero chains do not reach what the energy favors (Du et al., 2020,
            stop there); far below it they have found what it favors by mistake, and networks have been seen to die of the correction.
        magnitude: The largest mean $|E|$ of an objective that tells a gap (Du et al., 2021): the zero of others' energies is where it
            happens to be.
        loss: The largest mean $|L|$ (Grathwohl et al., 2020).
        acceptance: The smallest mean acceptance of a sampler that has one: below it chains stand still.
        diverged: The largest mean share of chains that diverge.
        nonfinite: How many steps in a row may have a loss or gradient that is not finite.
        window: Steps of a running mean; no mean is judged before as many steps were made, from the beginning or the last action on.
        factor: What the rate is multiplied by.
        limit: How often to act before the run is stopped.

    Raises:
        OptionError: A value is out of range.

    References:
        Compositional visual generation with energy based models (Du et al., 2020), https://arxiv.org/abs/2004.06030
        Improved contrastive divergence training of energy based models (Du et al., 2021), https://arxiv.org/abs/2012.01316
        Your classifier is secretly an energy based model (Grathwohl et al., 2020), https://arxiv.org/abs/1912.03263
    """

    action: Action = "rollback"
    gap: float | None = 0.5
    magnitude: float | None = 10.0
    loss: float | None = 1e8
    acceptance: float | None = 0.01
    diverged: float | None = 0.1
    nonfinite: int | None = 5
    window: int = 50
    factor: float = 0.5
    limit: int = 5

    def __post_init__(self) -> None:
        if self.action not in ("lower", "rollback", "stop"):
            raise OptionError(f"action must be 'lower', 'rollback' or 'stop', got {self.action!r}.")
        for name in ("gap", "magnitude", "loss", "diverged", "nonfinite"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"{name} must be positive, or None to leave it alone, got {value!r}.")
        if self.acceptance is not None and not 0 <= self.acceptance <= 1:
            raise OptionError(f"acceptance lies in [0, 1], got {self.acceptance!r}.")
        if not self.window >= 1:
            raise OptionError(f"window must be 1 step or more, got {self.window!r}.")
        if not 0 < self.factor < 1:
            raise OptionError(f"factor must lie in (0, 1), got {self.factor!r}.")
        if not self.limit >= 0:
            raise OptionError(f"limit must be 0 or more, got {self.limit!r}.")


@dataclass
class Watch:
    """What a monitor has seen so far; all of it stands in a checkpoint.

    Args:
        monitor: What it watches for; None for nothing.
        means: The running means, by sign.
        steps: How many steps are in them.
        factor: What the rate is multiplied by now.
        acted: How often it acted.
        attempt: How often the run went back; its random numbers depend on it.
        skipped: Steps that were skipped as something was not finite.
        in_a_row: How many of them were the last ones.
        events: All that happened.
    """

    monitor: Monitor | None
    means: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    factor: float = 1.0
    acted: int = 0
    attempt: int = 0
    skipped: int = 0
    in_a_row: int = 0
    events: list[Event] = field(default_factory=list)

    def see(self, step: int, scalars: Mapping[str, float], finite: bool) -> Event | None:
        """Takes in what a step told, and returns what is to be done.

        Args:
            step: The step.
            scalars: The loss and what the objective told.
            finite: Whether loss and gradient were finite; if not, the step was skipped.
        """
        self.skipped += not finite
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if self.monitor is None:
            return None
        if finite:
            self.steps += 1
            for name in ("gap", "magnitude", "loss", "acceptance", "diverged"):
                if name in scalars and math.isfinite(scalars[name]):
                    before = self.means.get(name, scalars[name])
                    self.means[name] = before + (scalars[name] - before) / min(self.steps, self.monitor.window)
        found = self._sign(self.monitor)
        if found is None:
            return None
        action = "stop" if self.acted >= self.monitor.limit else self.monitor.action
        event = Event(step, *found, action)
        self.events.append(event)
        if action != "stop":
            self.acted += 1
            self.factor *= self.monitor.factor
            self.attempt += action == "rollback"
            self.means, self.steps, self.in_a_row = {}, 0, 0
        return event

    def _sign(self, monitor: Monitor) -> tuple[str, str] | None:
        if monitor.nonfinite is not None and self.in_a_row >= monitor.nonfinite:
            return "nonfinite", f"loss or gradient was not finite {self.in_a_row} times in a row"
        if self.steps < monitor.window:
            return None
        told = f"over the last {monitor.window} steps"
        for name in ("gap", "magnitude", "loss", "diverged"):
            mean, most = self.means.get(name), getattr(monitor, name)
            if name == "magnitude" and "gap" not in self.means:
                continue
            if mean is not None and most is not None and (abs(mean) if name in ("gap", "loss") else mean) > most:
                return name, f"the mean {name} {told} is {mean:.4g}, beyond {most:g} in size"
        accepted = self.means.get("acceptance")
        if accepted is not None and monitor.acceptance is not None and accepted < monitor.acceptance:
            return "acceptance", f"the mean acceptance {told} is {accepted:.4g}, less than {monitor.acceptance:g}"
        return None

    def told(self) -> dict[str, Any]:
        """Returns all of it as plain data."""
        own = {name: getattr(self, name) for name in ("means", "steps", "factor", "acted", "attempt", "skipped", "in_a_row")}
        return {**own, "means": dict(self.means), "events": [[event.step, event.sign, event.seen, event.action] for event in self.events]}

    @classmethod
    def of(cls, monitor: Monitor | None, told: Mapping[str, Any]) -> Watch:
        """Returns what `told` was taken from."""
        return cls(monitor, **{**told, "means": dict(told["means"]), "events": [Event(*event) for event in told["events"]]})


def stopped(event: Event, acted: int, path: Path | None) -> TrainingDiverged:
    """Returns the error of a run that a monitor stops.

    Args:
        event: What it saw.
        acted: How often it had acted before.
        path: The last good checkpoint, if there is one.
    """
    where = "" if path is None else f" The last good checkpoint is {path}."
    after = f" after {acted} actions" if acted else ""
    return TrainingDiverged(
        f"Training was stopped at step {event.step}{after}: {event.seen}.{where} Try a lower rate, more steps of the sampler, or "
        "a stronger penalty on energies.",
        step=event.step,
        checkpoint=path,
    )
