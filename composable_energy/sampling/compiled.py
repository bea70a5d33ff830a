"""Steps of a sampler as one compiled function.

`make_fx` runs a step once on stand-ins for its tensors, and records the operations of sampler, energy and gradient as one flat graph, which
`torch.compile` turns into a few kernels. The words of the noise are inputs, so the draws are those without compilation up to rounding.
Several steps of few chains are one function; they are taken in advance and handed out one by one. What cannot be recorded, such as
trajectories of different lengths, takes single steps with a compiled gradient, and a warning says why.

Functions are kept for the energy of the caller. Each call evaluates it at a few points and compares the operations, with their numbers and
tensors, to those that were compiled, so that a changed number is never missed, wherever the energy takes it from.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, replace
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from composable_energy.energies.conditions import CHAINS, rows_for
from composable_energy.energies.energy import Energy
from composable_energy.energies.identity import twin
from composable_energy.errors import OptionError
from composable_energy.sampling.checks import values_of
from composable_energy.sampling.faults import GuardedEnergy, first_line
from composable_energy.sampling.noise import Draw, Noise, numbers_of
from composable_energy.sampling.problem import Problem
from composable_energy.sampling.sampler import Info, Sampler, State
from composable_energy.sampling.wrappers import EnergyWrapper

_AHEAD = 8  # steps of a function
_MOST_NUMBERS, _MOST_NODES = 2**16, 1000  # of these steps: their points in the cache, and operations that compile in seconds
_MOST_FUNCTIONS = 8  # that an energy keeps
_PROBES = 2  # points where each call compares the operations of the energy with those that were compiled
_ALL_TRUE = getattr(torch, "_is_all_true", None)  # how distributions look at their checks
# Short loops are left to the C++ compiler, which unrolls them: half the time for mixtures on a plane. Results that are used again are
# stored after 16 operations, not 50: the compiler repeats all before each use, so its time doubles with each step of a recursion. Pictures
# keep the order of their numbers: with the channels last, copies between convolutions take a tenth of the time.
_OPTIONS: dict[str, Any] = {
    "layout_optimization": False,
    "cpp.enable_loop_tail_vec": False,
    "size_asserts": False,
    "alignment_asserts": False,
    "realize_opcount_threshold": 16,
}
_TRACING = threading.RLock()  # tracing changes functions of torch for all threads
Function = Callable[..., Any]


class CompiledStep:
    """The `step` of a sampler, compiled.

    Args:
        sampler: The sampler.
        energy: The energy of all chains. Where a step cannot be compiled, its gradient is.
        owner: The caller's energy, for which functions are kept as long as it exists and does not change.
        problem: What is sampled.
    """

    def __init__(self, sampler: Sampler, energy: GuardedEnergy, owner: Energy, problem: Problem) -> None:
        self.sampler, self.energy, self.owner, self.problem = sampler, energy, owner, problem
        self.plain, self.functions = energy.energy, cast(_Functions, None)
        self.ahead: dict[range, list[tuple[State, int, tuple[State, Info]]]] = {}

    def __call__(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        """Returns the next state and info, as `Sampler.step` up to rounding."""
        ahead = self.ahead.get(noise.chains) if isinstance(noise.chains, range) else None
        if not ahead or ahead[0][0] is not state or ahead[0][1] != noise.step:
            self.functions = self.functions or _functions_of(self.owner, self.problem, state.x)
            steps = self._steps(energy, state, noise)
            if not isinstance(steps, _Steps):
                return self._single(energy, state, noise, steps)
            ahead = self.ahead[cast(range, noise.chains)] = steps.take(state, noise)
        return ahead.pop(0)[2]

    def _single(self, energy: Energy, state: State, noise: Noise, why: str) -> tuple[State, Info]:
        """Takes a step with a compiled gradient; the first time it warns."""
        first = self.energy.energy is self.plain
        if first:
            self.energy.energy = _CompiledGradient(self.plain, self.functions)
        found = self.sampler.step(energy, state, noise)
        if first:
            refusal = cast(_CompiledGradient, self.energy.energy).refusal
            refused = f"{self.plain} cannot be traced ({refusal}): it runs without torch.compile."
            single = f"{type(self.sampler).__name__} takes single steps, of which the gradient alone is compiled, because {why}."
            warnings.warn(refused if refusal else single, RuntimeWarning, stacklevel=2)
        return found

    def _steps(self, energy: Energy, state: State, noise: Noise) -> _Steps | str:
        """Returns compiled steps, or why there are none."""
        if self.sampler.total_steps is not None:
            return "it follows a schedule"
        if not state.x.is_cpu:
            return f"whole steps are compiled on CPUs, not on {state.x.device.type}"
        if energy is not self.energy:
            return "each chain has conditions of its own"
        if not isinstance(noise.chains, range):
            return "some chains have stopped"
        if noise.kind != "numpy":
            return "a kernel takes its steps"
        most = _AHEAD if self.problem.batch_size >= self.problem.points.n else 1  # batches take turns
        found = self.functions.get((most, self.sampler, *_shapes(state)), lambda: _Steps(self.sampler, self.energy, state, noise, most))
        return f"its step cannot be compiled ({found})" if isinstance(found, str) else found


class _Functions:
    """The functions of an energy, whose tensors they read where they are, and the operations that they are made of.

    Args:
        problem: What is sampled.
        x: The first points.
    """

    def __init__(self, problem: Problem, x: Tensor) -> None:
        self.x, self.found = x.clone(), dict[Hashable, Any]()
        self.operations = _Operations.of(replace(problem, energy=twin(problem.energy)), self.x)

    def fit(self, problem: Problem, x: Tensor) -> bool:
        """Returns whether an energy has the operations that were compiled."""
        return (self.x.shape, self.x.dtype) == (x.shape, x.dtype) and self.operations.match(_Operations.of(problem, self.x))

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns what was made for a key, or the reason why it cannot be compiled."""
        if key not in self.found:
            if len(self.found) == _MOST_FUNCTIONS:
                del self.found[next(iter(self.found))]
            try:
                with _TRACING, warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the compiler warns about its own code
                    self.found[key] = make()
            except OptionError:
                raise
            except Exception as error:  # whatever a sampler or an energy does that cannot be recorded
                self.found[key] = first_line(error)
        return self.found[key]


