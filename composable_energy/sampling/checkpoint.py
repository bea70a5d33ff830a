"""Checkpoints of a running call: one safetensors file, replaced atomically, from which the same call continues.

Nothing in the file is code. Tensors have names; all else is JSON in the file's metadata, with a digest of both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import ExpressionError, FileFormatError, OptionError
from composable_energy.files import digest_of, exclusive, exists, read_record, write_record
from composable_energy.sampling.consistency import inconsistency
from composable_energy.sampling.sampler import Sampler, State
from composable_energy.sampling.trace import Trace
from composable_energy.sampling.values import Values

_VERSION = 4
_TENSORS = ("diverged_at", "energies", "acceptance", "points")
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint.

    Args:
        call: The arguments of the call, as plain data.
        record: The progress of the call, as plain data.
        tensors: The tensors by name.
    """

    call: Mapping[str, Any]
    record: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def trace(self, blank: Trace, like: State) -> Trace:
        """Returns the trace of the interrupted run.

        Args:
            blank: A trace of the call without steps.
            like: Any state of the sampler.
        """
        tensors = {name: value if name == "diverged_at" else value.to(like.x.device) for name, value in self.tensors.items()}

        def state(plain: Mapping[str, Any]) -> State:
            names = [field.name for field in fields(like)]
            missing = [name for name in names if name not in plain and f"state.{name}" not in tensors]
            if missing:
                raise FileFormatError(
                    f"The checkpoint lacks {', '.join(missing)} of the state: another version of the sampler wrote it, or it was edited; "
                    "give another path, or delete it to begin anew."
                )
            return replace(like, **{name: plain[name] if name in plain else tensors[f"state.{name}"] for name in names})

        trace = blank
        try:
            found: dict[str, Any] = {name: tensors[name] for name in _TENSORS if name in tensors}
            found |= {name: self.record[name] for name in ("steps", "scalars", "point_steps")}
            trace = replace(
                blank,
                chains=range(len(found["diverged_at"])),
                state=state(self.record["state"]),
                reference=self.reference(like.x.device),
                **found,
            )
            problem = inconsistency(trace, like)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, FileFormatError):
                raise
            problem = f"{type(error).__name__}: {error}"
        if problem:
            raise FileFormatError(f"The checkpoint is inconsistent ({problem}): give another path, or delete it to begin anew.")
        return trace

    def reference(self, device: torch.device) -> tuple[Values, ...]:
        """Returns energies and gradients at points of the chains, which identify the energy.

        Raises:
            FileFormatError: They are missing, or their shapes do not fit.
        """
        names = [field.name for field in fields(Values)]
        try:
            parts = [[self.tensors[f"reference.{i}.{name}"] for name in names] for i in range(self.record["reference"])]
        except (KeyError, TypeError) as error:
            raise FileFormatError(f"The checkpoint lacks values of the energy ({error}): give another path, or delete it.") from error
        values = tuple(Values(*part).to(device) for part in parts)
        if not values or not all(value.is_consistent() for value in values):
            raise FileFormatError(
                "The values of the energy in the checkpoint are missing, or their shapes do not fit: give another path, or delete it."
            )
        return values


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint file of one call.

    Args:
        path: The path of the file; its folder is created.
        call: The arguments of the call, as plain data: a file of other arguments is refused.
    """

    path: Path
    call: Mapping[str, Any]

    def write(self, trace: Trace) -> None:
        """Replaces the file atomically: after a crash either the old or the new one is there, whole.

        Raises:
            ExpressionError: The sampler's state holds an object that a file cannot.
        """
        tensors: dict[str, Tensor] = {name: getattr(trace, name) for name in _TENSORS if getattr(trace, name) is not None}
        for i, values in enumerate(trace.reference):
            tensors |= {f"reference.{i}.{field.name}": getattr(values, field.name) for field in fields(values)}
        record = {
            "call": self.call,
            "steps": trace.steps,
            "scalars": trace.scalars,
            "point_steps": trace.point_steps,
            "state": {} if trace.state is None else _add_state(tensors, trace.state),
            "reference": len(trace.reference),
        }
        write_record(self.path, "checkpoint", _VERSION, record, tensors)

    def read(self) -> Saved | None:
        """Returns the content of the file; None if there is no file.

        Raises:
            FileFormatError: The file is damaged, or no checkpoint.
            OptionError: It belongs to another call.
        """
        if not exists(self.path):
            return None
        try:
            record, tensors = read_record(self.path, "checkpoint", _VERSION)
            there = dict(record["call"])
        except (FileFormatError, KeyError, TypeError, ValueError) as error:
            reason = error.args[0] if isinstance(error, FileFormatError) else f"{self.path} has no call."
            raise FileFormatError(f"{reason} To begin anew, give another path, or delete the checkpoint.") from None
        here = json.loads(json.dumps(self.call))
        seed = there.get("seed")
        if type(seed) is not int or not 0 <= seed < 2**64:
            raise FileFormatError(f"{self.path} is inconsistent (its seed is {seed!r}): give another path, or delete it to begin anew.")
        here = {**here, "seed": seed} if here["seed"] is None else here
        wrong = [f"{name} was {there.get(name)!r}, is {value!r}" for name, value in here.items() if there.get(name) != value]
        if wrong:
            raise OptionError(f"{self.path} belongs to another call ({'; '.join(wrong)}): give another path, or delete it to begin anew.")
        return Saved(there, record, tensors)

    def locked(self) -> AbstractContextManager[None]:
        """Returns a context that holds the lock of the file.

        Raises:
            InUseError: Another call, here or in another process, writes the file.
            StorageError: The lock cannot be created.
        """
        return exclusive(self.path)


def describe(value: Any) -> str:
    """Returns a sampler, or an option of one, as text that is the same in another process."""
    if isinstance(value, Tensor):
        return f"tensor {digest_of({'': value})}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(describe, value))})"
    if is_dataclass(value):
        own = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, Sampler) or type(value).__repr__ is object.__repr__:
        own = {name: item for name, item in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    else:
        return repr(value)
    return f"{type(value).__qualname__}({', '.join(f'{name}={describe(item)}' for name, item in own.items())})"


def _add_state(tensors: dict[str, Tensor], state: State) -> dict[str, Any]:
    """Adds the tensors of a state, and returns its plain fields."""
    plain: dict[str, Any] = {}
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            tensors[f"state.{field.name}"] = value
        elif isinstance(value, _PLAIN):
            plain[field.name] = value
        else:
            raise ExpressionError(
                f"{type(state).__name__}.{field.name} is a {type(value).__name__}: a checkpoint holds tensors, numbers and text; "
                "make it one of these, or sample without a `Checkpoint`."
            )
    return plain
