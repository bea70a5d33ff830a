r"""The trainer: steps, averages, checkpoints, and a monitor, on one process or several.

The weights at step $t$ are a function of the call and the seed. All randomness is keyed by (seed, row, step), checkpoints are written at
fixed steps, and hold everything; so whatever ends a run, the same call goes on and ends with the same bits on a CPU. A call with other
settings or other data is refused.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.errors import OptionError, TrainingDiverged
from composable_energy.noise import Noise
from composable_energy_training.averaging import Average, check_decay
from composable_energy_training.batches import Batches, rows_of
from composable_energy_training.callbacks import Callback
from composable_energy_training.checkpoint import Checkpoints, Saved
from composable_energy_training.describing import described, model_settings
from composable_energy_training.fingerprints import Fingerprint
from composable_energy_training.keeping import Keeping, copy_
from composable_energy_training.layout import channels_last
from composable_energy_training.monitor import Event, Monitor, Watch, stopped
from composable_energy_training.objective import Objective, Place
from composable_energy_training.optimizing import Optimizer
from composable_energy_training.precision import Precision, check_precision, settled_precision
from composable_energy_training.progress import ProgressBar
from composable_energy_training.ranks import Ranks
from composable_energy_training.report import Report
from composable_energy_training.stepping import Stepping

__all__ = ["Report", "Trainer"]

_LOG = logging.getLogger("composable_energy_training")


class Trainer:
    r"""Trains a model.

    Args:
        model: Any module that the objective takes. On a CPU the weights of its convolutions are channels last during `fit`, which is
            faster; afterwards they have the memory format and the storage that they had before.
        objective: What is minimized.
        data: Pictures, points with shape $(N, *)$, a pair of points and labels by name, or an iterable of batches of these.
        steps: How many steps to make in all.
        batch_size: Rows of a batch, those of all processes together.
        out: The folder of the run; checkpoints are in `out/checkpoints`. None writes nothing.
        seed: One for the run.
        optimizer: How weights follow gradients.
        ema: The share of the averaged weights that a step keeps, such as 0.999; None for no average.
        precision: What networks compute in: `"float32"`, `"bfloat16"`, or, on CUDA, `"float16"`; or `"auto"`, which is bfloat16 where the
            device has instructions for it and float32 elsewhere. A run that goes on keeps what it began with.
        accumulate: How many parts a batch is cut into, one after another, to need less memory.
        checkpoint_every: Steps from checkpoint to checkpoint.
        keep: How many checkpoints to keep.
        preparation: What is done to points before the model sees them: a function of (points, noise), such as
            `composable_energy_image.data.Preparation`.
        monitor: When a run has gone astray, and what to do then; None watches nothing.
        callbacks: What is told of the run.
        progress: Whether to show a bar.
        device: Where to train; the model's own if None.
        dtype: Of the points; the model's own if None.

    Attributes:
        step: Steps that were made.
        rate: The learning rate of the last step.
        attempt: How often the run had gone back to a checkpoint before that step.
        precision: What networks compute in; `"auto"` becomes the choice when `fit` begins.
        place: Where this process stands in the run, from the beginning of `fit` on.

    Raises:
        OptionError: An option is out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from composable_energy_training import Loss, Objective, Trainer
        >>> class Distance(Objective):
        ...     def loss(self, model, batch):
        ...         return Loss((model(batch.x) - batch.x).square().mean())
        >>> trainer = Trainer(nn.Linear(2, 2), Distance(), torch.rand(64, 2), steps=20, batch_size=16)
        >>> trainer.fit().steps
        20
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        data: Any,
        *,
        steps: int,
        batch_size: int,
        out: str | Path | None = None,
        seed: int = 0,
        optimizer: Optimizer = Optimizer(),  # noqa: B008  (frozen)
        ema: float | None = None,
        precision: Precision = "float32",
        accumulate: int = 1,
        checkpoint_every: int = 500,
        keep: int = 3,
        preparation: Callable[[Tensor, Noise], Tensor] | None = None,
        monitor: Monitor | None = Monitor(),  # noqa: B008  (frozen)
        callbacks: Sequence[Callback] = (),
        progress: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("steps", steps), ("checkpoint_every", checkpoint_every), ("keep", keep)):
            if not value >= 1:
                raise OptionError(f"{name} must be 1 or more, got {value!r}.")
        first = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.zeros(()))
        self.device = first.device if device is None else torch.device(device)
        self.dtype = first.dtype if dtype is None else dtype
        check_precision(precision, self.device)
        if ema is not None:
            check_decay(ema)
        self.model, self.objective, self.steps, self.seed = model.to(self.device), objective, steps, seed
        self.optimizer, self.ema, self.accumulate = optimizer, ema, accumulate
        self.precision: Precision = precision
        self._asked_precision: Precision = precision
        self.checkpoint_every, self.monitor = checkpoint_every, monitor
        self.callbacks = (*callbacks, ProgressBar()) if progress else tuple(callbacks)
        self.out = None if out is None else Path(out).expanduser()
        self.checkpoints = Checkpoints(None if self.out is None else self.out / "checkpoints", keep)
        self.ranks = Ranks.of()
        rows = rows_of(data)
        own = self.ranks.own(batch_size, accumulate)
        self._batches = Batches(rows, batch_size, own, preparation, self.device, self.dtype)
        self._watch = Watch(monitor)
        self._average: Average | None = None
        self._model_settings = model_settings(self.model)
        self.step, self.rate, self.attempt = 0, 0.0, 0

    @property
    def averaged(self) -> nn.Module:
        """The model with averaged weights; the model itself where none are averaged."""
        return self.model if self._average is None else self._average.model

    def __repr__(self) -> str:
        task = f"{type(self.model).__name__}, {type(self.objective).__name__}, {self.steps} steps of {self._batches.batch_size} rows"
        return f"Trainer({task}, {self.precision} on {self.device})"

    def fit(self) -> Report:
        """Trains, or goes on from the last checkpoint; afterwards the model has averaged weights and is in eval mode.

        The last checkpoint is that of the folder; without one, that of the last call on this trainer, in memory. A run goes on if its
        seed, batch size, optimizer, average, precision and preparation, the settings of its objective and of the modules of its model,
        and the values of its data are as they were. The number of steps, the monitor, the callbacks and the device may change.

        Raises:
            TrainingDiverged: The monitor stopped the run.
            OptionError: The folder has the checkpoints of another call, or of other data.
            FileFormatError: They are damaged, of another model, or of another version.
            StorageError: A checkpoint could not be written.
            ProcessLost: Another process of the run has ended.
        """
        with ExitStack() as closing:
            for callback in self.callbacks if self.ranks.first else ():
                closing.callback(callback.on_exit, self)
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), channels_last(self.model):
                report = self._run()
            self._tell("on_end", report)
        return report

    def _run(self) -> Report:
        fresh = self._begin()
        began, first, scalars = time.monotonic(), self.step, {}
        self._tell("on_start")
        if fresh:
            self._write()
        while self.step < self.steps:
            scalars = self._advance()
        if self._average is not None:
            copy_(self._average.model.state_dict(), self.model)
        self.model.train(False)  # last: layers may get ready for evaluation, of the weights that they have now
        seconds = time.monotonic() - began
        speed = (self.step - first) * self._batches.batch_size / max(seconds, 1e-9)
        events, path = tuple(self._watch.events), self.checkpoints.path(self.step)
        return Report(self.step, scalars, self._watch.skipped, events, seconds, speed, path, self.precision)

    def _begin(self) -> bool:
        """Gets all ready, and goes on from the last checkpoint; returns whether there was none."""
        self.step, self.rate, self.attempt, self._watch = 0, 0.0, 0, Watch(self.monitor)
        like, own = self._batches.at(self.seed, 1).x, self._batches.own
        self.model.train()
        self.place = Place(self._batches.batch_size, own, like.shape[1:], self.device, self.dtype, self.seed)
        self._keeping = Keeping(self.checkpoints, self.ranks)
        saved = self._keeping.read()
        before = None if saved is None else saved.told["settings"]["precision"]
        self.precision = self.ranks.agreed(lambda: settled_precision(self._asked_precision, self.device, before))
        if self.ranks.first:
            _LOG.info("%r", self)
        self._settings = self._described()
        if saved is not None:
            self._keeping.check(saved, self.model, self._settings, self.steps)
            self.step = saved.step
            if self.out is not None:
                self._keeping.check_data(saved, self._fingerprint, self._batches.rows.advice)
        self.objective.begin(self.model, self.place)
        self._stepping = Stepping(self.model, self.objective, self.optimizer, self.precision, self.accumulate, self.ranks, self.device)
        self._average = None if self.ema is None else Average(self.model, self.ema)
        if saved is not None:
            self._restore(saved)
            self._watch = Watch.of(self.monitor, saved.told["watch"])
            self.attempt = self._watch.attempt
        return saved is None

    def _advance(self) -> dict[str, float]:
        """Makes a step, and what is due after it."""
        step, self.attempt = self.step + 1, self._watch.attempt
        self.rate = self.optimizer.rate_at(step, self.steps) * self._watch.factor
        seed = Noise(self.seed, range(1)).child(f"attempt {self.attempt}").seed if self.attempt else self.seed
        scalars, finite = self._stepping(self._batches.at(seed, step), self.rate)
        self.step = step
        if finite and self._average is not None:
            self._average.update(self.model, step)
        event = self._watch.see(step, scalars, finite)
        self._tell("on_step", scalars)
        if event is not None:
            self._act(event)
        elif self._due:
            self._write()
        return scalars

    @property
    def _due(self) -> bool:
        return self.step % self.checkpoint_every == 0 or self.step == self.steps

    def _act(self, event: Event) -> None:
        """Does what the monitor says."""
        if self.ranks.first:
            _LOG.warning("%s", event)
        self._tell("on_event", event)
        if event.action == "lower" and self._due:
            self._write()
        elif event.action == "rollback":
            saved = self._keeping.back()
            if saved is None:
                raise TrainingDiverged(
                    f"There is no checkpoint to go back to from step {self.step}: was the folder removed?", step=self.step
                )
            self._restore(saved)
        elif event.action == "stop":
            raise stopped(event, self._watch.acted, self._keeping.last())

    def _write(self) -> None:
        parts = {
            "model": self.model.state_dict(),
            "average": {} if self._average is None else self._average.model.state_dict(),
            "optimizer": self._stepping.state(),
            "objective": self.ranks.joined(self.objective.state()),
        }
        data = None if self.out is None else self.ranks.agreed(lambda: asdict(self._fingerprint()))
        told = {"settings": self._settings, "data": data, "watch": self._watch.told(), "scaler": self._stepping.scaler.state_dict()}
        self._tell("on_checkpoint", self._keeping.write(self.step, told, parts))

    def _restore(self, saved: Saved) -> None:
        copy_(saved.under("model"), self.model)
        if self._average is not None:
            copy_(saved.under("average"), self._average.model)
        self._stepping.restore(saved.under("optimizer"), dict(saved.told["scaler"]))
        self.objective.restore({name: tensor.to(self.device) for name, tensor in saved.under("objective").items()})
        self.step = saved.step

    def _fingerprint(self) -> Fingerprint:
        return self._batches.rows.fingerprint(self.step, self._batches.batch_size)

    def _described(self) -> dict[str, Any]:
        """What must be the same for a run to go on, as JSON gives it back."""
        own = {id(tensor) for tensor in (*self.model.parameters(), *self.model.buffers())}
        settings = {
            "objective": described(self.objective, own),
            "preparation": described(self._batches.preparation, own),
            "model": self._model_settings,
            "seed": self.seed,
            "batch_size": self._batches.batch_size,
            "optimizer": asdict(self.optimizer),
            "steps": self.steps if self.optimizer.decay else None,
            "ema": self.ema,
            "precision": self.precision,
            "data": self._batches.rows.told(),
        }
        return json.loads(json.dumps(settings))

    def _tell(self, hook: str, *what: Any) -> None:
        if self.ranks.first:
            for callback in self.callbacks:
                getattr(callback, hook)(self, *what)