_KEPT: WeakKeyDictionary[Energy, _Functions] = WeakKeyDictionary()


def _functions_of(owner: Energy, problem: Problem, x: Tensor) -> _Functions:
    rows = problem.points.n if CHAINS in problem.energy.conditions else _PROBES  # each chain may have conditions of its own
    kept, x = _KEPT.get(owner), x[:1].expand(rows, *x.shape[1:])
    if kept is None or not kept.fit(problem, x):
        kept = _KEPT[owner] = _Functions(problem, x)
    return kept


class _Operations(TorchDispatchMode):
    """Lists operations with their numbers and links, and the tensors that they take from outside, such as weights."""

    def __init__(self) -> None:
        super().__init__()
        self.listed: list[tuple[Any, ...]] = []
        self.outside: list[Tensor] = []
        self.places = WeakTensorKeyDictionary()

    @classmethod
    def of(cls, problem: Problem, x: Tensor) -> _Operations:
        """Returns the operations of energies and gradients at points."""
        with cls() as operations:
            values_of(problem, torch.arange(len(x)), x)
        return operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [self._name(value, outside=True) for value in tree_leaves((args, kwargs))]
        result = func(*args, **(kwargs or {}))
        self.listed.append((func, *given, *(self._name(value, outside=False) for value in tree_leaves(result))))
        return result

    def _name(self, value: Any, *, outside: bool) -> str:
        if not isinstance(value, Tensor):
            return repr(value)
        if value not in self.places:
            self.places[value] = len(self.places), len(self.listed)
            self.outside += [value] if outside else []
        return f"tensor {self.places[value]}"

    def match(self, other: _Operations) -> bool:
        """Returns whether other operations compute the same now."""
        return self.listed == other.listed and len(self.outside) == len(other.outside) and all(map(_same, self.outside, other.outside))


