"""Settings of a call: what it says, what a trace says that it goes on from, and what both come to."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy.files import digest_of
from composable_energy.noise import Kind
from composable_energy.sampling.asking import Asked, count, flag
from composable_energy.sampling.ranks import Ranks
from composable_energy.sampling.sampler import Sampler
from composable_energy.sampling.trace import Trace
from composable_energy.sampling.values import Evaluator, Values

__all__ = [
    "check_call",
    "check_resume",
    "check_same_energy",
    "last_points",
    "length",
    "noise_kind",
    "resumed_from",
    "seed_of",
    "start_points",
]


def check_call(callback: object, checkpoint: object, checkpoint_every: object, **flags: object) -> None:
    """Raises if arguments of a call have the wrong types."""
    for name, value in flags.items():
        flag(name, value)
    if callback is not None and not callable(callback):
        raise OptionError(f"callback must be a function of a step, a state and an info, got {callback!r}.")
    if checkpoint is not None and not isinstance(checkpoint, str | Path):
        raise OptionError(f"checkpoint must be the path of a file, got {checkpoint!r}.")
    number = isinstance(checkpoint_every, Real) and not isinstance(checkpoint_every, bool)
    if not number or not checkpoint_every >= 0:  # pyright: ignore[reportOperatorIssue]
        raise OptionError(f"checkpoint_every must be a number of seconds, at least 0, got {checkpoint_every!r}.")


def seed_of(seed: Any) -> int | None:
    """Returns a seed as 64 bits, negative ones as torch takes them; None stays."""
    if seed is None:
        return None
    number = count("seed", seed, least=-(2**63))
    if number >= 2**64:
        raise OptionError(f"seed must be below 2^64, got {number}: another seed would draw the same.")
    return number % 2**64


def start_points(init: Tensor | None, asked: Asked) -> Tensor | None:
    """Returns a copy of the points to start at."""
    if init is None:
        return None
    if init.shape != (asked.n, *asked.event):
        raise ShapeError(f"init must have the shape {(asked.n, *asked.event)} of the points, got {tuple(init.shape)}.")
    return init.detach().clone()


def last_points(resume: Trace) -> Tensor:
    """Returns points of the chains of a trace, wherever they are."""
    return resume.states[0][2].x if resume.states else resume.stopped[0].state.x


def length(sampler: Sampler, steps: int | None, done: int) -> int:
    """Returns how many steps to take.

    Args:
        sampler: The sampler.
        steps: How many are asked for.
        done: How many were taken before.

    Raises:
        OptionError: The sampler takes fewer.
    """
    total = sampler.total_steps
    if total is None:
        return sampler.default_steps if steps is None else steps
    if steps is None:
        steps = max(1, total - done)
    if done + steps > total:
        before = f"{done} are done, and " if done else ""
        raise OptionError(f"{sampler} takes {total} steps: {before}{steps} were asked for.")
    return steps


def noise_kind(kind: Any, device: torch.device) -> Kind:
    """Returns the kind of noise for a device; raises if there is none such."""
    if kind not in (None, "blocks", "philox"):
        raise OptionError(f"noise is 'blocks' or 'philox', got {kind!r}.")
    if device.type == "cpu":
        return kind or "blocks"
    if kind == "blocks":
        raise OptionError(f"noise='blocks' is drawn on the CPU, the points are on {device}: there it is 'philox'.")
    return "philox"


def check_resume(resume: Trace, given: dict[str, Any], best_of: int, first_chain: int, shape: int | Sequence[int]) -> None:
    """Raises if what a call says is not what the trace says that it goes on from."""
    if not isinstance(resume, Trace):
        raise OptionError(f"resume takes the Trace that `sample(..., trace=True)` returned, got {type(resume).__name__}.")
    wrong = [name for name, value in given.items() if value is not None and value != getattr(resume, name, None)]
    wrong += ["best_of"] * (best_of not in (1, resume.best_of)) + ["first_chain"] * (first_chain not in (0, resume.first_chain))
    wrong += ["shape"] * (tuple(shape) != resume.shape if isinstance(shape, Sequence) else shape != resume.shape[0])
    if wrong:
        raise OptionError(f"A resumed call goes on as it began, {resume}: leave out {', '.join(wrong)}.")


def resumed_from(resume: Trace | None, group: Ranks | None) -> str | None:
    """Returns where a trace stopped, as text: after how many steps, and a digest of the points."""
    if resume is None:
        return None
    points = {str(i): state.x for i, (_, _, state) in enumerate(resume.states)}
    text = f"{resume.steps} steps, {digest_of(points)}"
    return text if group is None else group.first(text)


def check_same_energy(evaluator: Evaluator, reference: Sequence[Values], group: Ranks | None, checkpoint: str | Path | None = None) -> None:
    """Raises if an energy has other values than before.

    Args:
        evaluator: Evaluates the energy.
        reference: What it said before.
        group: The processes that share the comparison.
        checkpoint: The file that it is from; None for a trace.

    Raises:
        OptionError: The energy is another one, or its weights have changed: a step would mix both.
    """
    own = range(evaluator.n) if group is None else group.own(evaluator.n)
    chains = range(own.start * evaluator.copies, own.stop * evaluator.copies)
    found = [evaluator.difference(values.of(chains)) for values in reference]
    found = found if group is None else [text for texts in group.objects(found) for text in texts]
    problem = next(filter(None, found), None)
    if problem is not None and checkpoint is None:
        raise OptionError(
            f"The trace is of another energy than {evaluator.energy}: {problem}. To start this energy at the points of the trace give them "
            "as `init`."
        )
    if problem is not None:
        raise OptionError(
            f"{checkpoint} belongs to a call of another energy than {evaluator.energy}: {problem}. Give another path, or delete it to "
            "begin anew."
        )
