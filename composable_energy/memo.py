r"""Memoization during the evaluation of an expression: sub-networks that several terms share are evaluated once.

A memo keeps the results of bases, networks of events, decoders and `shared` modules for each tensor of points. It belongs to the thread
and ends with the evaluation. Autograd sees one tensor with several uses, so the backward pass is shared, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.gradients import EVALUATION, Evaluation

_REPEATED = "repeated"


class memo_scope:  # noqa: N801  (a class is the cheapest context manager)
    """A context in which evaluations are memoized; a nested one uses the memo of the outer one.

    Args:
        repeated: Sub-expressions that occur more than once; see `is_repeated`.
    """

    _opened: Evaluation | None = None
    _token: Any = None

    def __init__(self, repeated: Sequence[object] = ()) -> None:
        self.repeated = repeated

    def __enter__(self) -> None:
        if torch.compiler.is_dynamo_compiling():
            return
        evaluation = EVALUATION.get()
        if evaluation is None:
            evaluation = Evaluation(None)
            self._token = EVALUATION.set(evaluation)
        if evaluation.memo is None:
            evaluation.memo, self._opened = {}, evaluation
        if self.repeated:
            evaluation.memo.setdefault(_REPEATED, set()).update(map(id, self.repeated))

    def __exit__(self, *_: object) -> None:
        if self._opened is not None:
            self._opened.memo = None
        if self._token is not None:
            EVALUATION.reset(self._token)


def is_repeated(item: object) -> bool:
    """Returns whether a sub-expression occurs more than once in the expression under evaluation."""
    evaluation = None if torch.compiler.is_dynamo_compiling() else EVALUATION.get()
    memo = None if evaluation is None else evaluation.memo
    return bool(memo) and id(item) in memo.get(_REPEATED, ())


def evaluate_once(
    function: Callable[..., Any], x: Tensor, conditions: Mapping[str, Any], call: Callable[..., Any] | None = None, *, always: bool = False
) -> Any:
    """Returns `function(x, **conditions)`, memoized while an expression is evaluated.

    In-place changes of the points, other weights (`torch.func.functional_call`) and another gradient mode are separate calls. A module in
    training mode is not memoized, so that its dropout masks differ, unless `always` is set.

    Args:
        function: The function, compared by identity.
        x: The points, compared by identity.
        conditions: The conditions, compared by identity.
        call: The function to call instead of `function`.
        always: Whether to memoize in training mode, too; for a repeated sub-expression.
    """
    call = call or function
    if torch.compiler.is_dynamo_compiling():  # a compiled graph has no memo
        return call(x, **conditions)
    module = function.__self__ if isinstance(function, MethodType) else function
    if (getattr(module, "training", False) and not always) or x.is_inference():
        return call(x, **conditions)
    identity = (id(module), id(function.__func__)) if isinstance(function, MethodType) else id(module)
    # `_version` counts writes to a tensor; it is not public, and torch has no other counter (`test_identity.py` pins it).
    key = identity, id(x), x._version, tuple((name, id(value)) for name, value in conditions.items()), _weights(module)
    return memoize(key, (function, x, conditions), lambda: call(x, **conditions))


def memoize(key: tuple[Any, ...], holds: object, compute: Callable[[], Any]) -> Any:
    """Returns `compute()`, once for each key while an expression is evaluated.

    Args:
        key: Values, and ids of objects.
        holds: Those objects, which are kept alive so that no id is reused.
        compute: The function.
    """
    evaluation = None if torch.compiler.is_dynamo_compiling() else EVALUATION.get()
    if evaluation is None or evaluation.memo is None:
        return compute()
    memo, key = evaluation.memo, (torch.is_grad_enabled(), evaluation.root is not None, *key)
    if key not in memo:
        memo[key] = compute(), holds
    return memo[key][0]


class SharedModule(nn.Module):
    """See `shared`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, **conditions: Any) -> Any:
        return evaluate_once(self.module, x, conditions)


def shared(module: nn.Module) -> nn.Module:
    """Returns a module that is evaluated once for all terms of an expression, such as the features under several heads.

    Bases, networks of events and decoders are shared without this; use it for a part of several networks, before they are built. Its
    output must not be changed in place. In training mode each use is evaluated.

    Args:
        module: A module that is called with the points, or with the output of another shared module.

    Example:
        >>> import torch, composable_energy as ce
        >>> from torch import nn
        >>> features = ce.shared(nn.Linear(3, 8))
        >>> a, b = (ce.as_energy(nn.Sequential(features, nn.Linear(8, 1), nn.Flatten(0))) for _ in range(2))
        >>> (a & b).eval()(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    return module if isinstance(module, SharedModule) else SharedModule(module)


def _weights(module: object) -> tuple[int, ...]:
    """Returns the ids of the parameters of a module, four times as fast as `parameters()`."""
    found: list[int] = []
    seen: set[int] = set()
    todo = [module] if isinstance(module, nn.Module) else []
    while todo:
        inner = todo.pop()
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        found.extend(map(id, inner._parameters.values()))
        todo.extend(part for part in inner._modules.values() if part is not None)
    return tuple(found)
