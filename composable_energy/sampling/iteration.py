r"""A function of tensors that is applied several times, such as a leapfrog: a compiled energy takes several as one function.

A leapfrog of few chains consists of small operations, whose calls cost more than their arithmetic. Trajectories have different lengths,
and a function for each would take minutes to compile. In compiled steps the length is a tensor, and the applications are a loop inside of
the graph. Steps that are not compiled, such as those of a fourth step size, take eight, two and one leapfrogs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from composable_energy.energy import Energy
from composable_energy.errors import OptionError
from composable_energy.sampling.faults import GuardedEnergy

_LOGGER = logging.getLogger("composable_energy.sampling")
_SIZES = (8, 2, 1)
MOST_NUMBERS = 2**16
"""The largest number of coordinates of all points of a block on the CPU, which its cache holds."""
_MOST_NODES = 250  # operations of an energy and its gradient; the compiler takes long for more, and their calls are long enough
_MOST_BLOCKS = 9  # that an energy keeps
_TOGETHER = 2  # cheap applications in a turn of a loop
_MOST_NUMBERS = 2**15  # of all operations of a cheap application; the last turn may discard one

Tensors = tuple[Tensor, ...]
Step = Callable[..., Tensors]


def iterate(
    function: Step, energy: Energy, tensors: Tensors, constants: Tensors, count: int | Repetitions, *, fuse: bool = True
) -> Tensors:
    r"""Returns the tensors $f^n(t)$ after `count` applications of `tensors = function(energy, *tensors, *constants)`.

    With a compiled energy (`compile=True`) eight, two and single applications run as compiled functions, if the energy and the tensors are
    small. They agree with the function up to rounding, which is checked when they are compiled.

    Args:
        function: A pure function of tensors by torch's operations; equal functions share what was compiled. It changes no tensor in place.
        energy: The energy, with `energy_and_gradient` for its gradients.
        tensors: The tensors that change; they keep their shapes and dtypes. The first has a row for each chain.
        constants: The tensors that do not.
        count: The number of applications; one by `Noise.of_step` becomes a loop of compiled steps.
        fuse: Whether to compile them. To compile takes seconds, for which a tuning of the sampler would wait.
    """
    if isinstance(count, Repetitions):
        return count.apply(function, energy, tensors, constants)
    compiled = _compiled_form(energy, tensors) if fuse else None
    for size in _SIZES if compiled is not None else ():
        block = None if count < size else _block(size, function, compiled, tensors, constants)
        while block is not None and count >= size:
            tensors = tuple(block(*tensors, *constants))[: len(tensors)]
            count -= size
    for _ in range(count):
        tensors = function(energy, *tensors, *constants)
    return tensors


class Repetitions:
    """A number of applications that compiled steps know as a tensor.

    The first step, which is not compiled, records a single application; the graph of the steps has a loop of it.

    Args:
        number: The number, with shape $()$.
        recorded: The recorded applications of a step by function and shapes.
    """

    def __init__(self, number: Tensor, recorded: dict[Hashable, Any]) -> None:
        self.number, self.recorded = number, recorded

    def apply(self, function: Step, energy: Energy, tensors: Tensors, constants: Tensors) -> Tensors:
        """Returns the tensors after the applications; see `iterate`."""
        from composable_energy.sampling.graph import record  # late: torch's compiler is slow to import

        inputs = (*tensors, *constants)
        key = function, tuple((one.shape, one.dtype) for one in inputs)
        if key in self.recorded:
            once, held = self.recorded[key]
            return self._loop(once, held, tensors, constants)
        graph = record(lambda *inputs: function(energy, *inputs), inputs)
        self.recorded[key] = graph, _lift(graph)
        return iterate(function, energy, tensors, constants, int(self.number))

    def _loop(self, once: torch.fx.GraphModule, held: Tensors, tensors: Tensors, constants: Tensors) -> Tensors:
        count, together = len(tensors), _TOGETHER if _is_cheap(once) else 1

        def body(left: Tensor, *inputs: Tensor) -> Tensors:
            now, others = inputs[:count], inputs[count:]
            for done in range(together):
                new = once(*now, *others)
                now = new if done == 0 else tuple(torch.where(left > done, *both) for both in zip(new, now, strict=True))
            return left - together, *(one.clone() for one in now)  # results must not share memory

        start = (self.number.clone(), *(one.clone() for one in tensors))
        # The operator itself: `torch.while_loop` traces its functions again, for any shapes.
        return torch.ops.higher_order.while_loop(lambda left, *_: left > 0, body, start, (*constants, *held))[1 : count + 1]


def _is_cheap(graph: torch.fx.GraphModule) -> bool:
    """Returns whether a turn of a loop takes longer than the operations of a graph: few numbers, and no products of matrices."""
    from composable_energy.sampling.graph import count_flops  # late, as above

    values = [node.meta.get("val") for node in graph.graph.nodes]
    tensors = [one for value in values for one in (value if isinstance(value, tuple | list) else (value,)) if isinstance(one, Tensor)]
    return not count_flops(graph) and sum(one.numel() for one in tensors) <= _MOST_NUMBERS


def _lift(graph: torch.fx.GraphModule) -> Tensors:
    """Makes the tensors that a graph holds inputs after the others, and returns them: a loop takes all tensors as inputs."""
    held: dict[int, Tensor] = {}
    inputs: dict[int, torch.fx.Node] = {}
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            value = getattr(graph, node.target)
            if id(value) not in held:
                held[id(value)] = value
                with graph.graph.inserting_after(last):
                    last = inputs[id(value)] = graph.graph.placeholder(f"held_{len(held)}")
                last.meta["val"] = value
            node.replace_all_uses_with(inputs[id(value)])
            graph.graph.erase_node(node)
    graph.recompile()
    return tuple(held.values())


def _compiled_form(energy: Energy, tensors: Tensors) -> Any:
    """Returns the compiled energy; None where there is none, or the points are large."""
    energy = energy.energy if isinstance(energy, GuardedEnergy) else energy
    return energy if hasattr(energy, "compiled_steps") and _SIZES[0] * tensors[0].numel() <= MOST_NUMBERS else None


def _block(size: int, function: Step, energy: Any, tensors: Tensors, constants: Tensors) -> Step | None:
    """Returns several applications as one compiled function; None where they cannot be compiled, or it is not worth it."""
    inputs = (*tensors, *constants)
    key: Hashable = size, function, tuple((one.shape, one.dtype, one.device) for one in inputs)

    def make(inside: Energy) -> Step | None:
        def applied(*inputs: Tensor) -> Tensors:
            found, between = inputs[: len(tensors)], Tensors()
            for _ in range(size):
                between = *found, *between
                found = function(inside, *found, *inputs[len(tensors) :])
            return *found, *between[: -len(tensors)]  # results, or the compiler would compute them again for each use

        return _compile(applied, inputs, f"{size} of {function}")

    return energy.compiled_steps(key, tensors[0], _MOST_NODES, make, _MOST_BLOCKS)


def _compile(applied: Step, inputs: Tensors, what: str) -> Step | None:
    """Compiles a function, and checks it against itself without compilation."""
    from composable_energy.sampling.graph import close, compile_graph, first_line, record, run  # late: torch's compiler is slow to import

    try:
        block, found = compile_graph(record(applied, inputs), inputs)
        pairs = zip(found, applied(*inputs), strict=True)
        if all(close(new, old, math.sqrt(torch.finfo(old.dtype).eps)) for new, old in pairs):
            return lambda *inputs: run(block, inputs)
    except OptionError:
        raise
    except Exception as error:  # whatever a function does that cannot be recorded; errors of the energy are raised by single applications
        _LOGGER.debug("%s is applied without compilation: %s", what, first_line(error))
    return None
