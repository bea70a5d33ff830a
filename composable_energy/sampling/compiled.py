"""Steps of a sampler as one compiled function.

`make_fx` runs a step once on stand-ins for its tensors, and records the operations of sampler, energy and gradient as one flat graph, which
`torch.compile` turns into a few kernels. The words of the noise are inputs, so the draws are those without compilation up to rounding.
Several steps of few chains are one function; they are taken in advance and handed out one by one. What cannot be recorded, such as
trajectories of different lengths, takes single steps with a compiled gradient, and a warning says why.

Functions are kept for the energy of the caller. Each call evaluates it at a few points and compares the operations, with their numbers and
tensors, to those that were compiled, so that a changed number is never missed, wherever the energy takes it from.
"""

import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.energies.conditions import CHAINS, rows_for
from composable_energy.energies.energy import Energy
from composable_energy.energies.identity import twin
from composable_energy.errors import FILTERS, OptionError, warn_caller
from composable_energy.sampling.checks import values_of
from composable_energy.sampling.noise import Draw, Noise, numbers_of
from composable_energy.sampling.problem import Problem
from composable_energy.sampling.sampler import Info, State
from composable_energy.sampling.wrappers import EnergyWrapper, first_line

_AHEAD = 8  # steps of a function
_MOST_NUMBERS, _MOST_NODES = 2**16, 1000  # of these steps: their points in the cache, and operations that compile in seconds
_MOST_FUNCTIONS = 8  # that an energy keeps
_PROBES = 2  # points where each call compares the operations of the energy with those that were compiled
_ALL_TRUE = getattr(torch, "_is_all_true", None)  # how distributions look at their checks
# Short loops are left to the C++ compiler, which unrolls them: half the time for mixtures on a plane. Results that are used again are
# stored after 16 operations, not 50: the compiler repeats all before each use, so its time doubles with each step of a recursion. Pictures
# keep the order of their numbers: with the channels last, copies between convolutions take a tenth of the time.
_OFF = ("layout_optimization", "cpp.enable_loop_tail_vec", "size_asserts", "alignment_asserts")
_OPTIONS: dict[str, Any] = {**dict.fromkeys(_OFF, False), "realize_opcount_threshold": 16}
Function = Callable[..., Any]
Functions = dict[Hashable, Function | str]  # a text says why there is no function


class CompiledStep:
    """The `step` of a sampler, compiled. Where that is impossible, the gradient of the energy is."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.functions = problem, cast(Functions, None)
        self.ahead: list[tuple[State, int, tuple[State, Info]]] = []

    def __call__(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        """Returns the next state and info, as `Sampler.step` up to rounding."""
        if not self.ahead or self.ahead[0][0] is not state or self.ahead[0][1] != noise.step:
            self.functions = _functions_of(self.problem, state.x) if self.functions is None else self.functions
            if isinstance(take := self._steps(energy, state, noise), str):
                return self._single(energy, state, noise, take)
            self.ahead = take(state, noise)
        return self.ahead.pop(0)[2]

    def _single(self, energy: Energy, state: State, noise: Noise, why: str) -> tuple[State, Info]:
        """Takes a step with a compiled gradient; the first time it warns."""
        guarded, plain, sampler = self.problem.energy, self.problem.plain, self.problem.sampler
        if isinstance(guarded.energy, _CompiledGradient):
            return sampler.step(energy, state, noise)
        guarded.energy = gradient = _CompiledGradient(plain, self.functions)
        found = sampler.step(energy, state, noise)
        refused = f"{plain} cannot be traced ({gradient.refusal}): it runs without torch.compile."
        single = f"{type(sampler).__name__} takes single steps, of which the gradient alone is compiled, because {why}."
        warn_caller(refused if gradient.refusal else single, RuntimeWarning)
        return found

    def _steps(self, energy: Energy, state: State, noise: Noise) -> Function | str:
        """Returns a function that takes steps, see `_compile_steps`, or why there is none."""
        if (problem := self.problem).sampler.total_steps is not None:
            return "it follows a schedule"
        if energy is not problem.energy:
            return "each chain has conditions of its own"
        if not isinstance(noise.chains, range):
            return "some chains have stopped"
        if noise.kind != "numpy" or not state.x.is_cpu:
            return "its steps run in kernels"
        most = _AHEAD if problem.batch_size >= problem.points.n else 1  # batches take turns
        key = (most, problem.sampler, *_form(state))
        found = _made(self.functions, key, lambda: _compile_steps(problem, state, noise, most))
        return f"its step cannot be compiled ({found})" if isinstance(found, str) else found


class _Operations(TorchDispatchMode):
    """The operations of energies at points, and what was compiled of them; functions read the tensors from `outside` where they are."""

    def __init__(self, problem: Problem, x: Tensor) -> None:
        super().__init__()
        self.x, self.functions = x, Functions()
        self.listed, self.outside, self.places = list[tuple[Any, ...]](), list[Tensor](), WeakTensorKeyDictionary()
        with self:
            values_of(problem, torch.arange(len(x), device="cpu"), x)

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

    def match(self, other: "_Operations") -> bool:
        """Returns whether other operations compute the same now."""
        return self.listed == other.listed and len(self.outside) == len(other.outside) and all(map(_same, self.outside, other.outside))


_KEPT: WeakKeyDictionary[Energy, _Operations] = WeakKeyDictionary()


def _functions_of(problem: Problem, x: Tensor) -> Functions:
    """Returns the functions that were compiled of the caller's energy, if it computes the same as then."""
    owner, rows = problem.call.energy, problem.points.n if problem.own_conditions else _PROBES
    kept, x = _KEPT.get(owner), x[:1].expand(rows, *x.shape[1:])
    if kept is None or (kept.x.shape, kept.x.dtype) != (x.shape, x.dtype) or not kept.match(_Operations(problem, kept.x)):
        kept = _KEPT[owner] = _Operations(problem, x.clone())
    return kept.functions


