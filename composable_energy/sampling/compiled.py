"""Steps of a sampler as one compiled function.

`make_fx` runs a step once on stand-ins for its tensors, and records the operations of sampler, energy and gradient as one flat graph, which
`torch.compile` turns into a few kernels. The noise is an input, so the draws are those without compilation up to rounding. Eight steps of
few chains are one function; they are taken in advance and handed out one by one. What cannot be recorded, such as trajectories of different
lengths, takes single steps with a compiled gradient.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Hashable
from dataclasses import fields, replace
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from composable_energy.conditions import CHAINS, rows_for
from composable_energy.energy import Energy
from composable_energy.errors import OptionError
from composable_energy.noise import Noise
from composable_energy.sampling.faults import GuardedEnergy, first_line
from composable_energy.sampling.problem import Problem
from composable_energy.sampling.sampler import Info, Sampler, State
from composable_energy.sampling.wrappers import EnergyWrapper
from composable_energy.twins import twin

_AHEAD = 8  # steps of a function
_MOST_NUMBERS, _MOST_NODES = 2**16, 2000  # of these steps: their points in the cache, and operations that compile in seconds
_MOST_FUNCTIONS = 8  # that an energy keeps
_PROBES = 16  # points where each call compares the energy with the one that was compiled
_ALL_TRUE = getattr(torch, "_is_all_true", None)  # how distributions look at their checks
# Short loops are left to the C++ compiler, which unrolls them: half the time for mixtures on a plane. Results that are used again are
# stored after 16 operations, not 50: the compiler repeats all before each use, so its time doubles with each step of a recursion.
_OPTIONS: dict[str, Any] = {
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
        evaluator: Evaluates the energy at points of chains.
    """

    def __init__(self, sampler: Sampler, energy: GuardedEnergy, owner: Energy, evaluator: Problem) -> None:
        self.sampler, self.energy, self.owner, self.evaluator = sampler, energy, owner, evaluator
        self.plain, self.kept = energy.energy, cast(Any, None)
        self.ahead: dict[range, list[tuple[State, int, tuple[State, Info]]]] = {}

    def __call__(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        """Returns the next state and info, as `Sampler.step` up to rounding."""
        self.kept = self.kept or _functions(self.owner, self.plain, self.evaluator, state.x)
        if energy is self.energy and self.sampler.total_steps is None and state.x.is_cpu and isinstance(noise.chains, range):
            ahead = self.ahead.setdefault(noise.chains, [])
            if ahead and ahead[0][0] is state and ahead[0][1] == noise.step:
                return ahead.pop(0)[2]
            key = self.sampler, *_shapes(state)
            most = _AHEAD if self.evaluator.batch_size >= self.evaluator.rows else 1  # batches take turns
            steps = self.kept.get((most, *key), lambda: _Steps.compile(self.sampler, self.plain, state, noise, most))
            if steps is not None:
                ahead[:] = steps.take(state, noise)
                return ahead.pop(0)[2]
        if self.energy.energy is self.plain:
            self.energy.energy = _CompiledGradient(self.plain, self.kept)
        return self.sampler.step(energy, state, noise)


class _Functions:
    """The functions of an energy. Its tensors are their inputs; other changes show by the addresses of tensors, or by values at points."""

    def __init__(self, energy: Energy, evaluator: Problem, x: Tensor) -> None:
        self.addresses, self.values = _addresses(energy), evaluator.values(torch.arange(len(x)), x.clone())
        self.found: dict[Hashable, Any] = {}
        self.warned = False

    def fit(self, energy: Energy, evaluator: Problem, x: Tensor) -> bool:
        """Returns whether an energy is still the one that was compiled, to the last bits."""
        old = self.values
        if _addresses(energy) != self.addresses or (old.x.shape, old.x.dtype) != (x.shape, x.dtype):
            return False
        new, rounding = evaluator.values(old.chains, old.x), 64 * torch.finfo(old.energies.dtype).eps
        same = new.energies.shape == old.energies.shape and _near(new.energies, old.energies, rounding)
        return same and _near(new.grads, old.grads, rounding)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns what was made for a key; None for what cannot be compiled, and of a gradient one warning says why."""
        if key not in self.found:
            if len(self.found) == _MOST_FUNCTIONS:
                del self.found[next(iter(self.found))]
            try:
                with _TRACING, warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the compiler warns about its own code
                    self.found[key] = make()
            except _NotCompiledError as reason:
                self.found[key] = None
                if str(reason) and not self.warned:
                    self.warned = True
                    warnings.warn(f"{reason}: it runs without torch.compile.", RuntimeWarning, stacklevel=2)
        return self.found[key]


_KEPT: WeakKeyDictionary[Energy, _Functions] = WeakKeyDictionary()


def _functions(owner: Energy, energy: Energy, evaluator: Problem, x: Tensor) -> _Functions:
    kept, x = _KEPT.get(owner), x[: min(_PROBES, evaluator.rows)]
    if kept is None or not kept.fit(energy, evaluator, x):
        kept = _KEPT[owner] = _Functions(energy, evaluator, x)
    return kept


class _Steps:
    """Steps in succession as one function of the tensors of a state and of the draws of each step."""

    def __init__(self, sampler: Sampler, energy: Energy, state: State, noise: Noise) -> None:
        recorded = _RecordedNoise(noise)
        self.after, self.info = sampler.step(energy, state, cast(Noise, recorded))
        self.draws, self.names, self.count = recorded.draws, list(_tensors(state)), 1
        self.sampler, self.energy, self.function = sampler, _Traced(twin(energy)), cast(Function, None)

    @classmethod
    def compile(cls, sampler: Sampler, energy: Energy, state: State, noise: Noise, most: int) -> _Steps:
        """Compiles steps, and compares them with one that is not compiled, and several with those that begin one step later.

        Raises:
            _NotCompiledError: They cannot be recorded.
        """
        try:
            steps = cls(sampler, energy, state, noise)
            graph = steps.record(state, noise)
            if most > 1 and most * state.x.numel() <= _MOST_NUMBERS and most * len(graph.graph.nodes) <= _MOST_NODES:
                steps.count = most
                steps.function = _compile(steps.record(state, noise), steps.inputs(state, noise))
                taken = steps.take(state, noise)
                later = steps.take(taken[1][0], noise.at(noise.step + 1))
                pairs = [(a, b) for (*_, one), (*_, two) in zip(taken[1:], later[:-1], strict=True) for a, b in zip(one, two, strict=True)]
                same = all(
                    torch.allclose(*each, rtol=0, atol=0, equal_nan=True)
                    for a, b in pairs
                    for each in zip(_values(a), _values(b), strict=True)
                )
                steps.count = most if same else 1
            if steps.count == 1:
                steps.function = _compile(graph, steps.inputs(state, noise))
            if all(map(_near, _values(steps.take(state, noise)[0][2][0]), _values(steps.after))):
                return steps
        except OptionError:
            raise
        except Exception as error:  # whatever a sampler does that cannot be recorded; errors of the energy come again in single steps
            raise _NotCompiledError from error
        raise _NotCompiledError

    def inputs(self, state: State, noise: Noise) -> tuple[Tensor, ...]:
        drawn = (getattr(noise.at(noise.step + i), name)(*args) for i in range(self.count) for name, *args in self.draws)
        return *(getattr(state, name) for name in self.names), *drawn

    def record(self, state: State, noise: Noise) -> torch.fx.GraphModule:
        """Returns the graph of the steps."""

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            now, left, found = replace(state, **dict(zip(self.names, tensors, strict=False))), list(tensors[len(self.names) :]), []
            for _ in range(self.count):
                now, info = self.sampler.step(self.energy, now, cast(Noise, _RecordedNoise(noise, left)))
                if _shapes(now) != _shapes(state) or _settings(info) != _settings(self.info):
                    raise _NotCompiledError
                found += [*_values(now), *(value.clone() for value in _values(info))]  # a view of an input takes longer than a copy
            return tuple(found)

        return _trace(function, self.inputs(state, noise))

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
    """Noise that lists the draws of a step, or returns them as drawn before. A sampler that asks for more is not recorded."""

    def __init__(self, noise: Noise, drawn: list[Tensor] | None = None) -> None:
        self.kind, self.chains, self.noise, self.drawn = noise.kind, noise.chains, noise, drawn
        self.draws: list[tuple[str, Tensor, int]] = []

    def normal(self, like: Tensor, stream: int = 0, name: str = "normal") -> Tensor:
        if self.drawn is not None:
            return self.drawn.pop(0)
        self.draws.append((name, torch.zeros_like(like), stream))
        return getattr(self.noise, name)(like, stream)

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        return self.normal(like, stream, "uniform")

    def add_normal_(self, x: Tensor, scale: float = 1.0, stream: int = 0) -> Tensor:
        return x.add_(self.normal(x, stream), alpha=scale)


class _CompiledGradient(EnergyWrapper):
    """An energy whose value and gradient are compiled, for each shape of points and conditions."""

    def __init__(self, energy: Energy, functions: _Functions) -> None:
        super().__init__(energy)
        self.functions = functions

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
        function = self.functions.get(key, lambda: self._compile(inputs, known))
        return self.energy.with_gradient(x, **known) if function is None else _run(function, inputs)

    def _compile(self, inputs: tuple[Tensor, ...], known: dict[str, Tensor]) -> Function:
        eager = self.energy.with_gradient(inputs[0], **known)  # first, so that its own errors appear and its caches are filled
        inside = _Traced(twin(self.energy))
        try:
            graph = _trace(lambda x, *values: inside.with_gradient(x, **dict(zip(known, values, strict=True))), inputs)
            function = _compile(graph, inputs)
            if all(map(_near, _run(function, inputs), eager)):
                return function
        except OptionError:
            raise
        except Exception as error:
            raise _NotCompiledError(f"{self.energy} cannot be traced ({first_line(error)})") from error
        raise _NotCompiledError(f"{self.energy} computes something else when it is compiled")


class _Traced(EnergyWrapper):
    """An energy as it is recorded: a graph cannot stop at what `torch.distributions` refuses, so its results become NaN there."""

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        raise _NotCompiledError  # no sampler that can be recorded evaluates energies alone

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


class _NotCompiledError(Exception):
    """The reason why something runs without compilation."""


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
        function = torch.compile(graph, fullgraph=True, dynamic=False, options=_OPTIONS)
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


def _near(new: Tensor, old: Tensor, tolerance: float | None = None) -> bool:
    """Returns whether two results differ by no more than a share of the largest number."""
    tolerance = math.sqrt(torch.finfo(old.dtype).eps) if tolerance is None else tolerance
    largest = old[old.isfinite()].abs().max().item() if bool(old.isfinite().any()) else 0.0
    return torch.allclose(new, old, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def _addresses(energy: Energy) -> list[Hashable]:
    tensors = (*energy.parameters(), *energy.buffers())
    return [(one.data_ptr() if one.layout == torch.strided else 0, one.shape, one.dtype) for one in tensors]


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
