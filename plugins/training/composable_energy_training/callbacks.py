"""What people want to see of a run while it goes on."""

from __future__ import annotations

import csv
import io
import os
import time
from abc import ABC
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from composable_energy.energy import Energy
from composable_energy.errors import ExtraNotInstalled, FileFormatError, OptionError
from composable_energy.grids import is_picture, write_grid
from composable_energy_training.monitor import Event

if TYPE_CHECKING:
    from composable_energy_training.trainer import Report, Trainer

__all__ = ["CSVLog", "Callback", "SampleSheet", "TensorBoard"]


class Callback(ABC):  # noqa: B024  (each hook is there to be left out)
    """Abstract callback: a subclass writes the hooks that it needs. They are called in the first process only."""

    def on_start(self, trainer: Trainer) -> None:  # noqa: B027
        """The run begins, or goes on from `trainer.step`."""

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:  # noqa: B027
        """A step was made.

        Args:
            trainer: With its `step`, its `rate`, its `attempt`.
            scalars: The loss, the norm of the gradient, and what the objective tells, means over the batch.
        """

    def on_checkpoint(self, trainer: Trainer, path: Path | None) -> None:  # noqa: B027
        """A checkpoint was written; a run without a folder has no path."""

    def on_event(self, trainer: Trainer, event: Event) -> None:  # noqa: B027
        """The monitor saw something; what it does comes afterwards."""

    def on_end(self, trainer: Trainer, report: Report) -> None:  # noqa: B027
        """The run is over, and the model has its final weights."""

    def on_exit(self, trainer: Trainer) -> None:  # noqa: B027
        """Called last on every exit of `fit`, also after an error; closes what `on_start` opened."""


