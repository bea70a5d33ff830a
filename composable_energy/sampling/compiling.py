r"""Energies whose value and gradient run as one compiled function.

The energy is run once on stand-ins of the points (`make_fx`), which writes down the operations of $E$ *and* of $\nabla E$ as one flat
graph; `torch.compile` then turns it into one kernel or a few. So whatever Python an energy is made of (nodes, checks, diagrams, lambdas)
costs nothing at a step and cannot break the graph; what depends on the *values* of points cannot be written down, and runs as it is.

A graph is for one shape of batch: each shape has its own, so that results do not depend on what was compiled before.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from composable_energy.conditions import CHAINS, rows_for
from composable_energy.energy import Energy, WeightedBase
from composable_energy.errors import OptionError
from composable_energy.events import Formula
from composable_energy.sampling.freezing import reachable

__all__ = ["CompiledEnergy", "compiled"]

Both = Callable[..., tuple[Tensor, Tensor]]

_SHAPES = 8  # so many graphs are worth their compilation; a call has two or three shapes: pilot chains, a chunk, the last chunk

# Weights are constants: convolutions get them in the layout that they like best. Short loops are left to the C++ compiler, which
# unrolls them: half the time for mixtures on a plane (benchmarks/composition.py).
_OPTIONS: dict[str, Any] = {"freezing": True, "cpp.enable_loop_tail_vec": False}


def compiled(energy: Energy) -> Energy:
    """Returns the same energy, whose value and gradient run through `torch.compile`.

    The first call for each shape of a batch takes seconds, later ones in any process less; what is compiled is kept with the result, so
    sample that several times to pay once. Weights count as constants: where they have changed it is compiled again. Numbers that are
    attributes of an energy, such as a weight `w` of `w * A`, stay as they were.

    An energy that decides by the values of its points, draws random numbers, or leaves torch on its way runs as it is, and one
    `RuntimeWarning` tells why. So it does without a gradient (`torch.no_grad`), and for more than 8 shapes.

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


class _Graphs:
    """The compiled functions by what they take, for weights that have been written to so often.

    Without a `__dict__`, so that what looks through an energy for tensors does not find those of a graph; a copy starts without any.
    """

    __slots__ = ("doubted", "functions", "versions", "weights")

    def __init__(self) -> None:
        self.functions: dict[Hashable, Both | None] = {}
        self.doubted: set[Hashable] = set()
        self.weights: list[Tensor] = []
        self.versions: list[int] | None = None  # None before the first call

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Graphs, ()


