r"""The trainer: training steps, averaged weights, checkpoints and a monitor, in one process or several.

The weights at step $t$ are a function of the settings and the seed. All randomness is keyed by (seed, row, step), and a checkpoint holds
the whole state. So an interrupted run resumes with the same bits on a CPU; with other settings or other data it is refused.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from composable_energy import Energy
from composable_energy.errors import ComposableEnergyError, DeviceError, MemoryShortage, OptionError
from composable_energy.options import check_integer, ran_out
from composable_energy.sampling import Noise
from composable_energy.supports import contains, format_support
from composable_energy_training.batches import BatchLoader, Fingerprint
from composable_energy_training.callbacks import Callback, Checkpoints, ProgressLog
from composable_energy_training.checkpoints import Checkpoint, CheckpointStore
from composable_energy_training.description import describe, describe_modules
from composable_energy_training.monitor import Alert, Monitor, MonitorState, TrainingDiverged, stop_error
from composable_energy_training.objective import Objective, RankContext
from composable_energy_training.optimizer import Optimizer
from composable_energy_training.precision import Precision, channels_last, check_precision, resolve_precision
from composable_energy_training.ranks import Ranks, Termination
from composable_energy_training.train_step import EMA, TrainStep, copy_tensors

_LOG = logging.getLogger("composable_energy_training")


@dataclass(frozen=True)
class Report:
    """The result of a run, which `Trainer.fit` returns.

    Args:
        steps: The number of steps, over all calls.
        scalars: The loss, the gradient norm and the objective's scalars at the last step.
        skipped: The number of steps that were skipped since loss or gradient was not finite.
        alerts: The alerts of the monitor.
        seconds: The duration of this call.
        rows_per_second: The speed of this call, over all processes.
        checkpoint: The last checkpoint; None without a folder.
        precision: The precision of the networks.
    """

    steps: int
    scalars: Mapping[str, float]
    skipped: int
    alerts: tuple[Alert, ...]
    seconds: float
    rows_per_second: float
    checkpoint: Path | None
    precision: Precision


class Trainer:
    r"""Trains a model, on its own device and in its own dtype.

    Args:
        model: Any module that the objective accepts. On a CPU the weights of its convolutions are channels last during `fit`, which is
            faster; afterwards they have their memory format and storage of before. Frozen parts that are in eval mode stay in it.
        objective: The objective to minimize.
        data: Pictures, points with shape $(N, *)$, a pair of points and labels by name, an iterable of batches of these, or one of them as
            `Prepared(data, function)`.
        steps: The total number of steps.
        batch_size: Rows of a batch, over all processes.
        seed: The seed of the run.
        optimizer: How weights change in a step: rate, clipping, average, precision.
        callbacks: What looks at the run after each step: `Checkpoints(folder)`, `Monitor(...)`, `CSVLog()`, `ProgressBar()` and own
            subclasses of `Callback`. Without a `Monitor` there is the default one.

    Attributes:
        out: The folder of the run, that of `Checkpoints`; None if there is none.
        step: The number of steps taken.
        rate: The learning rate of the last step.
        attempt: The number of rollbacks before that step.
        precision: The precision of the networks; `fit` resolves `"auto"`.
        context: The part of the run that this process computes; set by `fit`.

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
        batch_size: int = 128,
        seed: int = 0,
        optimizer: Optimizer = Optimizer(),  # noqa: B008  (frozen)
        callbacks: Sequence[Callback] = (),
    ) -> None:
        _check_arguments(dict(locals()))
        first = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.zeros(()))
        self.device = first.device
        check_precision(optimizer.precision, self.device)
        self.model, self.objective, self.steps, self.seed, self.optimizer = model, objective, steps, seed, optimizer
        self.checkpoints, self.monitor = _only(callbacks, Checkpoints()), _only(callbacks, Monitor())
        self.callbacks: Sequence[Callback] = (*callbacks, ProgressLog())
        self.precision: Precision = optimizer.precision
        self.out = None if self.checkpoints.folder is None else Path(self.checkpoints.folder)
        self.ranks = Ranks.current()
        self._store = CheckpointStore(None if self.out is None else self.out / "checkpoints", self.checkpoints.keep, self.ranks)
        self._loader = BatchLoader(data, batch_size, self.ranks.select_rows(batch_size, optimizer.accumulate), self.device, first.dtype)
        self._monitor_state = MonitorState(self.monitor)
        self._ema: EMA | None = None
        self._termination, self._model_settings, self._interrupted = Termination(), describe_modules(self.model), False
        self._shared: tuple[str, ...] = ()
        idle = (part for part in model.modules() if not part.training)
        self._frozen = [part for part in idle if {weight.requires_grad for weight in part.parameters()} == {False}]
        self.step, self.rate, self.attempt = 0, 0.0, 0

    @property
    def averaged(self) -> nn.Module:
        """The model with averaged weights; the model itself without an average."""
        return self.model if self._ema is None else self._ema.model

    def __repr__(self) -> str:
        task = f"{type(self.model).__name__}, {type(self.objective).__name__}, {self.steps} steps of {self._loader.batch_size} rows"
        return f"Trainer({task}, {self.precision} on {self.device})"

    def fit(self) -> Report:
        """Trains, or resumes from the last checkpoint; afterwards the model has averaged weights and is in eval mode.

        The last checkpoint is that of the folder, or, without a folder, that of the last call on this trainer, in memory. A run resumes if
        seed, batch size, optimizer, average, precision, preparation, the settings of the objective and of the model's modules, and the
        values of the data are unchanged. The number of steps, the monitor, the callbacks and the device may change. Without a folder and a
        monitor the state of the objective, such as a replay buffer, is not copied, and a run with such a state that was interrupted cannot
        be resumed.

        Raises:
            TrainingDiverged: The monitor stopped the run.
            OptionError: The folder has checkpoints of a run with other settings or data, or the state of the objective is lost.
            FileFormatError: The checkpoints are damaged, of another model, or of another version.
            MemoryShortage: The memory of the machine ran out.
            StorageError: Another run has the folder, or a checkpoint could not be written.
            ProcessLost: Another process of the run has ended.
            SystemExit, KeyboardInterrupt: SIGTERM or Ctrl-C, in a run of one process in the main thread; a checkpoint was written after
                the step, and the next `fit` continues from it. A second Ctrl-C does not wait for the end of the step.
        """
        with ExitStack() as stack, torch.enable_grad():
            stack.enter_context(self._store.locked())
            for callback in self.callbacks if self.ranks.is_first else ():
                stack.push(lambda kind, error, trace, callback=callback: callback.on_end(self, error) and None)  # true would hide it
            devices = [self.device] * (self.device.type == "cuda")
            try:
                with torch.random.fork_rng(devices), channels_last(self.model), self._termination.watch(self.ranks.size == 1):
                    return self._run()
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, ComposableEnergyError | torch.cuda.OutOfMemoryError) or not ran_out(error):
                    raise
                ways = "split each batch by `Optimizer(accumulate=...)`, take a smaller one, or a smaller buffer of the objective"
                raise MemoryShortage(f"Memory ran out after {self.step} training steps: {ways}.") from error

    def _run(self) -> Report:
        resumed = self._begin()
        start, first, scalars = time.monotonic(), self.step, {}
        self._notify("on_start")
        if not resumed or self.out is None:
            self._save()
        self._interrupted = True
        while self.step < self.steps:
            scalars = self._take_step()
            if self._termination.requested:
                self._save()
                self._interrupted = False
                path = self._store.path(self.step) or "in memory"
                self._termination.exit(f"after step {self.step} of {self.steps}; `fit()` continues from its checkpoint, {path}")
        self._interrupted = False
        if self._ema is not None:
            copy_tensors(self._ema.model.state_dict(), self.model)
        self.model.train(False)  # last, since layers may compute from the final weights here
        seconds = time.monotonic() - start
        speed = (self.step - first) * self._loader.batch_size / max(seconds, 1e-9)
        monitor, path = self._monitor_state, self._store.path(self.step)
        monitor.warn()
        return Report(self.step, scalars, monitor.skipped, tuple(monitor.alerts), seconds, speed, path, self.precision)

    def _begin(self) -> bool:
        """Prepares the run and loads the last checkpoint; returns whether there was one."""
        self.step, self.rate, self.attempt, self._monitor_state = 0, 0.0, 0, MonitorState(self.monitor)
        example, rows = self._loader.load(self.seed, 1).x, self._loader.rows
        self.model.train()
        for part in self._frozen:  # statistics of batch norm would change
            part.eval()
        self.context = RankContext(self._loader.batch_size, rows, example.shape[1:], self.device, self._loader.dtype, self.seed)
        checkpoint = self._store.load()
        previous = None if checkpoint is None else checkpoint.metadata["settings"]["precision"]
        self.precision = self.ranks.call_on_first(lambda: resolve_precision(self.optimizer.precision, self.device, previous))
        if self.ranks.is_first:
            _LOG.info("%r", self)
        self._settings = self._describe_settings()
        if checkpoint is not None:
            if self._interrupted and self._shared and checkpoint.part("objective"):
                raise OptionError(
                    f"The run was interrupted, and the state of {type(self.objective).__name__}, such as a replay buffer, is ahead of its "
                    f"last checkpoint, of step {checkpoint.step}. Add `Checkpoints(folder)` or a `Monitor` to the callbacks to resume such "
                    "runs; to start again, make a new trainer."
                )
            self._store.check_run(checkpoint, self.model, self._settings, self.steps)
            self.step = checkpoint.step
            if self.out is not None:
                self._store.check_data(checkpoint, self._fingerprint, self._loader.source.advice)
        self._shared = ("objective",) if self.out is None and self.monitor.action is None else ()  # a buffer may be most of the memory
        self.objective.begin(self.model, self.context)
        self._train_step = TrainStep(self.model, self.objective, self.optimizer, self.precision, self.ranks, self.device)
        self._ema = None if self.optimizer.ema is None else EMA(self.model, self.optimizer.ema)
        if checkpoint is not None:
            with self._store.restoring(checkpoint):
                self._restore(checkpoint)
                self._monitor_state = MonitorState.from_dict(self.monitor, checkpoint.metadata["watch"])
            self.attempt = self._monitor_state.attempt
        return checkpoint is not None

    def _take_step(self) -> dict[str, float]:
        """Takes a step, updates average, monitor and callbacks, and saves a checkpoint if one is due."""
        step, self.attempt = self.step + 1, self._monitor_state.attempt
        self.rate = self.optimizer.rate_at(step, self.steps) * self._monitor_state.factor
        seed = Noise(self.seed, range(1)).child(f"attempt {self.attempt}").seed if self.attempt else self.seed
        scalars, finite = self._train_step(batch := self._loader.load(seed, step), self.rate)
        support = self.model.support if isinstance(self.model, Energy) else None
        if not finite and support is not None and (outside := int((~contains(support, batch.x)).sum())):
            where = f"outside of the support of {self.model}, {format_support(support)}"
            raise OptionError(f"{outside} of {len(batch.x)} points of a batch of the data are {where}: leave them out, or move them.")
        self.step = step
        if finite and self._ema is not None:
            self._ema.update(self.model, step)
        alert = self._monitor_state.update(step, scalars, finite)
        self._notify("on_step", scalars)
        due = step % self.checkpoints.every == 0 or step == self.steps
        if alert is not None:
            self._act(alert, due)
        elif due:
            self._save()
        return scalars

    def _act(self, alert: Alert, due: bool) -> None:
        """Performs the action of an alert; saves a checkpoint that is due unless the run is rolled back or stopped."""
        if self.ranks.is_first:
            _LOG.warning("monitor: %s", alert)
        self._notify("on_alert", alert)
        if alert.action == "lower" and due:
            self._save()
        elif alert.action == "rollback":
            if (checkpoint := self._store.roll_back()) is None:
                raise TrainingDiverged(f"There is no checkpoint to roll back to from step {self.step}: removed?", step=self.step)
            self._restore(checkpoint)
        elif alert.action == "stop":
            raise stop_error(alert, self._monitor_state.acted, self._store.last_path())

    def _save(self) -> None:
        """Saves a checkpoint. The names of its parts and metadata belong to the file format."""
        parts = {
            "model": self.model.state_dict(),
            "average": {} if self._ema is None else self._ema.model.state_dict(),
            "optimizer": self._train_step.state(),
            "objective": self.ranks.gather(self.objective.state()),
        }
        data = None if self.out is None else self.ranks.call_on_first(lambda: asdict(self._fingerprint()))
        scaler = self._train_step.scaler.state_dict()
        metadata = {"settings": self._settings, "data": data, "watch": self._monitor_state.to_dict(), "scaler": scaler}
        self._notify("on_checkpoint", self._store.save(self.step, metadata, parts, self._shared))

    def _restore(self, checkpoint: Checkpoint) -> None:
        copy_tensors(checkpoint.part("model"), self.model)
        if self._ema is not None:
            copy_tensors(checkpoint.part("average"), self._ema.model)
        self._train_step.restore(checkpoint.part("optimizer"), dict(checkpoint.metadata["scaler"]))
        self.objective.restore({name: tensor.to(self.device) for name, tensor in checkpoint.part("objective").items()})
        self.step = checkpoint.step

    def _fingerprint(self) -> Fingerprint:
        return self._loader.source.fingerprint(self.step, self._loader.batch_size)

    def _describe_settings(self) -> dict[str, Any]:
        """Returns the settings that must be equal when a run resumes, as JSON returns them."""
        trained = {id(tensor) for tensor in (*self.model.parameters(), *self.model.buffers())}
        settings = {
            "objective": describe(self.objective, trained),
            "preparation": describe(self._loader.preparation, trained),
            "model": self._model_settings,
            "frozen": {name: True for name, parameter in self.model.named_parameters() if not parameter.requires_grad},
            "seed": self.seed,
            "batch_size": self._loader.batch_size,
            "optimizer": self.optimizer.describe(),
            "steps": self.steps if self.optimizer.decay else None,
            "ema": self.optimizer.ema,
            "precision": self.precision,
            "data": self._loader.source.settings(),
        }
        return json.loads(json.dumps(settings))

    def _notify(self, hook: str, *arguments: Any) -> None:
        if self.ranks.is_first:
            for callback in self.callbacks:
                getattr(callback, hook)(self, *arguments)


