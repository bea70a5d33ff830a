"""What a run writes to go on from, and whether it may."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from composable_energy.errors import OptionError
from composable_energy_training.checkpoint import Checkpoints, Saved, check_fits
from composable_energy_training.describing import differences
from composable_energy_training.fingerprints import Fingerprint
from composable_energy_training.ranks import Ranks

__all__ = ["Keeping", "copy_"]


class Keeping:
    """The checkpoints of a run as all its processes see them: the first one writes and reads, and hands out.

    Args:
        checkpoints: Where they are.
        ranks: The processes.
    """

    def __init__(self, checkpoints: Checkpoints, ranks: Ranks) -> None:
        self.checkpoints, self.ranks = checkpoints, ranks
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
        return self.ranks.agreed(lambda: self.checkpoints.write(Saved(step, told, tensors)))

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

    def check(self, saved: Saved, model: nn.Module, settings: Mapping[str, Any], steps: int) -> None:
        """Raises if a checkpoint belongs to another call.

        Args:
            saved: The checkpoint.
            model: What is trained now.
            settings: What must be the same for a run to go on, as JSON gives it back.
            steps: How many steps are asked for.

        Raises:
            FileFormatError: Its model has other tensors.
            OptionError: Its settings are others; the message names the old and the new values.
        """
        place = self.checkpoints.path(saved.step) or "The last checkpoint"
        check_fits(saved.under("model"), model.state_dict(), str(place))
        wrong = list(differences(saved.told["settings"], settings))
        if saved.step > steps:
            wrong.append(f"{saved.step} steps were made, {steps} are asked for")
        if wrong:
            more = f" and {len(wrong) - 6} more" if len(wrong) > 6 else ""
            raise OptionError(
                f"{place} belongs to another call ({'; '.join(wrong[:6])}{more}): give another folder, or delete it to begin anew."
            )

    def check_data(self, saved: Saved, fingerprint: Callable[[], Fingerprint], advice: str) -> None:
        """Raises if the data are others than those that a checkpoint was trained on.

        Args:
            saved: The checkpoint.
            fingerprint: Returns that of the data up to the step of the checkpoint; called in the first process only.
            advice: How to go on, for the error.

        Raises:
            OptionError: They are.
        """

        def check() -> None:
            if not fingerprint().alike(Fingerprint(**saved.told["data"])):
                raise OptionError(f"{self.checkpoints.path(saved.step)} was trained on other data: {advice}")

        self.ranks.agreed(check)


def copy_(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Puts saved tensors into a model in place, so that whoever holds the model's own sees the new ones."""
    for name, own in model.state_dict().items():
        if isinstance(own, Tensor):
            own.copy_(tensors[name])
