"""Callbacks of the trainer: checkpoints, a CSV log, TensorBoard curves, sheets of samples, progress."""

from __future__ import annotations

import csv
import io
import logging
import os
import sys
import time
from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from composable_energy import Energy
from composable_energy.errors import ExtraNotInstalled, FileFormatError, OptionError, StorageError
from composable_energy.files import expanded, replace_file
from composable_energy.options import check_integer, check_number
from composable_energy_viz.files import is_picture, write_grid

if TYPE_CHECKING:
    from composable_energy_training.monitor import Alert
    from composable_energy_training.trainer import Trainer

_LOG = logging.getLogger("composable_energy_training")


class Callback(ABC):  # noqa: B024  (every hook is optional)
    """Abstract callback. A subclass implements the hooks that it needs; they are called in the first process only."""

    def on_start(self, trainer: Trainer) -> None:  # noqa: B027
        """Called when the run starts, or resumes from `trainer.step`."""

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:  # noqa: B027
        """Called after each step with means over the batch: the loss, the gradient norm, and the scalars of the objective."""

    def on_checkpoint(self, trainer: Trainer, path: Path | None) -> None:  # noqa: B027
        """Called after a checkpoint; the path is None for a run without a folder."""

    def on_alert(self, trainer: Trainer, alert: Alert) -> None:  # noqa: B027
        """Called after an alert of the monitor, before its action."""

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:  # noqa: B027
        """Called last on every exit of `fit`, with its error, if any; releases resources of `on_start`."""


@dataclass(frozen=True)
class Checkpoints(Callback):
    """Where a run saves its state, from which it resumes. Without it the trainer keeps the last state in memory.

    Args:
        folder: The folder of the run, with the files in `checkpoints`; other callbacks write there as well. None keeps memory alone.
        every: Steps between checkpoints; the last step has one as well.
        keep: The number of files to keep.

    Raises:
        OptionError: A number is below 1, or the folder is no path.
    """

    folder: str | Path | None = None
    every: int = 500
    keep: int = 3

    def __post_init__(self) -> None:
        check_integer("every", self.every)
        check_integer("keep", self.keep)
        if not isinstance(self.folder, str | Path | None):
            raise OptionError(f"folder must be the path of a folder, or None, got {self.folder!r}.")
        object.__setattr__(self, "folder", None if self.folder is None else expanded(self.folder))


class CSVLog(Callback):
    """Writes the table `log.csv` in the folder of the run, with a row every few steps and a row for each alert.

    A resumed run removes the rows after its checkpoint. So an interrupted run has the same table as an uninterrupted one, except for the
    column `seconds`, the time since the last start. After a rollback the rows of both attempts stay, with different values in the column
    `attempt`.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = check_integer("every", every)
        self._names: list[str] = []
        self._scalars: Mapping[str, float] = {}
        self._path, self._started = Path(), 0.0

    def on_start(self, trainer: Trainer) -> None:
        """Opens the table and removes the rows after the checkpoint.

        Raises:
            FileFormatError: `log.csv` is another table.
        """
        self._path, self._started = _folder(trainer, "a table") / "log.csv", time.monotonic()
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # a killed process may leave an incomplete last line
        self._names = next(csv.reader(lines[:1]), [])
        if self._names and self._names[:2] != ["attempt", "step"]:
            raise FileFormatError(f"{self._path} is not the log of a run: move it away.")
        here = (trainer.attempt, trainer.step)
        kept = [line for line in lines[1:] if (int((row := next(csv.reader([line])))[0]), int(row[1])) <= here]
        replace_file(self._path, "".join(f"{line}\n" for line in (*lines[:1], *kept)).encode())

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        self._scalars = scalars
        if trainer.step % self.every == 0 or trainer.step == trainer.steps:
            self._add(trainer, {"rate": trainer.rate, **scalars})
        if (trainer.step % trainer.checkpoints.every == 0 or trainer.step == trainer.steps) and self._path.exists():
            self._append("", sync=True)  # the rows reach the disk before the checkpoint that follows

    def on_alert(self, trainer: Trainer, alert: Alert) -> None:
        self._add(trainer, {"event": str(alert)})

    def _add(self, trainer: Trainer, values: Mapping[str, Any]) -> None:
        row = {"attempt": trainer.attempt, "step": trainer.step, "seconds": f"{time.monotonic() - self._started:.1f}", **values}
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        if not self._names:
            self._names = ["attempt", "step", "seconds", "rate", *self._scalars, "event"]
            writer.writerow(self._names)
        writer.writerow([row.get(name, "") for name in self._names])
        self._append(out.getvalue())

    def _append(self, text: str, *, sync: bool = False) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written ({error.strerror or error}): free some space.") from error


class TensorBoard(Callback):
    """Writes curves and alerts for TensorBoard, in the folder `tensorboard` of the run, with a point every few steps."""

    def __init__(self, every: int = 10) -> None:
        self.every = check_integer("every", every)
        self._writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        """Opens the folder; TensorBoard hides points after `trainer.step`."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ExtraNotInstalled("TensorBoard is missing: `pip install 'composable-energy[tensorboard]'`, or use `CSVLog`.") from error
        self._writer = SummaryWriter(str(_folder(trainer, "curves") / "tensorboard"), purge_step=trainer.step + 1)

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        if trainer.step % self.every == 0 or trainer.step == trainer.steps:
            for name, value in {**scalars, "rate": trainer.rate}.items():
                self._writer.add_scalar(name, value, trainer.step)

    def on_alert(self, trainer: Trainer, alert: Alert) -> None:
        self._writer.add_text("event", str(alert), alert.step)

    def on_checkpoint(self, trainer: Trainer, path: Path | None) -> None:
        self._writer.flush()

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        if self._writer is not None:
            self._writer.close()