_PARTS: Mapping[str, tuple[Any, str]] = {
    "model": (nn.Module, "a module of torch, such as `ce.as_energy(network)`"),
    "objective": (Objective, "an objective, such as `ContrastiveDivergence(steps=20)`"),
    "optimizer": (Optimizer, "the settings of Adam, as `Optimizer(rate=1e-3)` of composable_energy_training"),
    "callbacks": (Sequence, "a list of callbacks"),
}
C = TypeVar("C", bound=Callback)


def _check_arguments(given: Mapping[str, Any]) -> None:
    """Raises OptionError if an argument of the trainer has another type, and DeviceError if torch's default device has no values."""
    for name in ("steps", "batch_size"):
        check_integer(name, given[name])
    check_integer("seed", given["seed"], least=-(2**63))
    for name, (kind, wanted) in _PARTS.items():
        _check_part(name, given[name], kind, wanted)
    for callback in given["callbacks"]:
        _check_part("callbacks", callback, Callback, "callbacks, instances of subclasses of `Callback`")
    if any(map(nn.parameter.is_lazy, given["model"].parameters())):
        raise OptionError("model has lazy modules, whose weights the first call makes: evaluate it once before training.", ["model"])
    if any(tensor.requires_grad and tensor.dtype == torch.float16 for tensor in given["model"].parameters()):
        raise OptionError("model has weights of float16, whose steps underflow: train `model.float()`, perhaps with another `precision`.")
    if torch.get_default_device().type == "meta":
        raise DeviceError("torch's default device is meta, whose tensors have no values: set another by `torch.set_default_device`.")


def _check_part(name: str, value: object, kind: Any, wanted: str) -> None:
    """Raises OptionError if a part of the trainer is of another kind, such as a class in place of an instance."""
    if not isinstance(value, kind):
        plain = value is None or isinstance(value, str | int | float)
        got = f"the class {value.__name__}" if isinstance(value, type) else repr(value) if plain else f"an object {type(value).__name__}"
        raise OptionError(f"{name} must be {wanted}; got {got}.", [name])


def _only(callbacks: Sequence[Callback], default: C) -> C:
    """Returns the callback of the class of a default one, or that."""
    found = [callback for callback in callbacks if isinstance(callback, type(default))]
    if len(found) > 1:
        raise OptionError(f"callbacks must have one {type(default).__name__} at most, got {len(found)}.", ["callbacks"])
    return found[0] if found else default