def _same(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors share their numbers, or have the same ones."""
    if (one.shape, one.dtype, one.device, one.layout) != (other.shape, other.dtype, other.device, other.layout):
        return False
    if one.layout != torch.strided:
        return torch.equal(one.to_dense(), other.to_dense())
    return one.stride() == other.stride() and (one.data_ptr() == other.data_ptr() or torch.equal(one, other))


class _Steps:
    """Steps in succession as one function of the tensors of a state and of the draws of each step.

    Raises:
        Exception: They cannot be recorded, or the first differs from a step that is not compiled.
    """

    def __init__(self, sampler: Sampler, energy: GuardedEnergy, state: State, noise: Noise, most: int) -> None:
        recorded = _RecordedNoise(noise)
        after, self.info = sampler.step(energy, state, cast(Noise, recorded))
        self.draws, self.names, self.count, traced = recorded.draws, list(_tensors(state)), 1, _Traced(twin(energy.energy))

        def step(*tensors: Tensor) -> tuple[Tensor, ...]:
            now, words = replace(state, **dict(zip(self.names, tensors, strict=False))), list(tensors[len(self.names) :])
            now, info = sampler.step(traced, now, cast(Noise, _RecordedNoise(noise, words)))
            if _shapes(now) != _shapes(state) or _settings(info) != _settings(self.info):
                raise TypeError("a step returns a state or an info of another form")
            return *_values(now), *(value.clone() for value in _values(info))  # a view of an input takes longer than a copy

        graph = _trace(step, (*self.inputs(state, noise)[: len(self.names)], *(words[0] for words in self.words(noise))))
        self.count = max(1, min(most, _MOST_NUMBERS // state.x.numel(), _MOST_NODES // len(graph.graph.nodes)))
        self.function = _compile(_trace(self._repeated(graph), self.inputs(state, noise)), self.inputs(state, noise))
        _check_near(_values(self.take(state, noise)[0][2][0]), _values(after))

    def _repeated(self, graph: Function) -> Function:
        """Returns all steps as a function."""
        kept = len(self.names)

        def steps(*tensors: Tensor) -> tuple[Tensor, ...]:
            now, found = tensors[:kept], ()
            for step in range(self.count):
                after = graph(*now, *(words[step] for words in tensors[kept:]))
                now, found = after[:kept], (*found, *after)
            return found

        return steps

    def inputs(self, state: State, noise: Noise) -> tuple[Tensor, ...]:
        return *(getattr(state, name) for name in self.names), *self.words(noise)

    def words(self, noise: Noise) -> list[Tensor]:
        """Returns the words of each draw, for all steps of the function."""
        return [noise.words(draw, like, stream, self.count) for draw, like, stream in self.draws]

    def take(self, state: State, noise: Noise) -> list[tuple[State, int, tuple[State, Info]]]:
        """Returns the state before each step, the number of the step, and its result."""
        found, steps, names = iter(_run(self.function, self.inputs(state, noise))), [], list(_tensors(self.info))
        for step in range(noise.step, noise.step + self.count):
            after, seen = replace(state, **{name: next(found) for name in self.names}), {name: next(found) for name in names}
            info = Info(seen.pop("acceptance", None), {**self.info.scalars, **seen}) if seen else self.info
            steps.append((state, step, (after, info)))
            state = after
        return steps


class _RecordedNoise:
    """Noise that lists the draws of a step, or makes them of words. A sampler that asks for more is not recorded."""

    def __init__(self, noise: Noise, words: list[Tensor] | None = None) -> None:
        self.kind, self.chains, self.noise, self.words = noise.kind, noise.chains, noise, words
        self.draws: list[tuple[Draw, Tensor, int]] = []

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        return self._draw("normal", like, stream, like.dtype)

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        return self._draw("uniform", like, stream, torch.float64 if like.dtype == torch.float64 else torch.float32)

    def _draw(self, draw: Draw, like: Tensor, stream: int, dtype: torch.dtype) -> Tensor:
        if self.words is not None:
            return numbers_of(draw, self.words.pop(0), like.shape[1:]).to(dtype)
        self.draws.append((draw, torch.zeros_like(like), stream))
        return getattr(self.noise, draw)(like, stream)

    def __getattr__(self, name: str) -> Any:
        raise TypeError(f"it asks for noise.{name}")

    def add_normal_(self, x: Tensor, scale: float = 1.0, stream: int = 0) -> Tensor:
        return x.add_(self.normal(x, stream), alpha=scale)


class _CompiledGradient(EnergyWrapper):
    """An energy whose value and gradient are compiled, for each shape of points and conditions."""

    def __init__(self, energy: Energy, functions: _Functions) -> None:
        super().__init__(energy)
        self.functions, self.refusal = functions, ""

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.energy(x, **conditions)

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.energy.evidence(x, **conditions)

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        known = {}
        for name in sorted(self.energy.conditions & conditions.keys()):
            value = conditions[name]
            value = torch.arange(value.start, value.stop, device=x.device) if isinstance(value, slice) else value
            known[name] = value if name == CHAINS else rows_for(name, value, x)
        inputs = (x.detach(), *known.values())
        key = (*known, *((one.shape, one.stride(), one.dtype, one.device) for one in inputs))
        if key not in self.functions.found:
            self.energy.with_gradient(x, **known)  # what it raises at some points says nothing about compilation
        function = self.functions.get(key, lambda: self._compile(inputs, known))
        if isinstance(function, str):
            self.refusal = function
            return self.energy.with_gradient(x, **known)
        return _run(function, inputs)

    def _compile(self, inputs: tuple[Tensor, ...], known: dict[str, Tensor]) -> Function:
        eager = self.energy.with_gradient(inputs[0], **known)  # first, so that its caches are filled
        inside = _Traced(twin(self.energy))
        graph = _trace(lambda x, *values: inside.with_gradient(x, **dict(zip(known, values, strict=True))), inputs)
        function = _compile(graph, inputs)
        _check_near(_run(function, inputs), eager)
        return function


class _Traced(EnergyWrapper):
    """An energy as it is recorded: a graph cannot stop at what `torch.distributions` refuses, so its results become NaN there."""

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        raise TypeError("it evaluates energies without gradients")  # of which no trace is taken

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        with _Checks() as checks:
            energies, gradient = self.energy.with_gradient(x, **conditions)
        for valid in checks.results:
            valid = valid.reshape(len(x), -1).all(1) if valid.ndim and len(valid) == len(x) else valid.all()
            energies = torch.where(valid, energies, torch.nan)
            gradient = torch.where(valid.reshape(-1, *[1] * (x.ndim - 1)), gradient, torch.nan)
        return energies, gradient


class _Checks(TorchFunctionMode):
    """Collects what `torch.distributions` checks of parameters and values."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _ALL_TRUE and not kwargs:
            self.results.append(args[0])
            return True
        return func(*args, **(kwargs or {}))


def _trace(function: Function, inputs: tuple[Tensor, ...]) -> torch.fx.GraphModule:
    """Returns the operations of a function; fake tensors stand in for its inputs, while weights stay real."""
    return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*(one.clone() for one in inputs))