class CSVLog(Callback):
    """A table of the run, `log.csv` in its folder: a row for every so many steps, and one for each event.

    A run that goes on cuts off what came after its checkpoint, so the table of a run that was killed is that of one that was not, but for
    the column `seconds`, the time since the last start. A run that went back to a checkpoint keeps the rows of both attempts, told
    apart by the column `attempt`.

    Args:
        every: Steps from row to row.

    Raises:
        OptionError: `every` is below 1.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = _at_least_1(every)
        self._names: list[str] = []
        self._scalars: Mapping[str, float] = {}
        self._path = Path()
        self._began = 0.0

    def on_start(self, trainer: Trainer) -> None:
        """Cuts off what is done again.

        Raises:
            OptionError: The run has no folder.
            FileFormatError: The table is none of ours.
        """
        self._path, self._began = _folder(trainer, "a table") / "log.csv", time.monotonic()
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # the last line may have been cut by a kill
        self._names = next(csv.reader(lines[:1]), [])
        if self._names and self._names[:2] != ["attempt", "step"]:
            raise FileFormatError(f"{self._path} is no table of a run: move it away.")
        here = (trainer.attempt, trainer.step)
        kept = [line for line in lines[1:] if (int((row := next(csv.reader([line])))[0]), int(row[1])) <= here]
        fresh = self._path.with_name(f".{self._path.name}.new")
        fresh.write_text("".join(f"{line}\n" for line in (*lines[:1], *kept)), encoding="utf-8")
        os.replace(fresh, self._path)  # noqa: PTH105  (works on Windows as well)

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        self._scalars = scalars
        if trainer.step % self.every == 0 or trainer.step == trainer.steps:
            self._add(trainer, {"rate": trainer.rate, **scalars})

    def on_event(self, trainer: Trainer, event: Event) -> None:
        self._add(trainer, {"event": str(event)})

    def _add(self, trainer: Trainer, told: Mapping[str, Any]) -> None:
        row = {"attempt": trainer.attempt, "step": trainer.step, "seconds": f"{time.monotonic() - self._began:.1f}", **told}
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        if not self._names:
            self._names = ["attempt", "step", "seconds", "rate", *self._scalars, "event"]
            writer.writerow(self._names)
        writer.writerow([row.get(name, "") for name in self._names])
        with self._path.open("a", encoding="utf-8") as file:
            file.write(out.getvalue())


class TensorBoard(Callback):
    """Curves and events for TensorBoard, in the folder `tensorboard` of the run.

    Args:
        every: Steps from point to point.

    Raises:
        OptionError: `every` is below 1.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = _at_least_1(every)
        self._writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        """Opens the folder; points after `trainer.step` are hidden there.

        Raises:
            ExtraNotInstalled: TensorBoard is not there.
            OptionError: The run has no folder.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ExtraNotInstalled(
                "Curves for TensorBoard need its package: `pip install 'composable-energy[tensorboard]'`; `CSVLog` needs none."
            ) from error
        self._writer = SummaryWriter(str(_folder(trainer, "curves") / "tensorboard"), purge_step=trainer.step + 1)

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        if trainer.step % self.every == 0 or trainer.step == trainer.steps:
            for name, value in {**scalars, "rate": trainer.rate}.items():
                self._writer.add_scalar(name, value, trainer.step)

    def on_event(self, trainer: Trainer, event: Event) -> None:
        self._writer.add_text("event", str(event), event.step)

    def on_checkpoint(self, trainer: Trainer, path: Path | None) -> None:
        self._writer.flush()

    def on_exit(self, trainer: Trainer) -> None:
        if self._writer is not None:
            self._writer.close()


class SampleSheet(Callback):
    """A sheet of pictures, `samples/step-....png` in the run's folder: the objective's own chains where it keeps some, else draws from
    the energy with averaged weights.

    Args:
        every: Steps from sheet to sheet; there is one at the end as well.
        n: How many pictures.
        chains: Whether to show the objective's chains, those of the first process; None shows them where there are some.
        of: What to draw from, as a function of the averaged model, such as `lambda energy: energy.given(y=3)`; None draws from the model.
        value_range: The values that are black and white.
        **options: Those of `Energy.sample`, such as `sampler` and `steps`; what the energy recommends where they are left out.

    Raises:
        OptionError: A number is below 1.
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
        self.every, self.n = _at_least_1(every), _at_least_1(n)
        self.chains, self.of, self.value_range, self.options = chains, of, value_range, options

    def on_start(self, trainer: Trainer) -> None:
        """Checks that there will be something to show.

        Raises:
            OptionError: The run has no folder, its points are no pictures, there are no chains, or the model is no energy.
        """
        _folder(trainer, "sheets")
        kept = self._kept(trainer)
        if self.chains and kept is None:
            raise OptionError(f"{type(trainer.objective).__name__} keeps no chains to show: leave `chains` out.")
        if kept is None:
            energy = self._energy(trainer.averaged)
            shown = energy.decoder is not None or is_picture(tuple(trainer.place.event_shape))
        else:
            shown = is_picture(tuple(kept.shape[1:]))
        if not shown:
            raise OptionError(f"Points of shape {tuple(trainer.place.event_shape)} are no pictures: train without a sheet.")

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        if trainer.step % self.every and trainer.step != trainer.steps:
            return
        kept = self._kept(trainer)
        if kept is None:
            energy = self._energy(trainer.averaged)
            shape = self.n if energy.decoder is not None or energy.event_shape is not None else (self.n, *trainer.place.event_shape)
            kept = energy.sample(shape, **{"seed": trainer.seed, **self.options})
        path = _folder(trainer, "sheets") / "samples" / f"step-{trainer.step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_grid(path, kept[: self.n], self.value_range, {"step": trainer.step})

    def _kept(self, trainer: Trainer) -> Tensor | None:
        """Some of the points that the objective keeps, evenly spread."""
        if self.chains is False:
            return None
        states = trainer.objective.state().values()
        some = next((state for state in states if state.shape[1:] == trainer.place.event_shape and len(state)), None)
        return None if some is None else some[:: max(1, len(some) // self.n)][: self.n]

    def _energy(self, model: nn.Module) -> Energy:
        energy = model if self.of is None else self.of(model)
        if not isinstance(energy, Energy):
            raise OptionError(f"A sheet draws from an energy, got {type(energy).__name__}; give `of`, a function that makes one of it.")
        return energy


def _at_least_1(number: int) -> int:
    if not number >= 1:
        raise OptionError(f"A number of steps or pictures must be 1 or more, got {number!r}.")
    return number


def _folder(trainer: Trainer, what: str) -> Path:
    if trainer.out is None:
        raise OptionError(f"The run has no folder to write {what} to: give the trainer `out`.")
    trainer.out.mkdir(parents=True, exist_ok=True)
    return trainer.out
