"""What a run writes to go on from, and whether it may."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from composable_energy.errors import OptionError
from composable_energy.training.checkpoint import Checkpoints, Saved, check_fits
from composable_energy.training.ranks import Ranks

__all__ = ["Keeping", "copy_"]


class Keeping:
    """The checkpoints of a run as all its processes see them: the first one writes and reads, and hands out.

    Args:
        checkpoints: Where they are.
        ranks: The processes.
        call: What must be the same for a run to go on, as JSON gives it back.
    """

    def __init__(self, checkpoints: Checkpoints, ranks: Ranks, call: Mapping[str, Any]) -> None:
        self.checkpoints, self.ranks, self.call = checkpoints, ranks, call
        self._came_from: int | None = None

    def write(self, step: int, told: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> Path | None:
        """Writes a checkpoint and returns its file.

        Args:
            step: The steps that were made.
            told: Plain data.
            parts: Tensors by the name of a part and their own; what is no tensor is left out.

        Raises:
            StorageError: It could not be written.
        """
        tensors = {f"{part}.{name}": tensor for part, some in parts.items() for name, tensor in some.items() if isinstance(tensor, Tensor)}
        saved = Saved(step, {"call": self.call, **told}, tensors)
        return self.ranks.agreed(lambda: self.checkpoints.write(saved))

    def read(self) -> Saved | None:
        """Returns the last checkpoint; None if there is none.

        Raises:
            FileFormatError: All are damaged, or the last is of another format.
        """
        box: list[Saved | None] = [None]

        def read() -> tuple[int, Mapping[str, Any]] | None:
            box[0] = self.checkpoints.read()
            return None if box[0] is None else (box[0].step, box[0].told)

        found = self.ranks.agreed(read)
        if found is None:
            return None
        return Saved(*found, self.ranks.handed_out({} if box[0] is None else box[0].tensors))

    def back(self) -> Saved | None:
        """Returns the last checkpoint to go back to; the one before it if none was written since the last time."""

        def choose() -> None:
            steps = self.checkpoints.steps()
            if len(steps) > 1 and steps[-1] == self._came_from:
                self.checkpoints.drop(steps[-1])

        self.ranks.agreed(choose)
        saved = self.read()
        self._came_from = None if saved is None else saved.step
        return saved

    def last(self) -> Path | None:
        """Returns the file of the last checkpoint, if there is one."""
        steps = self.ranks.agreed(self.checkpoints.steps)
        return self.checkpoints.path(steps[-1]) if steps else None

    def check(self, saved: Saved, model: nn.Module, steps: int) -> None:
        """Raises if a checkpoint belongs to another call.

        Args:
            saved: The checkpoint.
            model: What is trained now.
            steps: How many steps are asked for.

        Raises:
            FileFormatError: Its model has other tensors.
            OptionError: Its settings are others.
        """
        place = self.checkpoints.path(saved.step)
        check_fits(saved.under("model"), model.state_dict(), str(place))
        there = saved.told["call"]
        wrong = [f"{name} was {there.get(name)!r}, is {value!r}" for name, value in self.call.items() if there.get(name) != value]
        if saved.step > steps:
            wrong.append(f"{saved.step} steps were made, {steps} are asked for")
        if wrong:
            raise OptionError(f"{place} belongs to another call ({'; '.join(wrong)}): give another folder, or delete it to begin anew.")


def copy_(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Puts saved tensors into a model in place, so that whoever holds the model's own sees the new ones."""
    for name, own in model.state_dict().items():
        if isinstance(own, Tensor):
            own.copy_(tensors[name])
