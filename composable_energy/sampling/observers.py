"""Observers of the library: what stops a call, shows its progress, records its trace, and keeps it in a file."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from copy import copy
from dataclasses import fields, is_dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from tqdm import tqdm

from composable_energy.errors import ExpressionError, FileFormatError, OptionError
from composable_energy.files import digest_of, exclusive, exists, expanded, read_record, write_record
from composable_energy.sampling.chains import Chains, Observer, compare_pieces, to_floats
from composable_energy.sampling.checks import check_same_energy
from composable_energy.sampling.pilots import start_chains
from composable_energy.sampling.problem import Problem
from composable_energy.sampling.sampler import Info, Sampler, State
from composable_energy.sampling.trace import Trace, Values

D = TypeVar("D", State, Info)
_FORMATS = {
    "tuning": "{desc}: {n_fmt} evaluations in {elapsed}",
    "sampling": "{desc} {bar:30} {n_fmt}/{total_fmt} steps, {rate_noinv_fmt}, eta {remaining}{postfix}",
}
_VERSION = 4
_TENSORS = ("diverged_at", "energies", "acceptance", "points")
_VALUES = tuple(field.name for field in fields(Values))
_PLAIN = (bool, int, float, str, type(None))
_MOST_STEPS = 2**32
_SEEN, _UNWATCHED = 32, 0.5  # times that chains are looked at for R-hat, half of them since the steps last doubled; seconds without it
_START_CHAINS = 64  # chains whose values at the start are kept
_MAX_SHARE = 1 / 20  # of the time, spent on writing
_ANEW = "give another path, or delete it to begin anew"


class Stop(Observer):
    """Calls a function after each step, which stops the sampling by True or by a tensor of True alone, such as `state.energy < 3`.

    Args:
        function: A function of the step number, counted from 1, the state of the active chains, and the sampler's info. Points and energies
            are those of the support, gradients those of its unconstrained coordinates. They are copies.

    Raises:
        OptionError: It is no function.
    """

    def __init__(self, function: Callable[[int, State, Info], object]) -> None:
        if not callable(function):
            raise OptionError(f"Stop takes a function of a step, a state and an info, got {function!r}.")
        self.function = function

    def on_step(self, chains: Chains, info: Info) -> bool:
        if not chains.active:
            return True
        info = replace(info, scalars=dict(zip(info.scalars, to_floats(list(info.scalars.values())), strict=True)))
        if chains.active < chains.count:
            info = replace(info, chains=chains.rows.tolist())
        answer: Any = self.function(chains.step, _copied(chains.visible_state()), _copied(info))
        return answer is True or (getattr(answer, "dtype", None) in (torch.bool, bool) and bool(answer.all()))


def _copied(value: D) -> D:
    """Returns a state or an info with tensors of its own, so that a function which writes into them changes no chain."""
    own = {field.name: getattr(value, field.name) for field in fields(value)}
    return replace(value, **{name: item.clone() for name, item in own.items() if isinstance(item, Tensor)})


class Progress(Observer):
    """Shows progress bars on stderr, or calls a function.

    After half a second, where steps double, a bar of chains with a stationary density shows R-hat, and how many independent draws the later
    half of the steps is worth: the worst figures of the energy and of up to 16 coordinates or sums of them.

    Args:
        report: A function of what runs, `"tuning"` or `"sampling"`, of how many evaluations or steps are done, and of their number, None
            while that is not known; None shows bars.

    Raises:
        OptionError: It is no function.
    """

    def __init__(self, report: Callable[[str, int, int | None], object] | None = None) -> None:
        if not (report is None or callable(report)):
            raise OptionError(f"Progress takes a function of what runs, what is done and the total, or nothing for bars, got {report!r}.")
        self.report, self.shown = report, ""
        self.bar: tqdm[Any] | None = None

    def on_tuning(self, sampler: Sampler, evaluations: int) -> None:
        self._show("tuning", sampler, evaluations, None)

    def on_start(self, chains: Chains) -> None:
        self.seen, self.steps, self.every, self.began = list[Tensor](), 0, 4, time.monotonic()  # numbers of chains, at every so many steps
        self._show("sampling", chains.sampler, chains.step, chains.last_step)

    def on_step(self, chains: Chains, info: Info) -> None:
        self._show("sampling", chains.sampler, chains.step, chains.last_step)
        self.steps += 1
        if self.bar is None or self.bar.disable or self.steps % self.every or chains.active < chains.count:
            return
        if not chains.sampler.stationary or chains.problem.own_conditions or chains.problem.drawn is not None:
            return  # chains have no density, one each, or need not leave the branches that they started in
        self.seen.append(chains.numbers())
        if len(self.seen) == _SEEN:
            if time.monotonic() > self.began + _UNWATCHED:
                later = torch.stack(self.seen[_SEEN // 2 :]).cpu().double()
                _, r_hat, _, draws = compare_pieces(later.unflatten(0, (2 if chains.count > 1 else 8, -1)), None)
                worth = min(draws.min().item(), chains.count * self.steps // 2)
                self.bar.set_postfix_str(f"R-hat {r_hat.max():.2f}, {worth:,.0f} effective draws", refresh=False)
            self.seen, self.every = self.seen[1::2], 2 * self.every

    def on_end(self, chains: Chains, error: BaseException | None) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def _show(self, what: str, sampler: Sampler, done: int, total: int | None) -> None:
        if self.report is not None:
            self.report(what, done, total)
            return
        if self.bar is None or what != self.shown:
            if self.bar is not None:
                self.bar.close()
            name = f"{what} {type(sampler).__name__.lower()}"
            self.shown, about = what, cast(Any, {"desc": name, "bar_format": _FORMATS[what], "unit": " steps"})
            self.bar = tqdm(total=total, initial=done, file=sys.stderr, disable=sys.stderr is None, **about)  # None if it was closed
        self.bar.total = total
        self.bar.update(done - self.bar.n)


class TraceRecorder(Observer):
    """Records each step, and returns the trace: that before, of an interrupted run of the call, or a blank one, with these steps."""

    def __init__(self, blank: Trace, trace: bool | int, before: Trace | None) -> None:
        self.blank, self.records, self.before = blank, bool(trace), before or blank
        self.every = None if isinstance(trace, bool) else trace
        self.energies, self.acceptance, self.points = list[Tensor](), list[Tensor](), list[Tensor]()
        self.point_steps, self.scalars = list[int](), dict[str, list[Any]]()

    def on_step(self, chains: Chains, info: Info) -> None:
        if not self.records:
            return
        self.energies.append(chains.visible_state(chains.state).energy)
        if info.acceptance is not None:
            self.acceptance.append(info.acceptance)
        for name, value in info.scalars.items():
            self.scalars.setdefault(name, []).append(value)
        if self.every is not None and (after := chains.step - self.blank.burn_in) > 0 and after % self.every == 0:
            self.points.append(chains.state.x)  # as in a checkpoint; `sample` shows the points of the support
            self.point_steps.append(chains.step)

    def trace(self, chains: Chains) -> Trace:
        """Returns the trace up to the current step of the chains; the record of a later step, which was broken off, is left out."""
        found = replace(self.blank, steps=chains.step, state=chains.state, diverged_at=chains.diverged_at, relocated=chains.relocated)
        if not self.records:
            return found
        before, done = self.before, chains.step - self.before.steps
        kept = [step for step in self.point_steps if step <= chains.step]
        for name, count in (("energies", done), ("acceptance", done), ("points", len(kept))):
            earlier, steps = getattr(before, name), getattr(self, name)[:count]
            if steps:
                stacked = torch.stack(steps)
                earlier = stacked if earlier is None or not len(earlier) else torch.cat([earlier, stacked])
            setattr(found, name, earlier)
        found.point_steps, found.scalars = before.point_steps + kept, dict(before.scalars)
        for name, values in self.scalars.items():
            found.scalars[name] = [*before.scalars.get(name, []), *to_floats(values[:done])]
        return found


class Checkpoint(Observer):
    """Keeps the state of all chains in a file. If the file exists, the call continues from it, with the bits of an uninterrupted call.

    The file stays at the end; a call with more `steps`, or without the observer that stopped it, continues. It also holds energies and
    gradients at points of the chains: the energy is evaluated there again, and another energy is refused.

    Args:
        path: The path of the file.
        every: The least time between two writings, in seconds; 0 writes after each step.

    Raises:
        OptionError: An argument has another type, or the time is negative.
    """

    def __init__(self, path: str | Path, every: float = 10.0) -> None:
        if not isinstance(path, str | Path):
            raise OptionError(f"Checkpoint takes the path of a file, got {path!r}.")
        if not isinstance(every, Real) or isinstance(every, bool) or not every >= 0:  # pyright: ignore[reportOperatorIssue]
            raise OptionError(f"Checkpoint takes a number of seconds, at least 0, as `every`, got {every!r}.")
        self.path, self.every = path, every


class CheckpointFile(Observer):
    """The file of a call: read and locked at its start, and written every so often, at the end, and when the loop is broken off.

    Its `problem` has the seed of the file where the call gives none; its `recorder` of the steps is set before the loop. A file that is
    damaged, in use, or of another call or energy is refused.
    """

    recorder: TraceRecorder

    def __init__(self, checkpoint: Checkpoint, problem: Problem, held: ExitStack) -> None:
        self.path, self.every = expanded(checkpoint.path), checkpoint.every
        held.enter_context(exclusive(self.path))
        # The arguments of the call as plain data: a file of other arguments is refused.
        call, resume = problem.call, problem.call.resume
        resumed = None if resume is None or resume.state is None else digest_of({"state": resume.state.x})
        described = {
            "sampler": _describe(problem.sampler),
            "seed": call.seed,
            "shape": problem.points.shape,
            "noise": problem.noise.kind,
            "trace": call.trace,
            "burn_in": call.burn_in,
            "first_chain": problem.noise.chains[0],
            "dtype": str(problem.points.dtype),
            "event": problem.points.event,
            "variables": list(problem.whole.variables.items()) or None,
            "init": None if problem.init is None else digest_of({"init": problem.init}),
            "resumed": None if resume is None else f"{resume.steps} steps, {resumed}",
        }
        self.call, self.record, self.tensors = json.loads(json.dumps(described)), dict[str, Any](), dict[str, Tensor]()
        self.reference: list[Values] = []
        if exists(self.path):
            self._read(problem.points.device)
        seed = self.call["seed"] = problem.noise.seed if self.call["seed"] is None else self.call["seed"]
        self.problem = replace(problem, noise=replace(problem.noise, seed=seed))
        self.due, self.written = time.monotonic() + self.every, 0
        check_same_energy(problem, self.reference, f"{self.path} belongs to a call", f"{_ANEW.capitalize()}.")

    def _read(self, device: torch.device) -> None:
        """Reads the record, its call and the values that identify its energy."""
        try:
            self.record, self.tensors = read_record(self.path, "checkpoint", _VERSION)
            there = dict(self.record["call"])
            for i in range(self.record["reference"]):
                self.reference.append(Values(*(self.tensors[f"reference.{i}.{name}"].to(device) for name in _VALUES)))
            if type(there["seed"]) is not int or not 0 <= there["seed"] < 2**64:
                raise ValueError(f"its seed is {there['seed']!r}")
            if not self.reference or not all(values.is_consistent() for values in self.reference):
                raise ValueError("it has no values of the energy, or of other shapes")
        except FileFormatError as error:
            raise FileFormatError(f"{error} To begin anew, give another path, or delete it.") from None
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{self.path} is inconsistent ({type(error).__name__}: {error}): {_ANEW}.") from None
        self.call["seed"] = there["seed"] if self.call["seed"] is None else self.call["seed"]
        if wrong := [f"{name} was {there.get(name)!r}, is {value!r}" for name, value in self.call.items() if there.get(name) != value]:
            raise OptionError(f"{self.path} belongs to another call ({'; '.join(wrong)}): {_ANEW}.")

    def trace(self, blank: Trace, chains: Chains) -> Trace | None:
        """Returns a trace with the steps of the interrupted run; None if there was none. A start of one chain shows what a state has."""
        if not self.record:
            return None
        like, _ = start_chains(chains.problem, range(1))
        tensors = {name: value if name == "diverged_at" else value.to(like.x.device) for name, value in self.tensors.items()}
        state = {name[6:]: value for name, value in tensors.items() if name.startswith("state.")}
        try:
            found = {name: tensors[name] for name in _TENSORS if name in tensors}
            found |= {name: self.record[name] for name in ("steps", "scalars", "point_steps")}
            trace = replace(blank, state=replace(like, **dict(self.record["state"]), **state), **found)
            missing = {f.name for f in fields(like) if f.metadata.get("saved", True)} - state.keys() - self.record["state"].keys()
            problem = f"the state has no {', '.join(sorted(missing))}" if missing else _inconsistency(trace, like, chains.count)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            trace, problem = None, f"{type(error).__name__}: {error}"
        if problem:
            raise FileFormatError(f"The checkpoint is inconsistent ({problem}): {_ANEW}.")
        return trace

    def on_start(self, chains: Chains) -> None:
        watched = any(not isinstance(one, Checkpoint | Progress) for one in self.problem.call.observers)  # by what may stop it
        chains.stopped = watched and self.record.get("stopped") == chains.last_step
        if not self.reference:
            self.reference = [chains.values(None if self.problem.own_conditions else _START_CHAINS)]
        self.before, self.written = copy(chains), chains.step

    def on_step(self, chains: Chains, info: Info) -> None:
        if time.monotonic() >= self.due:
            self._write(chains, chains.values())
        self.before = copy(chains)

    def on_end(self, chains: Chains, error: BaseException | None) -> None:
        if error is None and chains.step > self.written:
            self._write(chains, chains.values())
        elif error is not None:
            now = self.reference[0]
            with suppress(Exception):  # the error that broke off the loop is raised after the file is written
                now = values if (values := self.before.values()).energies.isfinite().all() else now
            self._write(self.before, now)

    def _write(self, chains: Chains, now: Values) -> None:
        """Replaces the file atomically: after a crash either the old or the new one is there, whole."""
        began, trace, state = time.monotonic(), self.recorder.trace(chains), dict[str, Any]()
        tensors: dict[str, Tensor] = {name: getattr(trace, name) for name in _TENSORS if getattr(trace, name) is not None}
        for i, values in enumerate((self.reference[0], now)):
            tensors |= {f"reference.{i}.{name}": getattr(values, name) for name in _VALUES}
        for field in fields(chains.state):
            if isinstance(value := getattr(chains.state, field.name), Tensor):
                tensors[f"state.{field.name}"] = value
            elif isinstance(value, _PLAIN):
                state[field.name] = value
            elif field.metadata.get("saved", True):
                holds = "a checkpoint holds tensors, numbers and text; make it one of these, or sample without a `Checkpoint`"
                raise ExpressionError(f"{type(chains.state).__name__}.{field.name} is a {type(value).__name__}: {holds}.")
        record = {"call": self.call, "steps": trace.steps, "scalars": trace.scalars, "point_steps": trace.point_steps}
        record["stopped"] = chains.last_step if chains.stopped else None
        write_record(self.path, "checkpoint", _VERSION, {**record, "state": state, "reference": 2}, tensors)
        ended, self.written = time.monotonic(), chains.step
        self.due = ended + (max(self.every, (ended - began) / _MAX_SHARE) if self.every else 0)


def _describe(value: Any) -> str:
    """Returns a sampler, or an option of one, as text that is the same in another process."""
    if isinstance(value, Tensor):
        return f"tensor {digest_of({'': value})}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_describe, value))})"
    if is_dataclass(value):
        own = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, Sampler) or type(value).__repr__ is object.__repr__:
        own = {name: item for name, item in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    else:
        return repr(value)
    return f"{type(value).__qualname__}({', '.join(f'{name}={_describe(item)}' for name, item in own.items())})"


def _inconsistency(trace: Trace, like: State, n: int) -> str | None:
    """Returns which part of a trace of n chains does not belong to the others, or to the state of one chain; None if all do."""
    steps, points, rates, scalars = trace.point_steps, trace.points, trace.acceptance, trace.scalars
    fits = {
        "steps": type(trace.steps) is int and 0 <= trace.steps < _MOST_STEPS,
        "point_steps": isinstance(steps, list) and all(type(step) is int and 0 < step <= trace.steps for step in steps),
        "scalars": all(isinstance(values, list) and all(isinstance(value, Real) for value in values) for values in scalars.values()),
        "diverged_at": trace.diverged_at.dtype == torch.int64 and trace.diverged_at.shape == (n,),
        "energies": trace.energies.shape in ((0, 0), (len(trace.energies), n)) and len(trace.energies) <= trace.steps,
        "acceptance": rates is None or rates.shape == trace.energies.shape,
        "points": points is None or points.shape[:2] == (len(steps), n),
    }
    for field in fields(like):
        value, one = getattr(trace.state, field.name), getattr(like, field.name)
        fits[field.name] = one is None or type(value) is type(one) or (isinstance(value, Real) and isinstance(one, Real))
        if isinstance(one, Tensor) and isinstance(value, Tensor):
            shape = (n, *one.shape[1:]) if one.ndim and len(one) == 1 else one.shape
            fits[field.name] = value.shape == shape and value.dtype == one.dtype
    return next((f"{name} has another shape or type" for name, good in fits.items() if not good), None)
