"""Compiled graphs: the operations of an energy and its gradient as one function, and the values that an energy holds."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode

from composable_energy.energy import Energy
from composable_energy.errors import OptionError
from composable_energy.identity import dense_parts
from composable_energy.twins import PLAIN, contents

Function = Callable[..., tuple[Tensor, Tensor]]
ANYTHING = object()  # equals every value
_ALL_TRUE = getattr(torch, "_is_all_true", None)  # how distributions look at their checks

# Weights are constants: convolutions get them in their preferred layout. Short loops are left to the C++ compiler, which unrolls them:
# half the time for mixtures on a plane (benchmarks/composition.py). Graphs are compared with what they stand for instead of asserting
# shapes at each of their operations, which takes a sixth of the time of small loops. Results that are used again are stored after 16
# operations, not 50: the compiler repeats all before each use, so its time doubles with each step of a recursion (an ODE, a time series).
_OPTIONS: dict[str, Any] = {
    "freezing": True,
    "cpp.enable_loop_tail_vec": False,
    "size_asserts": False,
    "alignment_asserts": False,
    "realize_opcount_threshold": 16,
}


def held_by(energy: Energy, skip: type) -> tuple[list[Any], tuple[bool, ...]]:
    """Returns the values that an energy holds, without objects of one class, and the modes of its modules, in a fixed order."""
    values, modes = [], []
    for item in contents(energy):
        if isinstance(item, nn.Module):
            modes.append(item.training)
        if not isinstance(item, skip):
            code = item.__code__ if isinstance(item, types.FunctionType) else None
            values.append(item if isinstance(item, (Tensor, *PLAIN)) else code or type(item))
    return values, tuple(modes)


def copied(held: list[Any]) -> list[Any]:
    """Returns held values with copies of the tensors, which may change in place."""
    return [item.detach().clone() if isinstance(item, Tensor) else item for item in held]


def all_same(held: list[Any], before: list[Any]) -> bool:
    """Returns whether two lists of held values are equal."""
    return len(held) == len(before) and all(map(same, held, before))


def same(new: Any, old: Any) -> bool:
    """Returns whether two held values are equal, tensors to the bit."""
    if isinstance(new, Tensor) and old is not ANYTHING:
        if not isinstance(old, Tensor) or any(getattr(new, name) != getattr(old, name) for name in ("dtype", "device", "shape", "layout")):
            return False
        return all(torch.equal(one, other) for one, other in zip(dense_parts(new.detach()), dense_parts(old), strict=True))
    return new is old or old is ANYTHING or (type(new) is type(old) and new == old)


def close(new: Tensor, old: Tensor, tolerance: float) -> bool:
    """Returns whether two results differ by no more than a share of the largest number."""
    largest = old[old.isfinite()].abs().max().item() if bool(old.isfinite().any()) else 0.0
    return torch.allclose(new, old, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def trace(energy: Energy, x: Tensor, conditions: dict[str, Tensor]) -> torch.fx.GraphModule:
    """Returns the operations of an energy and its gradient at points and conditions of such shapes."""

    def function(x: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        with _Checks() as checks:
            energies, gradient = energy.with_gradient(x, **dict(zip(conditions, values, strict=True)))
        for valid in checks.results:
            by_chain = valid.ndim > 0 and len(valid) == len(x)
            valid = valid.reshape(len(x), -1).all(1) if by_chain else valid.all()
            energies = torch.where(valid, energies, torch.nan)
            gradient = torch.where(valid.reshape(-1, *[1] * (x.ndim - 1)), gradient, torch.nan)
        return energies, gradient

    return record(function, (x, *conditions.values()))


class _Checks(TorchFunctionMode):
    """Collects what `torch.distributions` checks of parameters and values. A recorded function cannot stop; its results become nan."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _ALL_TRUE and not kwargs:
            self.results.append(args[0])
            return True
        return func(*args, **(kwargs or {}))


def record(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> torch.fx.GraphModule:
    """Returns the operations of a function of tensors of such shapes."""
    from torch.fx.experimental.proxy_tensor import make_fx

    # Fake tensors stand in for the inputs, while weights stay real; torch has no public name for that.
    return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)


def run(function: Function, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Runs a compiled function in the mode in which it was compiled; in another mode torch would compile it again."""
    if not (torch.is_grad_enabled() or torch.is_inference_mode_enabled()):
        return function(*inputs)
    with torch.inference_mode(False), torch.no_grad():
        return function(*inputs)


def compile_graph(graph: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Function, tuple[Tensor, Tensor]]:
    """Returns a compiled graph, and its results at the inputs.

    Raises:
        OptionError: This machine has no compiler that works.
    """
    try:
        return _compile_graph(graph, inputs)
    except Exception as cause:
        x = torch.zeros(2, device=inputs[0].device)
        try:
            _compile_graph(torch.fx.symbolic_trace(lambda x: x.cos()), (x,))
        except Exception as error:
            cpu = x.device.type == "cpu"
            needs = "a C++ compiler (Debian, Ubuntu: `apt install g++`; macOS: `xcode-select --install`)" if cpu else "Triton"
            if " " in torch.__file__:
                needs += f", and torch in a path without a space (it is in {torch.__file__})"
            raise OptionError(
                f"compile=True needs what torch.compile needs on {x.device.type}: {needs}. It fails on the simplest function here, with "
                f"{first_line(error)}. Install it, or leave out compile=True."
            ) from cause
        raise


def count_flops(graph: torch.fx.GraphModule) -> int:
    """Returns the floating-point operations of all products of matrices and convolutions of a recorded graph."""
    from torch.fx.node import map_arg
    from torch.utils.flop_counter import flop_registry

    total = 0
    for node in graph.graph.nodes:
        count = flop_registry.get(getattr(node.target, "overloadpacket", None))
        if count is not None:
            args, named = map_arg((node.args, node.kwargs), lambda node: node.meta["val"])
            with suppress(Exception):  # a formula that does not know such arguments; the count is a guide only
                total += count(*args, **named, out_val=node.meta["val"])
    return total


def draws_random_numbers(graph: torch.fx.GraphModule) -> bool:
    """Returns whether an operation of a recorded graph draws random numbers; attention without dropout does not, whatever torch says."""
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            arguments = node.normalized_arguments(graph, normalize_to_only_use_kwargs=True)
            if arguments is None or arguments.kwargs.get("dropout_p") != 0:
                return True
    return False


def first_line(error: Exception) -> str:
    """Returns the class of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _compile_graph(graph: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Function, Any]:
    checks = Distribution._validate_args  # torch's compiler turns them off for the whole process
    try:
        return _compile_and_run(graph, inputs)
    finally:
        Distribution.set_default_validate_args(checks)


def _compile_and_run(graph: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Function, Any]:
    try:
        function = torch.compile(graph, fullgraph=True, dynamic=False, options=_OPTIONS)
    except RuntimeError:  # a version of torch without one of the options
        function = torch.compile(graph, fullgraph=True, dynamic=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler warns about its own code
        return function, run(function, inputs)
