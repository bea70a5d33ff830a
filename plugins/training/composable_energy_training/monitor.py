r"""A monitor of training: it detects instability, as is common in contrastive divergence, and lowers the rate, rolls back or stops.

It watches running means of the scalars of the objective: the *gap* $E(x') - E(x)$ between chains and data, the *magnitude* $|E|$, both
beside the *spread* of the energies within each, the loss, the *acceptance* rate of the sampler, the share of chains that *diverged*; and
counts steps whose loss or gradient is not finite, which are skipped in any case.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from composable_energy.errors import ComposableEnergyError, OptionError
from composable_energy.options import check_integer, check_number
from composable_energy_training.callbacks import Callback

Action = Literal["lower", "rollback", "stop"]

_FAILURES = {
    "distance": (0.5, "chains are not where the data are, in units of the width of the data"),
    "excess": (0, "the loss exceeds that of an energy that learnt nothing"),
}
_ADVICE = "Scale data to about mean 0 and deviation 1, start chains there (start='normal') with a step_size or variance of .01 to .1"
_SPREADS = 3  # healthy runs stay below 1.8; chains that lose the data are further away


class TrainingDiverged(ComposableEnergyError, RuntimeError):  # noqa: N818
    """Training diverged, and the monitor stopped it.

    Attributes:
        step: The step at which it stopped.
        checkpoint: The last good checkpoint; None if there is none.
    """

    documentation = "errors.md#trainingdiverged"

    def __init__(self, message: str, *, step: int = 0, checkpoint: Path | None = None) -> None:
        super().__init__(message)
        self.step, self.checkpoint = step, checkpoint


class TrainingWarning(UserWarning):
    """A run ended, and its energy is clearly not that of the data.

    Example:
        >>> import warnings, composable_energy_training as cet
        >>> x = cet.toys.sample("rings", 500, seed=0) + 50
        >>> objective = cet.NoiseContrastive(cet.GaussianNoise.fit(x))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     report = cet.Trainer(cet.MLPEnergy(2), objective, x, steps=60).fit()
        >>> caught[0].category.__name__
        'TrainingWarning'
    """


@dataclass(frozen=True)
class Alert:
    """An instability that the monitor found, and its action.

    Args:
        step: The step.
        cause: `"gap"`, `"magnitude"`, `"loss"`, `"acceptance"`, `"diverged"` or `"nonfinite"`.
        message: The value and the threshold.
        action: `"lower"`, `"rollback"` or `"stop"`.
    """

    step: int
    cause: str
    message: str
    action: Action

    def __str__(self) -> str:
        done = {"lower": "the rate is lowered", "rollback": "back to the last good checkpoint at a lower rate", "stop": "stopped"}
        return f"step {self.step}: {self.message}; {done[self.action]}"


@dataclass(frozen=True)
class Monitor(Callback):
    r"""Thresholds for running means, and the action when one is exceeded. A threshold of None is ignored.

    A trainer without a monitor among its callbacks has the default one.

    Args:
        action: `"lower"` multiplies the learning rate by `factor`; `"rollback"` also restores the last good checkpoint and continues with
            other random numbers; `"stop"` raises `TrainingDiverged`; None watches nothing. Checkpoints are kept in all cases.
        gap: The largest absolute mean of the gap $E(x') - E(x)$. Far above zero the chains do not reach regions of low energy (Du et al.,
            2020, stop there); far below zero they have found spurious ones, and networks may not recover from the correction. A gap counts
            only beyond three times the spread of the energies: the draws of a plain Gaussian have a spread of $\sqrt{d/2}$.
        magnitude: The largest mean $|E|$, for objectives with a gap (Du et al., 2021). It counts only where the spread is larger too, since
            the zero of an energy may be arbitrary.
        loss: The largest absolute mean of the loss (Grathwohl et al., 2020).
        acceptance: The smallest mean acceptance rate, for samplers that have one; below it chains do not move.
        diverged: The largest mean share of chains that diverge.
        nonfinite: The number of consecutive steps with a non-finite loss or gradient.
        window: Steps of a running mean. A mean counts after this many steps, from the start or the last action on.
        factor: The factor of the learning rate.
        limit: The number of actions before the run is stopped.

    References:
        Compositional visual generation with energy based models (Du et al., 2020), https://arxiv.org/abs/2004.06030
        Improved contrastive divergence training of energy based models (Du et al., 2021), https://arxiv.org/abs/2012.01316
        Your classifier is secretly an energy based model (Grathwohl et al., 2020), https://arxiv.org/abs/1912.03263
    """

    action: Action | None = "rollback"
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
        if self.action not in ("lower", "rollback", "stop", None):
            raise OptionError(f"action must be 'lower', 'rollback' or 'stop', or None to watch nothing, got {self.action!r}.")
        for name in ("gap", "magnitude", "loss", "diverged", "nonfinite"):
            if (value := getattr(self, name)) is not None and not (_is_number(value) and value > 0):
                raise OptionError(f"{name} must be a positive number, or None to ignore it, got {value!r}.")
        if self.acceptance is not None and not (_is_number(self.acceptance) and 0 <= self.acceptance <= 1):
            raise OptionError(f"acceptance must be in [0, 1], or None to ignore it, got {self.acceptance!r}.")
        check_integer("window", self.window)
        check_number("factor", self.factor, above=0, below=1)
        check_integer("limit", self.limit, least=0)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass
class MonitorState:
    """The state of a monitor during a run; a checkpoint stores it."""

    monitor: Monitor  # the thresholds; with no action it only counts skipped steps
    means: dict[str, float] = field(default_factory=dict)  # the running means by name
    steps: int = 0  # the number of steps in the means
    factor: float = 1.0  # the present factor of the learning rate
    acted: int = 0  # the number of actions
    attempt: int = 0  # the number of rollbacks; random numbers depend on it
    skipped: int = 0  # the number of steps that were skipped since loss or gradient was not finite
    in_a_row: int = 0  # the number of consecutive skipped steps up to the present one
    alerts: list[Alert] = field(default_factory=list)

    def update(self, step: int, scalars: Mapping[str, float], finite: bool) -> Alert | None:
        """Updates the means with a step, and returns an alert if a threshold is exceeded."""
        self.skipped += not finite
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if self.monitor.action is None:
            return None
        if finite:
            self.steps += 1
            for name in ("gap", "magnitude", "spread", *_FAILURES, "loss", "acceptance", "diverged"):
                if name in scalars and math.isfinite(scalars[name]):
                    before = self.means.get(name, scalars[name])
                    self.means[name] = before + (scalars[name] - before) / min(self.steps, self.monitor.window)
        if (found := self._find_cause(self.monitor)) is None:
            return None
        action: Action = "stop" if self.acted >= self.monitor.limit else self.monitor.action
        alert = Alert(step, *found, action)
        self.alerts.append(alert)
        if action != "stop":
            self.acted += 1
            self.factor *= self.monitor.factor
            self.attempt += action == "rollback"
            self.means, self.steps, self.in_a_row = {}, 0, 0
        return alert

    def _find_cause(self, monitor: Monitor) -> tuple[str, str] | None:
        """Returns the first threshold that is exceeded, and a message."""
        if monitor.nonfinite is not None and self.in_a_row >= monitor.nonfinite:
            return "nonfinite", f"loss or gradient was not finite {self.in_a_row} times in a row"
        if self.steps < monitor.window:
            return None
        window, spread = f"over the last {monitor.window} steps", self.means.get("spread")
        limits = {name: getattr(monitor, name) for name in ("gap", "magnitude", "loss", "diverged")}
        if spread is not None:
            limits["gap"] = None if monitor.gap is None else max(monitor.gap, _SPREADS * spread)
        if "gap" not in self.means or (spread is not None and monitor.magnitude is not None and spread <= monitor.magnitude):
            limits["magnitude"] = None
        for name, most in limits.items():
            if most is not None and abs(mean := self.means.get(name, 0.0)) > most:
                return name, f"the mean {name} {window} is {mean:.4g}, beyond {most:.4g} in size"
        if monitor.acceptance is not None and (accepted := self.means.get("acceptance", 1.0)) < monitor.acceptance:
            return "acceptance", f"the mean acceptance {window} is {accepted:.4g}, less than {monitor.acceptance:g}"
        return None

    def warn(self) -> None:
        """Emits a `TrainingWarning` where the monitor acted repeatedly, and for each sign that the last energy is not that of the data."""
        if len(self.alerts) > 1:
            seen = f"the monitor acted {len(self.alerts)} times, as {self.alerts[-1].message}; the rate is {self.factor:.2g} of that given"
            warnings.warn(f"alerts: {seen}. {_ADVICE}, or a lower rate.", TrainingWarning, stacklevel=4)
        for name, (most, seen) in _FAILURES.items() if self.steps >= self.monitor.window else ():
            if (mean := self.means.get(name, -math.inf)) > most:
                warnings.warn(f"{name}: {seen}, by {mean:.2g} at the end. {_ADVICE}; train longer.", TrainingWarning, stacklevel=4)

    def to_dict(self) -> dict[str, Any]:
        """Returns the state as plain data; its keys are part of the checkpoint format."""
        state = {name: getattr(self, name) for name in ("means", "steps", "factor", "acted", "attempt", "skipped", "in_a_row")}
        events = [[alert.step, alert.cause, alert.message, alert.action] for alert in self.alerts]
        return {**state, "means": dict(self.means), "events": events}

    @classmethod
    def from_dict(cls, monitor: Monitor, data: Mapping[str, Any]) -> MonitorState:
        """Returns the state that `to_dict` described."""
        state = dict(data)
        alerts = [Alert(*alert) for alert in state.pop("events")]
        found = cls(monitor, **{**state, "means": {name: float(mean) for name, mean in dict(state["means"]).items()}, "alerts": alerts})
        counts = (found.steps, found.acted, found.attempt, found.skipped, found.in_a_row)
        if not (0 < found.factor <= 1 and all(type(count) is int and count >= 0 for count in counts)):
            raise ValueError("a number of the monitor is out of bounds")
        return found


def stop_error(alert: Alert, acted: int, path: Path | None) -> TrainingDiverged:
    """Returns the error of a run that the monitor stops."""
    where = "" if path is None else f" The last good checkpoint is {path}."
    after = f" after {acted} actions" if acted else ""
    return TrainingDiverged(
        f"The `Monitor` stopped the training at step {alert.step}{after}: {alert.message}.{where} "
        f"{_ADVICE}, a lower rate, more steps of the sampler, or a stronger penalty on energies. If the run is healthy, add "
        f"`Monitor({alert.cause}=None)`, or with another threshold, to the callbacks, or `Monitor(None)`.",
        step=alert.step,
        checkpoint=path,
    )