def _compile(graph: Function, inputs: tuple[Tensor, ...]) -> Function:
    """Returns a compiled graph, which has run once.

    Raises:
        OptionError: This machine has no compiler that works.
    """
    checks = Distribution._validate_args  # torch's compiler turns them off for the whole process
    try:
        options = _OPTIONS if inputs[0].is_cpu else None
        function = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
        _run(function, inputs)
        return function
    except Exception as cause:
        device = inputs[0].device
        try:
            torch.compile(torch.cos, fullgraph=True)(torch.zeros(2, device=device))
        except Exception as error:
            needs = "a C++ compiler (Debian, Ubuntu: `apt install g++`; macOS: `xcode-select --install`)"
            needs = needs if device.type == "cpu" else "Triton"
            needs += f", and torch in a path without a space (it is in {torch.__file__})" if " " in torch.__file__ else ""
            raise OptionError(
                f"compile=True needs what torch.compile needs on {device.type}: {needs}. It fails on the simplest function here, with "
                f"{first_line(error)}. Install it, or leave out compile=True."
            ) from cause
        raise
    finally:
        Distribution.set_default_validate_args(checks)


def _run(function: Function, inputs: tuple[Tensor, ...]) -> Any:
    """Runs a compiled function in the mode in which it was compiled; in another mode torch would compile it again."""
    with torch.inference_mode(False), torch.no_grad():
        return function(*inputs)


def _check_near(new: Sequence[Tensor], old: Sequence[Tensor]) -> None:
    """Raises ValueError if results differ by more than a share of the largest number of each."""
    tolerance = math.sqrt(max(torch.finfo(one.dtype).eps for one in old if one.is_floating_point()))
    for one, other in zip(new, old, strict=True):
        finite = other[other.isfinite()].abs()
        largest = finite.max().item() if len(finite) else 0.0
        if not torch.allclose(one, other, rtol=tolerance, atol=tolerance * largest, equal_nan=True):
            raise ValueError("it computes something else when it is compiled")


def _tensors(of: State | Info) -> dict[str, Tensor]:
    """Returns the tensors of a state or an info by name."""
    found = {"acceptance": of.acceptance, **of.scalars} if isinstance(of, Info) else {f.name: getattr(of, f.name) for f in fields(of)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _values(of: State | Info) -> list[Tensor]:
    return list(_tensors(of).values())


def _settings(info: Info) -> list[Any]:
    """Returns what the infos of all compiled steps share: the names, and the numbers that are no tensors."""
    return [info.acceptance is None, *((name, None if isinstance(value, Tensor) else value) for name, value in info.scalars.items())]


def _shapes(state: State) -> list[Hashable]:
    """Returns the class of a state, the shapes of its tensors, and its other fields."""
    values = ((f.name, getattr(state, f.name)) for f in fields(state))
    return [type(state), *((name, value.shape, value.dtype) if isinstance(value, Tensor) else (name, value) for name, value in values)]
