"""Limits on what a saved file may build: the size of its expression, and what the plug-ins that it names allocate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FAILURES = (ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError, MemoryError)
"""What building an object from options of a file may raise; errors of this library derive from them."""

LARGEST = 100_000
"""The largest number of nodes of an expression; a node that occurs twice counts twice."""
_DEEPEST = 100  # what loads can also be evaluated, sampled and printed within the recursion limit of Python
_ELEMENTS = 2**26  # that an object may allocate besides 4 times its saved tensors
_OPERATIONS = 100_000  # of torch, besides 100 for each saved tensor; spectral norms of wide networks take 75,000
# What is checked before it allocates; results of other functions are counted after it.
_MAKERS = {"empty", "zeros", "ones", "full", "rand", "randn", "randint", "arange", "eye", "linspace", "repeat", "randperm"}


def check_size(nodes: Sequence[Any]) -> None:
    """Raises if an expression is too large or too deep to be built or evaluated.

    Args:
        nodes: The nodes as JSON data, operands first. Malformed parts are ignored here.

    Raises:
        ValueError: It is.
    """
    sizes: list[int] = []
    depths: list[int] = []
    for node in nodes:
        inside = [i for i in _indices(node) if 0 <= i < len(sizes)]
        sizes.append(1 + sum(sizes[i] for i in inside))
        depths.append(1 + max((depths[i] for i in inside), default=0))
        if sizes[-1] > LARGEST:
            raise ValueError(f"the expression has more than {LARGEST} nodes, where one that occurs twice counts twice")
        if depths[-1] > _DEEPEST:
            raise ValueError(f"the expression is nested more than {_DEEPEST} times")


@contextmanager
def limited(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Limits what torch allocates and computes while an object is built, by the tensors of its saved state.

    Args:
        tensors: The saved tensors of the object, by path.

    Raises:
        ValueError: The object needs much more than its saved state.
    """
    with _Limit(_ELEMENTS + 4 * sum(tensor.numel() for tensor in tensors.values()), _OPERATIONS + 100 * len(tensors)):
        yield


class _Limit(TorchFunctionMode):
    def __init__(self, elements: int, operations: int) -> None:
        super().__init__()
        self.elements, self.operations = elements, operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        arguments = [*args, *kwargs.values()]
        makes = getattr(func, "__name__", "").removeprefix("new_") in _MAKERS
        self._spend(_size(arguments) if makes else 0, 1)
        result = func(*args, **kwargs)
        if not makes and _storage(result) not in {None, *map(_storage, arguments)}:
            self._spend(result.numel(), 0)
        return result

    def _spend(self, elements: int, operations: int) -> None:
        self.elements -= elements
        self.operations -= operations
        if self.elements < 0 or self.operations < 0:
            raise ValueError("its options build something much larger than its saved tensors")


def _storage(value: Any) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) and value.layout == torch.strided else None


def _size(arguments: list[Any]) -> int:
    """Returns the largest number of elements that numbers or tuples of numbers may stand for."""
    numbers = [abs(value) for value in arguments if type(value) is int]
    shapes = [math.prod(value) for value in arguments if isinstance(value, (list, tuple)) and all(type(i) is int for i in value)]
    return max([math.prod(max(number, 1) for number in numbers), *shapes])


def _indices(node: Any) -> Iterator[int]:
    """Yields the nodes inside a node: its terms, and energies in its config."""
    if not isinstance(node, dict):
        return
    terms = node.get("terms")
    yield from (term for term in (terms if isinstance(terms, list) else ()) if type(term) is int)
    todo = [node.get("config")]
    while todo:
        data = todo.pop()
        if isinstance(data, dict):
            index = data.get("$energy")
            if type(index) is int:
                yield index
            todo += data.values()
        elif isinstance(data, list):
            todo += data