class SampleSheet(Callback):
    """Writes sheets of pictures, `samples/step-....png` in the folder of the run.

    They show the chains of the objective, if it keeps any, else samples from the energy with averaged weights.

    Args:
        every: Steps between sheets; the last step has one as well.
        chains: Whether to show the objective's chains, those of the first process; None shows them if there are any.
        of: A function from the averaged model to the energy to sample, such as `lambda energy: energy.given(y=3)`; None samples the model.
        value_range: The values of black and white.
        **options: Options of `Energy.sample`, such as `sampler` and `steps`; the defaults are those that the energy recommends.
    """

    def __init__(
        self,
        every: int = 1000,
        n: int = 64,
        *,
        chains: bool | None = None,
        of: Callable[[Any], Energy] | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        **options: Any,
    ) -> None:
        self.every, self.n = check_integer("every", every), check_integer("n", n)
        self.chains, self.of, self.value_range, self.options = chains, of, value_range, options

    def on_start(self, trainer: Trainer) -> None:
        """Checks that there is something to show.

        Raises:
            OptionError: The run has no folder, its points are not pictures, there are no chains, or the model is not an energy.
        """
        _folder(trainer, "sheets")
        points = self._chains(trainer)
        if self.chains and points is None:
            raise OptionError(f"{type(trainer.objective).__name__} keeps no chains to show: omit `chains`.")
        decoded = points is None and self._energy(trainer.averaged).decoder is not None
        if not decoded and not is_picture(tuple(trainer.context.event_shape)):
            raise OptionError(f"Points of shape {tuple(trainer.context.event_shape)} are not pictures: train without a sheet.")

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        if trainer.step % self.every and trainer.step != trainer.steps:
            return
        if (points := self._chains(trainer)) is None:
            energy = self._energy(trainer.averaged)
            shape = self.n if energy.decoder is not None or energy.event_shape is not None else (self.n, *trainer.context.event_shape)
            points = energy.sample(shape, **{"seed": trainer.seed, **self.options})
        path = _folder(trainer, "sheets") / "samples" / f"step-{trainer.step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_grid(path, points[: self.n], self.value_range, {"step": trainer.step})

    def _chains(self, trainer: Trainer) -> Tensor | None:
        """Returns evenly spaced points of the objective's state; None if it keeps none."""
        if self.chains is False:
            return None
        states = trainer.objective.state().values()
        points = next((state for state in states if state.shape[1:] == trainer.context.event_shape and len(state)), None)
        return None if points is None else points[:: max(1, len(points) // self.n)][: self.n]

    def _energy(self, model: nn.Module) -> Energy:
        energy = model if self.of is None else self.of(model)
        if not isinstance(energy, Energy):
            raise OptionError(f"A sheet samples an energy, got {type(energy).__name__}; give `of`, a function from the model to an energy.")
        return energy


class ProgressBar(Callback):
    """Shows a progress bar with loss, gap and rate; it moves back after a rollback."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_start(self, trainer: Trainer) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=trainer.steps, initial=trainer.step, file=sys.stderr, disable=sys.stderr is None, desc="training")

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        shown = {name: f"{scalars[name]:.4g}" for name in ("loss", "gap") if name in scalars}
        self._bar.set_postfix({**shown, "rate": f"{trainer.rate:.2g}"}, refresh=False)
        self._bar.update(trainer.step - self._bar.n)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        if self._bar is not None:
            self._bar.close()


class ProgressLog(Callback):
    """Logs stage, step, loss and time left to the logger `composable_energy_training`, at level INFO.

    The stage is the name of the folder of the run, or the class of the model. Every trainer has this callback. The command `train` shows
    the lines if its output is no terminal. `every` is the number of seconds between lines.
    """

    def __init__(self, every: float = 60.0) -> None:
        self.every, self._began, self._first, self._last = check_number("every", every, least=0), 0.0, 0, 0.0

    def on_start(self, trainer: Trainer) -> None:
        self._began = self._last = time.monotonic()
        self._first = trainer.step

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        if (now := time.monotonic()) - self._last < self.every:
            return
        self._last = now
        done = trainer.step - self._first
        left = f", {_duration((now - self._began) / done * (trainer.steps - trainer.step))} left" if done > 0 else ""
        _LOG.info("%s: step %d of %d, loss %.4g%s", _stage(trainer), trainer.step, trainer.steps, scalars["loss"], left)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        seconds = time.monotonic() - self._began
        if error is None and seconds >= self.every:
            _LOG.info("%s: %d steps finished in %s", _stage(trainer), trainer.step, _duration(seconds))


def _stage(trainer: Trainer) -> str:
    return type(trainer.model).__name__ if trainer.out is None else trainer.out.name


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if minutes < 1 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _folder(trainer: Trainer, content: str) -> Path:
    if trainer.out is None:
        raise OptionError(f"The run has no folder to write {content} to: add `Checkpoints(folder)` to the callbacks.")
    try:
        trainer.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{trainer.out} cannot be made ({error.strerror or error}): give another folder.") from error
    return trainer.out
