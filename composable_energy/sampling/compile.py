r"""Energies whose value and gradient run as one compiled function.

The energy is run once on stand-ins of the points (`make_fx`), which writes down the operations of $E$ *and* of $\nabla E$ as one flat
graph; `torch.compile` then turns it into one kernel or a few. So whatever Python an energy is made of (nodes, checks, diagrams, lambdas)
costs nothing at a step and cannot break the graph; what depends on the *values* of points cannot be written down, and runs as it is.

A graph is for one shape of batch: each shape has its own, so that results do not depend on what was compiled before.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from composable_energy.captures import tensors_of
from composable_energy.conditions import CHAINS, rows_for
from composable_energy.energy import Energy, WeightedBase
from composable_energy.events import Formula
from composable_energy.sampling.graph import (
    ANYTHING,
    Both,
    all_same,
    close,
    compile_graph,
    copied,
    first_line,
    held_by,
    require_compiler,
    run,
    same,
    trace,
)
from composable_energy.twins import twin

__all__ = ["CompiledEnergy", "compiled", "compiled_twin"]

_SHAPES = 8  # so many graphs are worth their compilation; a call has two or three shapes: pilot chains, a chunk, the last chunk

_ONE_AT_A_TIME = threading.RLock()  # tracing changes functions of torch for all threads


def compiled(energy: Energy) -> Energy:
    """Returns the same energy, whose value and gradient run through `torch.compile`.

    The first call for each shape of a batch takes seconds, later ones in any process less; what is compiled is kept with the result, so
    sample that several times to pay once. Weights and numbers count as constants. Each call compares all that the energy holds with what
    it held when it was compiled, by value, and compiles it again if something changed; `sample` does so once, and compares energies and
    gradients at points as well. A call outside of `sample` does not see what changed elsewhere, such as an attribute of a class, or of an
    object that a function captures.

    An energy that decides by the values of its points, draws random numbers, or leaves torch on its way runs as it is, and one
    `RuntimeWarning` tells why. So it does without a gradient (`torch.no_grad`), where parameters take gradients through `energy(x)`, and
    for more than 8 shapes.

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
    """Returns the compiled form of an energy's twin; the energy keeps what is compiled for later twins.

    Args:
        energy: The energy.
        still: Its twin.
    """
    if isinstance(still, CompiledEnergy):
        return still
    return CompiledEnergy(still, vars(energy).setdefault("_compiled_graphs", _Graphs()))


@dataclass(frozen=True)
class _Graph:
    """A compiled function, None for an energy that runs as it is, with what the energy said when it was made."""

    function: Both | None
    traced: torch.fx.GraphModule | None
    inputs: tuple[Tensor, ...]
    results: tuple[Tensor, Tensor]


class _Graphs:
    """The graphs of an energy and its twins by what they take, for the values that the energy held when they were made.

    A copy of the energy starts without any.
    """

    __slots__ = ("by_inputs", "held", "warned")

    def __init__(self) -> None:
        self.by_inputs: dict[Hashable, _Graph] = {}
        self.held: list[Any] = []
        self.warned = False

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Graphs, ()

    def __getstate__(self) -> dict[str, Any]:
        return {}


