"""The checkpoints of a run: the first process writes and reads them, all processes get their content, and the last few are kept."""

import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from composable_energy.errors import FileFormatError, OptionError, StorageError
from composable_energy.files import DamagedFileError, exclusive, read_record, write_record
from composable_energy_training.batches import Fingerprint
from composable_energy_training.description import list_differences
from composable_energy_training.ranks import Ranks

_VERSION = 2
_NAME = re.compile(r"step-(\d{8,})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Args:
        step: The number of steps taken.
        metadata: Plain data: the settings of the run, and the states of its monitor and of the gradient scaler.
        tensors: Tensors by name, such as `model.weight`.
    """

    step: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """Returns the tensors of a part, such as `model`, by their names within it."""
        return {key[len(name) + 1 :]: tensor for key, tensor in self.tensors.items() if key.startswith(f"{name}.")}


class CheckpointStore:
    """Saves and loads the checkpoints of a run, in a folder or memory. All processes call its methods at the same time, except `path`."""

    def __init__(self, folder: Path | None, keep: int, ranks: Ranks) -> None:
        self.folder, self.keep, self.ranks = folder, keep, ranks
        self._last: Checkpoint | None = None
        self._restored: int | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of the folder, so that no other run writes there."""
        with ExitStack() as stack:
            if self.folder is not None:
                folder = self.folder
                self.ranks.call_on_first(lambda: stack.enter_context(exclusive(folder)))
            yield

    def path(self, step: int) -> Path | None:
        """Returns the file of a step; None without a folder."""
        return None if self.folder is None else self.folder / f"step-{step:08d}.safetensors"

    def last_path(self) -> Path | None:
        """Returns the file of the last checkpoint, if there is one."""
        steps = self.ranks.call_on_first(self._steps)
        return self.path(steps[-1]) if steps else None

    def save(
        self, step: int, metadata: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]], shared: Collection[str] = ()
    ) -> Path | None:
        """Saves a checkpoint and removes the oldest ones; returns its file. If writing fails, the last checkpoint stays intact. `parts` are
        tensors by the name of a part and their own name; a checkpoint in memory does not copy the parts in `shared`."""
        kept = () if self.folder is not None else shared
        lost = [f"{part}.{name}" for part, some in parts.items() for name, value in some.items() if not isinstance(value, Tensor)]
        if lost and self.folder is not None:
            raise OptionError(f"A checkpoint holds tensors, and {_joined(lost)} is none: return a tensor for it, or give no folder.")
        tensors = {
            f"{part}.{name}": tensor.detach() if part in kept else tensor.detach().cpu().clone().contiguous()
            for part, some in parts.items()
            for name, tensor in some.items()
            if isinstance(tensor, Tensor) and self.ranks.is_first
        }
        return self.ranks.call_on_first(lambda: self._write(Checkpoint(step, metadata, tensors)))

    def load(self) -> Checkpoint | None:
        """Returns the last intact checkpoint; None if there is none. Damaged ones are removed with a warning."""
        self._restored = None
        return self.ranks.call_on_first(self._read)

    def roll_back(self) -> Checkpoint | None:
        """Returns the last checkpoint; the one before it if the run was rolled back to the last one already."""

        def read() -> Checkpoint | None:
            steps = self._steps()
            if len(steps) > 1 and steps[-1] == self._restored:
                self._remove(steps[-1])
            return self._read()

        checkpoint = self.ranks.call_on_first(read)
        self._restored = None if checkpoint is None else checkpoint.step
        return checkpoint

    def check_run(self, checkpoint: Checkpoint, model: nn.Module, settings: Mapping[str, Any], steps: int) -> None:
        """Raises if a checkpoint belongs to a run with other settings."""
        name = self.path(checkpoint.step) or "The last checkpoint"
        saved, expected = (
            {
                key: f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
                for key, tensor in sorted(some.items())
                if isinstance(tensor, Tensor)
            }
            for some in (checkpoint.part("model"), model.state_dict())
        )
        if wrong := list(list_differences(saved, expected)):
            raise FileFormatError(f"{name} is of another model: {_joined(wrong)}. Train the same model, or give another folder.")
        wrong = list(list_differences({"frozen": settings["frozen"], **checkpoint.metadata["settings"]}, settings))  # older ones lack it
        if checkpoint.step > steps:
            wrong.append(f"{checkpoint.step} steps were taken, {steps} are requested")
        if wrong:
            raise OptionError(
                f"{name} belongs to a run with other settings ({_joined(wrong)}): give another folder, or delete this one to start again."
            )

    def check_data(self, checkpoint: Checkpoint, fingerprint: Callable[[], Fingerprint], advice: str) -> None:
        """Raises if a checkpoint was trained on other data."""

        def check() -> None:
            now = fingerprint()
            try:
                same = now.matches(Fingerprint(**checkpoint.metadata["data"]))
            except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise FileFormatError(f"{self.path(checkpoint.step)} is inconsistent: it has no fingerprint of the data.") from error
            if not same:
                raise OptionError(f"{self.path(checkpoint.step)} was trained on other data: {advice}")

        self.ranks.call_on_first(check)

    @contextmanager
    def restoring(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Raises a typed error where the state in a checkpoint does not fit."""
        try:
            yield
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            place = self.path(checkpoint.step) or "The last checkpoint"
            raise FileFormatError(f"{place} cannot be restored ({type(error).__name__}: {error}): give another folder.") from error

    def _steps(self) -> list[int]:
        if self.folder is None:
            return [] if self._last is None else [self._last.step]
        return sorted(int(match[1]) for path in self.folder.glob("step-*.safetensors") if (match := _NAME.fullmatch(path.name)))

    def _write(self, checkpoint: Checkpoint) -> Path | None:
        if (path := self.path(checkpoint.step)) is None:
            self._last = checkpoint
            return None
        try:
            write_record(path, "training", _VERSION, {"step": checkpoint.step, "metadata": checkpoint.metadata}, checkpoint.tensors)
        except OSError as error:
            steps = self._steps()
            intact = f"the checkpoint of step {steps[-1]} is intact" if steps else "there is no other checkpoint yet"
            reason = os.strerror(error.errno) if error.errno else error
            raise StorageError(
                f"The checkpoint {path} could not be written: {reason}. Free some space or give another folder, and start the same command "
                f"again; {intact}."
            ) from error
        for step in self._steps()[: -self.keep]:
            with suppress(OSError):  # an old one that stays costs space, and is no reason to stop the run
                self._remove(step)
        return path

    def _read(self) -> Checkpoint | None:
        if self.folder is None:
            return self._last
        steps = self._steps()
        for step in reversed(steps):
            path = self.folder / f"step-{step:08d}.safetensors"
            try:
                return _read_checkpoint(path)
            except DamagedFileError as error:
                if step == steps[0]:
                    raise FileFormatError(f"{error.args[0]} No checkpoint is left: delete {self.folder} to start again.") from error
                warnings.warn(f"{error.args[0]} Resuming from the checkpoint before it.", stacklevel=2)
                path.unlink(missing_ok=True)
        return None

    def _remove(self, step: int) -> None:
        if path := self.path(step):
            path.unlink(missing_ok=True)


def _read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint and checks its digest and its header."""
    header, tensors = read_record(path, "training", _VERSION)
    step, metadata = header.get("step"), header.get("metadata")
    if type(step) is not int or step < 0 or not isinstance(metadata, dict):
        raise DamagedFileError(f"{path} has no number of steps or no settings.")
    if path.name != f"step-{step:08d}.safetensors":
        raise FileFormatError(f"{path} holds step {step}, so it was renamed: give it the name of its step, or move it to another folder.")
    settings = metadata.get("settings")
    if not isinstance(settings, dict) or "precision" not in settings:
        raise FileFormatError(f"{path} is inconsistent: it has no settings. Give another folder, or delete this one.")
    return Checkpoint(step, metadata, tensors)


def _joined(differences: list[str]) -> str:
    """Returns the first differences as one text."""
    return "; ".join(differences[:6]) + (f" and {len(differences) - 6} more" if len(differences) > 6 else "")
