r"""Compiled energies: value and gradient run as one compiled function.

`make_fx` runs the energy once on stand-ins of the points and records the operations of $E$ *and* of $\nabla E$ as one flat graph, which
`torch.compile` turns into one kernel or a few. So the Python code of an energy costs nothing at a step and cannot break the graph. An
energy that depends on the *values* of points in other ways than by torch's operations is not recorded, and runs without compilation.

Each shape of batch has a graph of its own, so that results do not depend on what was compiled before.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.conditions import CHAINS, rows_for
from composable_energy.energy import Energy
from composable_energy.errors import OptionError
from composable_energy.sampling.graph import (
    ANYTHING,
    Function,
    all_same,
    close,
    compile_graph,
    copied,
    count_flops,
    draws_random_numbers,
    first_line,
    held_by,
    run,
    same,
    trace,
)
from composable_energy.sampling.wrappers import EqualEnergy
from composable_energy.twins import tensors_of, twin

_MAX_SHAPES = 8  # a call has two or three shapes of batches
_MOST_EXAMPLES, _MOST_NUMBERS, _LEAST_EXAMPLES = 16, 2**14, 4  # points, and their coordinates, that each call evaluates
T = TypeVar("T")
_TRACING = threading.RLock()  # tracing changes functions of torch for all threads


def compiled(energy: Energy) -> Energy:
    """Returns the same energy, whose value and gradient run through `torch.compile`.

    The first call for each shape of a batch takes seconds. The result keeps the compiled functions, so sample it several times. Weights and
    numbers are constants of a function. Each call compares all that the energy holds with the values at compilation, and compiles again
    after a change; `sample` does so once, and also compares energies and gradients at points. A call outside of `sample` does not see
    changes elsewhere, such as in an attribute of a class, or of an object that a function captures. Compiled steps draw Philox noise, see
    `noise` of `sample`.

    An energy that branches on the values of its points, draws random numbers, or leaves torch is evaluated without compilation, and one
    `RuntimeWarning` gives the reason. So is any energy without a gradient (`torch.no_grad`), where parameters take gradients through
    `energy(x)`, and for more than 8 shapes.

    Args:
        energy: The energy.

    Raises:
        OptionError: At the first call: this machine has no compiler that works.

    Example:
        >>> import torch, composable_energy as ce
        >>> from composable_energy.sampling import compiled, energy_and_gradient
        >>> bowl = ce.as_energy(lambda x: x.square().sum(1) / 2)
        >>> energy_and_gradient(compiled(bowl & bowl), torch.ones(1, 2))
        (tensor([2.]), tensor([[2., 2.]]))
    """
    return energy if isinstance(energy, CompiledEnergy) else CompiledEnergy(energy)


def compiled_twin(energy: Energy, still: Energy) -> Energy:
    """Returns the compiled form of an energy's twin; the energy keeps the compiled functions for later twins.

    Args:
        energy: The energy.
        still: Its twin.
    """
    if isinstance(still, CompiledEnergy):
        return still
    return CompiledEnergy(still, vars(energy).setdefault("_compiled_graphs", _Graphs()))


@dataclass(frozen=True)
class _Graph:
    """A compiled function with its graph, both None for an energy that runs without compilation, and example inputs and results."""

    function: Function | None
    traced: torch.fx.GraphModule | None
    inputs: tuple[Tensor, ...]
    results: tuple[Tensor, Tensor]


class _Graphs:
    """The graphs of an energy and its twins by shapes of inputs; a copy of the energy has none.

    It has the values that the energy held before its first evaluation, which new twins hold, and after it, when caches are filled.
    """

    __slots__ = ("before", "by_inputs", "held", "steps", "warned")

    def __init__(self) -> None:
        self.by_inputs: dict[Hashable, _Graph] = {}
        self.steps: dict[Hashable, Any] = {}
        self.before: list[Any] = []
        self.held: list[Any] = []
        self.warned = False

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Graphs, ()

    def __getstate__(self) -> dict[str, Any]:
        return {}


class CompiledEnergy(EqualEnergy):
    """An energy with compiled functions for its value and gradient; see `compiled`.

    Args:
        energy: The energy.
        graphs: The graphs that an energy keeps, for its twin, which does not change; None starts without any.
    """

    def __init__(self, energy: Energy, graphs: _Graphs | None = None) -> None:
        super().__init__(energy)
        self._graphs = graphs or _Graphs()
        self._checked: dict[tuple[tuple[Any, ...], ...], _Graph] | None = None if graphs is None else {}

    def became_twin(self, original: Any) -> None:
        """Shares the graphs of the original energy. A twin does not change, so each graph is checked once."""
        super().became_twin(original)
        self._graphs, self._checked = original._graphs, {}

    @property
    def graphs(self) -> tuple[torch.fx.GraphModule, ...]:
        """The compiled graphs, one for each shape."""
        return tuple(graph.traced for graph in self._graphs.by_inputs.values() if graph.traced is not None)

    def count_flops(self, x: Tensor) -> int:
        """Returns the floating-point operations of the products in a gradient at points such as `x`; 0 if it is not compiled."""
        graph = None if self.energy.required_conditions else self._any_graph(x).traced
        return 0 if graph is None else count_flops(graph)

    def compiled_steps(self, key: Hashable, x: Tensor, operations: int, make: Callable[[Energy], T], most: int) -> T | None:
        """Returns compiled steps by a key, such as the sampler, made from a twin at the first time and after a change of the energy.

        None if the energy needs conditions, has more than that many operations for points such as `x`, or has `most` steps of other keys.
        """
        graph = None if self.energy.required_conditions else self._any_graph(x).traced
        if graph is None or len(graph.graph.nodes) > operations:
            return None
        with _TRACING:
            kept = self._graphs.steps
            if key not in kept and len(kept) < most:
                kept[key] = make(_isolated(self.energy))
            return kept.get(key)

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad) or self._learns(conditions):
            return self.energy(x, **conditions)
        return _CompiledFunction.apply(x, self, conditions)

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        if type(x) is not Tensor:  # no tensor, or a stand-in while an expression around this energy is traced
            return self.energy.with_gradient(x, **conditions)
        known = self._tensors(x, conditions) if conditions else {}
        function = self._graph(x, known).function
        return self.energy.with_gradient(x, **known) if function is None else run(function, (x.detach(), *known.values()))

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.energy.evidence(x, **conditions) if self.bases else self(x, **conditions)

    def _learns(self, conditions: dict[str, Any]) -> bool:
        """Returns whether weights or conditions take gradients, which a compiled function does not give."""
        held = tensors_of(self.energy) if self._checked is None else []
        return any(isinstance(value, Tensor) and value.requires_grad for value in (*held, *conditions.values()))

    def _tensors(self, x: Tensor, conditions: dict[str, Any]) -> dict[str, Tensor]:
        """Returns conditions as inputs of a graph, so that all chunks and all noise levels share it."""
        known = {}
        for name in sorted(self.energy.conditions & conditions.keys()):
            value = conditions[name]
            if isinstance(value, slice):
                value = torch.arange(value.start, value.stop, device=x.device)
            known[name] = value if name == CHAINS else rows_for(name, value, x)
        return known

    def _any_graph(self, x: Tensor) -> _Graph:
        """Returns a graph for such points that was used before, under whatever conditions; without one, that without conditions."""
        here = (x.shape, x.stride(), x.dtype, x.device)
        found = (graph for ((_, *points), *_), graph in (self._checked or {}).items() if tuple(points) == here)
        return next(found, None) or self._graph(x, {})

    def _graph(self, x: Tensor, known: dict[str, Tensor]) -> _Graph:
        """Returns the graph for inputs of such shapes and the current values of the energy."""
        inputs = {"x": x, **known}
        shapes = tuple((name, value.shape, value.stride(), value.dtype, value.device) for name, value in inputs.items())
        if self._checked is not None and shapes in self._checked:
            return self._checked[shapes]
        with _TRACING:
            held, modes = held_by(self.energy, _Graphs)
            graphs, key = self._graphs, (modes, shapes)
            if not all_same(held, graphs.held) and not all_same(held, graphs.before):
                graphs.by_inputs, graphs.steps, graphs.before = {}, {}, copied(held)
                graphs.held = graphs.before
            graph = graphs.by_inputs.get(key)
            if graph is not None and self._checked is not None and not self._agrees(graph, known):
                graphs.by_inputs, graphs.steps, graph = {}, {}, None
            if graph is None:
                graph = graphs.by_inputs[key] = self._build(x.detach(), known)
            if self._checked is not None:
                self._checked[shapes] = graph
        return graph

    def _agrees(self, graph: _Graph, known: dict[str, Tensor]) -> bool:
        """Returns whether the energy still gives the graph's results, up to rounding."""
        return _agree(self.energy.with_gradient(graph.inputs[0], **dict(zip(known, graph.inputs[1:], strict=True))), graph.results)

    def _example(
        self, x: Tensor, known: dict[str, Tensor], eager: tuple[Tensor, Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
        """Returns inputs and results that later calls compare: those of some points, if these do not depend on the others."""
        count = max(_LEAST_EXAMPLES, min(_MOST_EXAMPLES, _MOST_NUMBERS // max(1, x[:1].numel())))
        if not known and len(x) > count:
            rows = torch.linspace(0, len(x) - 1, count, device=x.device).long()
            some, results = x[rows], (eager[0][rows], eager[1][rows])
            with suppress(Exception):  # of an energy that takes whole batches only
                if _agree(self.energy.with_gradient(some), results):
                    return (some,), results
        return tuple(copied([x, *known.values()])), eager

    def _build(self, x: Tensor, known: dict[str, Tensor]) -> _Graph:
        """Compiles the energy for such inputs, or explains by a warning why it is not compiled."""
        eager = self.energy.with_gradient(x, **known)  # first, so that the energy's own errors appear and its caches are filled
        now, before = held_by(self.energy, _Graphs)[0], self._graphs.held
        if len(now) == len(before):  # a number that each evaluation changes, such as a counter, is ignored
            self._graphs.held = [old if same(new, old) else ANYTHING for new, old in zip(now, before, strict=True)]
        else:  # the first evaluation filled a cache
            self._graphs.held = copied(now)
        inputs = (x, *known.values())
        example, results = self._example(x, known, eager)
        try:
            traced, function = self._compile(x, known, inputs, eager)
        except _NotCompiled as reason:
            if not self._graphs.warned:
                self._graphs.warned = True
                warnings.warn(f"{self} runs without torch.compile: {reason}.", RuntimeWarning, stacklevel=5)
            return _Graph(None, None, example, results)
        return _Graph(function, traced, example, results)

    def _compile(
        self, x: Tensor, known: dict[str, Tensor], inputs: tuple[Tensor, ...], eager: tuple[Tensor, Tensor]
    ) -> tuple[torch.fx.GraphModule, Function]:
        if len(self._graphs.by_inputs) >= _MAX_SHAPES:
            raise _NotCompiled(f"there are more than {_MAX_SHAPES} shapes of batches; take a batch_size that divides the chains")
        try:
            traced = trace(_isolated(self.energy), x, known)
        except Exception as error:
            raise _NotCompiled(f"it cannot be traced ({first_line(error)})") from error
        if draws_random_numbers(traced):
            raise _NotCompiled("it draws random numbers")
        try:
            function, results = compile_graph(traced, inputs)
        except OptionError:
            raise
        except Exception as error:
            raise _NotCompiled(f"the compiler fails on it ({first_line(error)})") from error
        if not all(close(new, old, math.sqrt(torch.finfo(old.dtype).eps)) for new, old in zip(results, eager, strict=True)):
            raise _NotCompiled("it computes something else when it is compiled")
        return traced, function

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_graphs": _Graphs(), "_checked": None}


class _NotCompiled(Exception):  # noqa: N818  (becomes a warning)
    """The reason why an energy runs without compilation."""


class _CompiledFunction(torch.autograd.Function):
    """The energies with their gradient, for expressions that contain a compiled energy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, energy: CompiledEnergy, conditions: dict[str, Any]) -> Tensor:
        energies, gradient = energy.with_gradient(x, **conditions)
        ctx.save_for_backward(x, gradient)
        ctx.energy, ctx.conditions = energy.energy, conditions
        return energies

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:
        x, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative, which the compiled function does not give
            (gradient,) = torch.autograd.grad(ctx.energy(x, **ctx.conditions).sum(), x, create_graph=True)
        return unsqueeze_to(weights, gradient) * gradient, None, None


def _agree(now: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor]) -> bool:
    """Returns whether energies and gradients are equal up to rounding."""
    rounding = 64 * torch.finfo(now[0].dtype).eps
    return all(close(new, old, rounding) for new, old in zip(now, before, strict=True))


def _isolated(energy: Energy) -> Energy:
    """Returns a twin in the modes of the energy, so that tracing does not touch the caller's modules."""
    copied = twin(energy)
    for old, new in zip(energy.modules(), copied.modules(), strict=True):
        new.training = old.training
    return copied