class CompiledEnergy(Energy):
    """An energy with compiled functions for its value and gradient; see `compiled`.

    Args:
        energy: The energy.
        graphs: Those that an energy keeps, for its twin, which nobody else changes.
    """

    def __init__(self, energy: Energy, graphs: _Graphs | None = None) -> None:
        super().__init__()
        self.energy = energy
        self.name, self.recommended, self.no_complement = energy.name, energy.recommended, energy.no_complement
        self.event_shape = energy.event_shape
        self._graphs = graphs or _Graphs()
        self._checked: dict[Hashable, _Graph] | None = None if graphs is None else {}

    def became_twin(self, original: CompiledEnergy) -> None:
        """Shares the graphs of the energy whose twin this one is, and checks each of them once, as nobody else changes a twin."""
        self._graphs, self._checked = original._graphs, {}

    @property
    def graphs(self) -> tuple[torch.fx.GraphModule, ...]:
        """What has been compiled, one graph for each shape."""
        return tuple(graph.traced for graph in self._graphs.by_inputs.values() if graph.traced is not None)

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad) or self._learns(conditions):
            return self.energy(x, **conditions)
        return _Compiled.apply(x, self, conditions)

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        if type(x) is not Tensor:  # nothing that torch knows, or a stand-in while an expression around this one is compiled
            return self.energy.with_gradient(x, **conditions)
        known = self._tensors(x, conditions) if conditions else {}
        function = self._graph(x, known).function
        if function is None:
            return self.energy.with_gradient(x, **known)
        return run(function, (x.detach(), *known.values()))

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.energy.evidence(x, **conditions) if self.bases else self(x, **conditions)

    def _learns(self, conditions: dict[str, Any]) -> bool:
        """Whether something besides the points takes gradients, which a compiled function does not give; nothing in a twin does."""
        held = tensors_of(self.energy) if self._checked is None else []
        return any(isinstance(value, Tensor) and value.requires_grad for value in (*held, *conditions.values()))

    def _tensors(self, x: Tensor, conditions: dict[str, Any]) -> dict[str, Tensor]:
        """Returns the conditions of the energy as inputs of a graph: all chunks share one, and all noise levels."""
        known = {}
        for name in sorted(self.energy.conditions & conditions.keys()):
            value = conditions[name]
            if isinstance(value, slice):
                value = torch.arange(value.start, value.stop, device=x.device)
            known[name] = value if name == CHAINS else rows_for(name, value, x)
        return known

    def _graph(self, x: Tensor, known: dict[str, Tensor]) -> _Graph:
        """Returns the graph for such points and conditions, made for the values that the energy holds now."""
        inputs = {"x": x, **known}
        shapes = tuple((name, value.shape, value.stride(), value.dtype, value.device) for name, value in inputs.items())
        if self._checked is not None and shapes in self._checked:
            return self._checked[shapes]
        with _ONE_AT_A_TIME:
            held, modes = held_by(self.energy, _Graphs)
            graphs, key = self._graphs, (modes, shapes)
            if not all_same(held, graphs.held):
                graphs.by_inputs, graphs.held = {}, copied(held)
            graph = graphs.by_inputs.get(key)
            if graph is not None and self._checked is not None and not self._agrees(graph, known):
                graphs.by_inputs, graph = {}, None
            if graph is None:
                graph = graphs.by_inputs[key] = self._made(x.detach(), known)
            if self._checked is not None:
                self._checked[shapes] = graph
        return graph

    def _agrees(self, graph: _Graph, known: dict[str, Tensor]) -> bool:
        """Whether the energy still has the values that the graph was made for, up to rounding."""
        made = self.energy.with_gradient(graph.inputs[0], **dict(zip(known, graph.inputs[1:], strict=True)))
        rounding = 64 * torch.finfo(made[0].dtype).eps
        return all(close(new, old, rounding) for new, old in zip(made, graph.results, strict=True))

    def _made(self, x: Tensor, known: dict[str, Tensor]) -> _Graph:
        eager = self.energy.with_gradient(x, **known)  # an energy that fails says so itself; what it computes once it has computed
        now, before = held_by(self.energy, _Graphs)[0], self._graphs.held
        if len(now) == len(before):  # a number that each evaluation changes, such as a counter, says nothing
            self._graphs.held = [old if same(new, old) else ANYTHING for new, old in zip(now, before, strict=True)]
        else:  # the first evaluation fills a cache
            self._graphs.held = copied(now)
        inputs = (x, *known.values())
        as_it_is = _Graph(None, None, tuple(copied(list(inputs))), eager)
        if len(self._graphs.by_inputs) >= _SHAPES:
            return self._without(as_it_is, f"there are more than {_SHAPES} shapes of batches; take a batch_size that divides the chains")
        try:
            traced = trace(_apart(self.energy), x, known)
        except Exception as error:
            return self._without(as_it_is, f"it cannot be traced ({first_line(error)})")
        if any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in traced.graph.nodes):
            return self._without(as_it_is, "it draws random numbers")
        try:
            function = compile_graph(traced, inputs)
            made = run(function, inputs)
        except Exception as error:
            require_compiler(x.device, error)
            return self._without(as_it_is, f"the compiler fails on it ({first_line(error)})")
        if not all(close(new, old, math.sqrt(torch.finfo(old.dtype).eps)) for new, old in zip(made, eager, strict=True)):
            return self._without(as_it_is, "it computes something else when it is compiled")
        return _Graph(function, traced, as_it_is.inputs, eager)

    def _without(self, graph: _Graph, reason: str) -> _Graph:
        if not self._graphs.warned:
            self._graphs.warned = True
            warnings.warn(f"{self} runs without torch.compile: {reason}.", RuntimeWarning, stacklevel=6)
        return graph

    # What it says of itself is what the energy says -----------------------------------------------------------------------------------

    @property
    def bases(self) -> tuple[WeightedBase, ...]:
        return self.energy.bases

    @property
    def terms(self) -> tuple[Energy, ...]:
        return (self.energy,)

    @property
    def conditions(self) -> frozenset[str]:
        return self.energy.conditions

    @property
    def required_conditions(self) -> frozenset[str]:
        return self.energy.required_conditions

    @property
    def decoder(self) -> nn.Module | None:
        return self.energy.decoder

    @property
    def formula(self) -> Formula | None:
        return self.energy.formula

    @property
    def grounded(self) -> bool:
        return self.energy.grounded

    @property
    def has_value(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.energy.has_value

    @property
    def evidence_has_value(self) -> bool:
        return self.energy.evidence_has_value

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_graphs": _Graphs(), "_checked": None}

    def __str__(self) -> str:
        return str(self.energy)


class _Compiled(torch.autograd.Function):
    """Energies that bring their gradient with them, for expressions that hold a compiled energy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, energy: CompiledEnergy, conditions: dict[str, Any]) -> Tensor:
        energies, gradient = energy.with_gradient(x, **conditions)
        ctx.save_for_backward(gradient)
        return energies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return weights.view(-1, *[1] * (gradient.ndim - 1)) * gradient, None, None


def _apart(energy: Energy) -> Energy:
    """Returns a twin in the modes of the energy: stand-ins of points never meet the caller's modules."""
    copied = twin(energy)
    for old, new in zip(energy.modules(), copied.modules(), strict=True):
        new.training = old.training
    return copied