class CompiledEnergy(Energy):
    """An energy with compiled functions for its value and gradient; see `compiled`."""

    def __init__(self, energy: Energy) -> None:
        super().__init__()
        self.energy = energy
        self.name, self.recommended, self.no_complement = energy.name, energy.recommended, energy.no_complement
        self.event_shape = energy.event_shape
        self._graphs = _Graphs()
        self._warned = False

    def doubt(self) -> None:
        """Has each graph compared with the energy again."""
        self._graphs.doubted = {key for key, function in self._graphs.functions.items() if function is not None}

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        return _Compiled.apply(x, self, conditions) if torch.is_grad_enabled() and x.requires_grad else self.energy(x, **conditions)

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        if type(x) is not Tensor:  # nothing that torch knows, or a stand-in while an expression around this one is compiled
            return self.energy.with_gradient(x, **conditions)
        known = self._tensors(x, conditions) if conditions else {}
        function = self._function(x, known)
        if function is None:
            return self.energy.with_gradient(x, **known)
        return _run(function, (x.detach(), *known.values()))

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.energy.evidence(x, **conditions) if self.bases else self(x, **conditions)

    def _tensors(self, x: Tensor, conditions: dict[str, Any]) -> dict[str, Tensor]:
        """Returns the conditions of the energy as inputs of a graph: all chunks share one, and all noise levels."""
        known = {}
        for name in sorted(self.energy.conditions & conditions.keys()):
            value = conditions[name]
            if isinstance(value, slice):
                value = torch.arange(value.start, value.stop, device=x.device)
            known[name] = value if name == CHAINS else rows_for(name, value, x)
        return known

    def _function(self, x: Tensor, known: dict[str, Tensor]) -> Both | None:
        """Returns the compiled function for such points and conditions, None where the energy runs as it is."""
        graphs = self._graphs
        if [weight._version for weight in graphs.weights] != graphs.versions:
            graphs.weights = [tensor for tensor in reachable(self.energy)[0] if not tensor.is_inference()]
            graphs.functions, graphs.versions = {}, [weight._version for weight in graphs.weights]
            graphs.doubted = set()
        key = self.training, *((name, value.shape, value.stride(), value.dtype, value.device) for name, value in (("x", x), *known.items()))
        if key in graphs.doubted:
            graphs.doubted.discard(key)
            if not self._agrees(graphs.functions[key], x, known):
                graphs.functions = {}
        if key not in graphs.functions:
            graphs.functions[key] = self._made(x, known)
        return graphs.functions[key]

    def _agrees(self, function: Both | None, x: Tensor, known: dict[str, Tensor]) -> bool:
        made = self.energy.with_gradient(x, **known) if function is None else _run(function, (x.detach(), *known.values()))
        return all(_close(new, old) for new, old in zip(made, self.energy.with_gradient(x, **known), strict=True))

    def _made(self, x: Tensor, known: dict[str, Tensor]) -> Both | None:
        eager = self.energy.with_gradient(x, **known)  # an energy that fails says so itself; what it computes once it has computed
        if len(self._graphs.functions) >= _SHAPES:
            return self._told(f"there are more than {_SHAPES} shapes of batches; take a batch_size that divides the number of chains")
        inputs = (x.detach(), *known.values())
        try:
            graph = _traced(self.energy, x, known)
        except Exception as error:
            return self._told(f"it cannot be traced ({_first_line(error)})")
        if any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in graph.graph.nodes):
            return self._told("it draws random numbers")
        try:
            function = _compiled(graph, inputs)
            made = _run(function, inputs)
        except Exception as error:
            _require_compiler(x.device, error)
            return self._told(f"the compiler fails on it ({_first_line(error)})")
        if not all(_close(new, old) for new, old in zip(made, eager, strict=True)):
            return self._told("it computes something else when it is compiled")
        return function

    def _told(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{self} runs without torch.compile: {reason}.", RuntimeWarning, stacklevel=6)

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

    @property
    def key(self) -> Hashable:
        return self.energy.key

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_graphs": _Graphs()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CompiledEnergy:
        self._graphs.versions = None
        return super()._apply(fn, recurse)

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


def _traced(energy: Energy, x: Tensor, known: dict[str, Tensor]) -> torch.fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    def both(x: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        return energy.with_gradient(x, **dict(zip(known, values, strict=True)))

    return make_fx(both, tracing_mode="fake", _allow_non_fake_inputs=True)(x.detach(), *known.values())


def _run(function: Both, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Always in the mode in which it was compiled; in another it would be compiled again."""
    if not (torch.is_grad_enabled() or torch.is_inference_mode_enabled()):
        return function(*inputs)
    with torch.inference_mode(False), torch.no_grad():
        return function(*inputs)


def _compiled(graph: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Both:
    """Compiles a graph, and runs it once."""
    from torch._inductor import list_options

    options = {name: value for name, value in _OPTIONS.items() if name in list_options()}  # those of this version
    function = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, on what it uses itself
        _run(function, inputs)
    return function


def _require_compiler(device: torch.device, cause: Exception) -> None:
    """Raises if not even the simplest function can be compiled."""
    x = torch.zeros(2, device=device)
    try:
        _compiled(torch.fx.symbolic_trace(lambda x: x.cos()), (x,))
    except Exception as error:
        needs = "a C++ compiler (Debian, Ubuntu: `apt install g++`; macOS: `xcode-select --install`)" if device.type == "cpu" else "Triton"
        if " " in torch.__file__:
            needs += f", and torch in a path without a space (it is in {torch.__file__})"
        raise OptionError(
            f"compile=True needs what torch.compile needs on {device.type}: {needs}. It fails on the simplest function here, with "
            f"{_first_line(error)}. Install it, or leave out compile=True."
        ) from cause


def _close(new: Tensor, old: Tensor) -> bool:
    """Whether two results differ by no more than the order of sums can make."""
    tolerance = math.sqrt(torch.finfo(old.dtype).eps)
    largest = old[old.isfinite()].abs().max().item() if bool(old.isfinite().any()) else 0.0
    return torch.allclose(new, old, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