def _same(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors share their numbers, or have the same ones."""
    if not one.layout == other.layout == torch.strided:  # sparse ones are not compiled
        return False
    alike = (one.shape, one.stride(), one.dtype, one.device) == (other.shape, other.stride(), other.dtype, other.device)
    return alike and (one.data_ptr() == other.data_ptr() or torch.equal(one, other))


def _made(functions: Functions, key: Hashable, make: Callable[[], Function]) -> Function | str:
    """Returns the function that was made for a key, or the reason why it cannot be compiled."""
    with FILTERS:  # tracing changes functions of torch for all threads, too
        if key not in functions:
            if len(functions) == _MOST_FUNCTIONS:
                del functions[next(iter(functions))]
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the compiler warns about its own code
                    functions[key] = make()
            except OptionError:
                raise
            except Exception as error:  # whatever a sampler or an energy does that cannot be recorded
                functions[key] = first_line(error)
        return functions[key]


def _compile_steps(problem: Problem, state: State, noise: Noise, most: int) -> Function:
    """Returns a function of state and noise that takes steps in succession; raises if they cannot be recorded, or the first differs."""
    sampler, recorded = problem.sampler, _RecordedNoise(noise)
    expected, info = sampler.step(problem.energy, state, cast(Noise, recorded))
    traced = _Traced(twin(problem.plain))  # after that step, so that an energy which counts its calls has other values, and is refused
    names, scalars, count = list(_tensors(state)), list(_tensors(info)), 1

    def inputs(state: State, noise: Noise) -> tuple[Tensor, ...]:
        words = (noise.words(draw, like, stream, count) for draw, like, stream in recorded.draws)
        return *(getattr(state, name) for name in names), *words

    def step(*tensors: Tensor) -> tuple[Tensor, ...]:
        now, words = replace(state, **dict(zip(names, tensors, strict=False))), [words[0] for words in tensors[len(names) :]]
        now, seen = sampler.step(traced, now, cast(Noise, _RecordedNoise(noise, words)))
        if _form(now) != _form(state) or _form(seen) != _form(info):
            raise TypeError("a step returns a state or an info of another form")
        return *_tensors(now).values(), *(value.clone() for value in _tensors(seen).values())  # a view of an input takes longer than a copy

    def steps(*tensors: Tensor) -> tuple[Tensor, ...]:
        now, found = tensors[: len(names)], ()
        for i in range(count):
            after = graph(*now, *(words[i : i + 1] for words in tensors[len(names) :]))
            now, found = after[: len(names)], (*found, *after)
        return found

    def take(state: State, noise: Noise) -> list[tuple[State, int, tuple[State, Info]]]:
        found, taken = iter(_run(function, inputs(state, noise))), []
        for number in range(noise.step, noise.step + count):
            after, seen = replace(state, **{name: next(found) for name in names}), {name: next(found) for name in scalars}
            taken.append((state, number, (after, Info(seen.pop("acceptance", None), {**info.scalars, **seen}) if seen else info)))
            state = after
        return taken

    graph = _trace(step, inputs(state, noise))
    count = max(1, min(most, _MOST_NUMBERS // state.x.numel(), _MOST_NODES // len(graph.graph.nodes)))
    function = _compile(steps, inputs(state, noise), list(_tensors(expected).values()))
    return take


class _RecordedNoise:
    """Noise that lists the draws of a step, or makes them of words. A sampler that asks for more is not recorded."""

    normal, uniform, uniforms, add_normal_ = Noise.normal, Noise.uniform, Noise.uniforms, Noise.add_normal_

    def __init__(self, noise: Noise, words: list[Tensor] | None = None) -> None:
        self.kind, self.chains, self.noise, self.words = noise.kind, noise.chains, noise, words
        self.draws: list[tuple[Draw, Tensor, int]] = []

    def _draw(self, draw: Draw, like: Tensor, stream: int) -> Tensor:
        if self.words is not None:
            return numbers_of(draw, self.words.pop(0), like.shape[1:])
        self.draws.append((draw, torch.empty_like(like[:1]), stream))
        return self.noise._draw(draw, like, stream)

    def __getattr__(self, name: str) -> Any:
        raise TypeError(f"it asks for noise.{name}")


class _CompiledGradient(EnergyWrapper):
    """An energy whose value and gradient are compiled, for each shape of points and conditions."""

    def __init__(self, energy: Energy, functions: Functions) -> None:
        super().__init__(energy)
        self.functions, self.refusal = functions, ""

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        names = sorted(self.energy.conditions & conditions.keys())
        values = x.detach(), *(conditions[name] if name == CHAINS else rows_for(name, conditions[name], x) for name in names)

        def gradient(energy: Energy, x: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
            return energy.with_gradient(x, **dict(zip(names, values, strict=True)))

        key = (*names, *((one.shape, one.stride(), one.dtype, one.device) for one in values))
        if (function := self.functions.get(key)) is None:
            expected = gradient(self.energy, *values)  # first: what it raises at some points says nothing about compilation
            traced = partial(gradient, _Traced(twin(self.energy)))
            function = _made(self.functions, key, lambda: _compile(traced, values, expected))
        if isinstance(function, str):
            self.refusal = function
            return gradient(self.energy, *values)
        return _run(function, values)


class _Traced(EnergyWrapper):
    """An energy as it is recorded: a graph cannot stop at what `torch.distributions` refuses, so its results become NaN there."""

    def evaluate(self, method: str, x: Tensor, conditions: Mapping[str, Any]) -> Any:
        with _Checks() as checks:
            found = super().evaluate(method, x, conditions)
        for valid in checks.results:
            valid = valid.reshape(len(x), -1).all(1) if valid.ndim and len(valid) == len(x) else valid.all().expand(len(x))
            found = tree_map(lambda one, valid=valid: torch.where(unsqueeze_to(valid, one), one, torch.nan), found)
        return found


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


def _trace(function: Function, inputs: Sequence[Tensor]) -> torch.fx.GraphModule:
    """Returns the operations of a function; fake tensors stand in for its inputs, while weights stay real."""
    return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*(one.clone() for one in inputs))


def _compile(function: Function, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> Function:
    """Returns a compiled function; raises OptionError without a compiler that works, ValueError where its first results differ."""
    graph, device = _trace(function, inputs), inputs[0].device
    checks = Distribution._validate_args  # torch's compiler turns them off for the whole process
    try:
        options = _OPTIONS if device.type == "cpu" else None
        found = _run(compiled := torch.compile(graph, fullgraph=True, dynamic=False, options=options), inputs)
    except Exception as cause:
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
    tolerance = math.sqrt(max(torch.finfo(one.dtype).eps for one in expected if one.is_floating_point()))
    for one, other in zip(found, expected, strict=False):
        largest = other[other.isfinite()].abs().max().item() if other.isfinite().any() else 0.0
        if not torch.allclose(one, other, rtol=tolerance, atol=tolerance * largest, equal_nan=True):
            raise ValueError("it computes something else when it is compiled")
    return compiled


def _run(function: Function, inputs: Sequence[Tensor]) -> Any:
    """Runs a compiled function in the mode in which it was compiled; in another mode torch would compile it again."""
    with torch.inference_mode(False), torch.no_grad():
        try:
            return function(*inputs)
        except RuntimeError:  # also while another thread traces, for which torch marks the whole process
            with FILTERS:
                return function(*inputs)


def _parts(of: State | Info) -> dict[str, Any]:
    if isinstance(of, Info):
        return {"acceptance": of.acceptance, **of.scalars}
    return {field.name: getattr(of, field.name) for field in fields(of)}


def _tensors(of: State | Info) -> dict[str, Tensor]:
    """Returns the tensors of a state or an info by name."""
    return {name: value for name, value in _parts(of).items() if isinstance(value, Tensor)}


def _form(of: State | Info) -> list[Hashable]:
    """Returns what all states or infos of a compiled step share: names, shapes, and what is no tensor."""
    values = ((name, (value.shape, value.dtype) if isinstance(value, Tensor) else value) for name, value in _parts(of).items())
    return [type(of), *values]
