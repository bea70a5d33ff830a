"""Checkpoints of a running call: one safetensors file, replaced all or nothing, that the same call goes on from.

Nothing in it is code. Tensors stand by name; all else is JSON in the file's metadata, with a digest of both.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import ExpressionError, FileFormatError, OptionError
from composable_energy.files import digest_of
from composable_energy.sampling.sampler import Sampler, State
from composable_energy.sampling.trace import Stopped, Trace
from composable_energy.sampling.values import Values

__all__ = ["Checkpoint", "Saved", "described"]

_FORMAT = 2
_KEY = "composable_energy_checkpoint"
_ROWS = ("diverged_at", "restarts")  # one number for each chain
_STEPS = ("energies", "acceptance", "points")  # one row for each step, where they are recorded
_NUMBERS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: the call that it belongs to, how far it came, and its tensors by name."""

    call: Mapping[str, Any]
    told: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def trace(self, blank: Trace, like: State) -> Trace:
        """Returns the trace of the interrupted run.

        Args:
            blank: What is known of the call from the beginning.
            like: Any state of the sampler.
        """
        tensors = {name: value if name in _ROWS else value.to(like.x.device) for name, value in self.tensors.items()}
        states = [
            (tuple(tensors[f"states.{i}.ids"].tolist()), attempt, self._state(f"states.{i}", like, numbers, tensors))
            for i, (attempt, numbers) in enumerate(self.told["states"])
        ]
        stopped = [
            Stopped(tuple(tensors[f"stopped.{i}.ids"].tolist()), self._state(f"stopped.{i}", like, numbers, tensors))
            for i, numbers in enumerate(self.told["stopped"])
        ]
        found: dict[str, Any] = {name: tensors[name] for name in (*_ROWS, *_STEPS) if name in tensors}
        told = {name: self.told[name] for name in ("steps", "batch_size", "scalars", "point_steps")}
        found |= {"states": states, "stopped": stopped, "reference": self.reference(like.x.device)}
        return replace(blank, chains=range(len(found["restarts"])), **found, **told)

    def reference(self, device: torch.device) -> tuple[Values, ...]:
        """Returns energies and gradients at points of the chains, by which the energy is recognised."""
        names = [field.name for field in fields(Values)]
        parts = [[self.tensors[f"reference.{i}.{name}"] for name in names] for i in range(self.told["reference"])]
        return tuple(Values(*part).to(device) for part in parts)

    def _state(self, place: str, like: State, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> State:
        names = [field.name for field in fields(like)]
        missing = [name for name in names if name not in numbers and f"{place}.{name}" not in tensors]
        if missing:
            raise FileFormatError(f"The checkpoint lacks {', '.join(missing)} of the state: another version of the sampler wrote it.")
        return replace(like, **{name: numbers[name] if name in numbers else tensors[f"{place}.{name}"] for name in names})


class Checkpoint:
    """A file that is written every so often.

    Args:
        path: Of the file; its folder is made.
        seconds: How long to wait between two writings; 0 writes after each step.
        call: What must agree for a call to be the same, as plain data.
    """

    def __init__(self, path: str | Path, seconds: float, call: Mapping[str, Any]) -> None:
        self.path = Path(path).expanduser()
        self.seconds = seconds
        self.call = dict(call)
        self.next = time.monotonic() + seconds

    @property
    def due(self) -> bool:
        return time.monotonic() >= self.next

    def write(self, trace: Trace, began: float) -> None:
        """Replaces the file; whatever happens meanwhile, either the old or the new one is there, whole.

        Args:
            trace: What to write.
            began: When the work on it began, by the clock of `time.monotonic`.

        Raises:
            ExpressionError: The sampler's state holds what a file cannot.
        """
        import safetensors.torch

        tensors: dict[str, Tensor] = {name: getattr(trace, name) for name in (*_ROWS, *_STEPS) if getattr(trace, name) is not None}
        states, stopped = [], []
        for i, (ids, attempt, state) in enumerate(trace.states):
            states.append((attempt, _put(tensors, f"states.{i}", ids, state)))
        for i, some in enumerate(trace.stopped):
            stopped.append(_put(tensors, f"stopped.{i}", some.chains, some.state))
        for i, values in enumerate(trace.reference):
            tensors |= {f"reference.{i}.{field.name}": getattr(values, field.name) for field in fields(values)}
        told = {
            "format": _FORMAT,
            "call": self.call,
            "steps": trace.steps,
            "batch_size": trace.batch_size,
            "scalars": trace.scalars,
            "point_steps": trace.point_steps,
            "states": states,
            "stopped": stopped,
            "reference": len(trace.reference),
        }
        plain = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        told = json.loads(json.dumps(told))  # as it will be read
        data = safetensors.torch.save(plain, {_KEY: json.dumps({**told, "digest": digest_of(plain, told)})})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(f".{self.path.name}.new")
        try:
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        finally:
            fresh.unlink(missing_ok=True)
        now = time.monotonic()
        self.next = now + max(self.seconds, 20 * (now - began) if self.seconds else 0)  # at most a twentieth of the time goes here

    def read(self) -> Saved | None:
        """Returns what the file holds; None if there is no file.

        Raises:
            FileFormatError: The file is damaged, or none of ours.
            OptionError: It belongs to another call.
        """
        if not self.path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                told = json.loads(file.metadata()[_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a file is no mapping)
            number, there, digest = told["format"], told["call"], told.pop("digest", None)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{self.path} is no checkpoint, or damaged ({error}): give another path, or delete it.") from None
        if number != _FORMAT:
            raise FileFormatError(
                f"{self.path} has format {number}, this version of composable-energy reads format {_FORMAT}: finish the run with the "
                "version that began it, or give another path, or delete it to begin anew."
            )
        if digest != digest_of(tensors, told):
            raise FileFormatError(f"{self.path} is damaged (its digest is another): give another path, or delete it to begin anew.")
        here = json.loads(json.dumps(self.call))
        here = {**here, "seed": there["seed"]} if here["seed"] is None else here
        wrong = [f"{name} was {there.get(name)!r}, is {value!r}" for name, value in here.items() if there.get(name) != value]
        if wrong:
            raise OptionError(f"{self.path} belongs to another call ({'; '.join(wrong)}): give another path, or delete it to begin anew.")
        return Saved(there, told, tensors)


def described(sampler: Sampler) -> str:
    """Returns a sampler as text that is the same in another process."""
    return _described(sampler)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor {digest_of({'': value})}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_described, value))})"
    if is_dataclass(value):
        own = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, Sampler) or type(value).__repr__ is object.__repr__:
        own = {name: item for name, item in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    else:
        return repr(value)
    return f"{type(value).__qualname__}({', '.join(f'{name}={_described(item)}' for name, item in own.items())})"


def _put(tensors: dict[str, Tensor], place: str, ids: Any, state: State) -> dict[str, Any]:
    """Adds the tensors of a state, and returns the rest of it."""
    tensors[f"{place}.ids"] = torch.tensor(list(ids), dtype=torch.int64)
    numbers: dict[str, Any] = {}
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            tensors[f"{place}.{field.name}"] = value
        elif isinstance(value, _NUMBERS):
            numbers[field.name] = value
        else:
            raise ExpressionError(
                f"{type(state).__name__}.{field.name} is a {type(value).__name__}: a checkpoint holds tensors, numbers and text; "
                "make it one of these, or sample without `checkpoint`."
            )
    return numbers
