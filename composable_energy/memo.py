r"""Sub-networks that several terms share are evaluated once for each evaluation of an expression, forwards and backwards.

While an expression is evaluated, a memo keeps what bases, networks of events, decoders and modules that are `shared` gave for one and
the same tensor of points. It ends with the evaluation, and belongs to the thread. Autograd then sees one tensor with several uses, so
the way back is shared, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.gradients import current

__all__ = ["evaluate_once", "is_repeated", "memo_scope", "memoize", "shared"]

_REPEATED = "repeated"
_MEMO: ContextVar[dict[Any, Any] | None] = ContextVar("memo", default=None)


class memo_scope:  # noqa: N801  (a context manager, as a class because that is cheap)
    """A context in which evaluations are remembered; inside another it adds its repeated parts alone.

    Args:
        repeated: Sub-expressions that occur more than once, whose evaluations `is_repeated` then says to remember.
    """

    _token: Token[Any] | None = None

    def __init__(self, repeated: Sequence[object] = ()) -> None:
        self.repeated = repeated

    def __enter__(self) -> None:
        if torch.compiler.is_compiling():
            return
        memo = _MEMO.get()
        if memo is None:
            memo = {}
            self._token = _MEMO.set(memo)
        if self.repeated:
            memo.setdefault(_REPEATED, set()).update(map(id, self.repeated))

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _MEMO.reset(self._token)


def is_repeated(item: object) -> bool:
    """Returns whether a sub-expression occurs more than once in the expression that is being evaluated."""
    memo = None if torch.compiler.is_compiling() else _MEMO.get()
    return bool(memo) and id(item) in memo.get(_REPEATED, ())


def evaluate_once(
    function: Callable[..., Any], x: Tensor, conditions: Mapping[str, Any], call: Callable[..., Any] | None = None, *, always: bool = False
) -> Any:
    """Returns `function(x, **conditions)`, remembered while an expression is evaluated.

    It is another call if the points were changed in place, if a module has other weights (`torch.func.functional_call`), with and
    without gradients, and with and without those that energies compute themselves. A module in training mode is not remembered, as its
    masks are to differ, unless it is one sub-expression that occurs several times.

    Args:
        function: What is called; one and the same object is one function.
        x: The points; one and the same tensor is the same points.
        conditions: The conditions, compared by identity.
        call: What computes it, if that is not `function` itself.
        always: Whether to remember it in training mode, too.
    """
    call = call or function
    if torch.compiler.is_compiling():  # whose graph keeps no memo
        return call(x, **conditions)
    module = function.__self__ if isinstance(function, MethodType) else function
    if (getattr(module, "training", False) and not always) or x.is_inference():
        return call(x, **conditions)
    identity = (id(module), id(function.__func__)) if isinstance(function, MethodType) else id(module)
    # `_version` counts writes to a tensor; it is not public, and torch has no other counter (`test_identity.py` pins it).
    key = identity, id(x), x._version, tuple((name, id(value)) for name, value in conditions.items()), _weights(module)
    return memoize(key, (function, x, conditions), lambda: call(x, **conditions))


def memoize(key: tuple[Any, ...], holds: object, compute: Callable[[], Any]) -> Any:
    """Returns what `compute` gives, or gave for an equal key while the same expression is evaluated.

    Args:
        key: Of values, and of ids of what `holds`.
        holds: What the key has ids of, so that none is given to another object.
        compute: Takes no arguments.
    """
    memo = None if torch.compiler.is_compiling() else _MEMO.get()
    if memo is None:
        return compute()
    key = (torch.is_grad_enabled(), current() is not None, *key)
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
    """Returns a module that is evaluated once where several terms of an expression use it, such as the features under several heads.

    Bases, networks of events and decoders are shared anyway; say it of a part inside of networks, before they are built. What it returns
    must not be changed in place. In training mode each use is an evaluation of its own.

    Args:
        module: Called with the points, or with what was made of them once.

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
    """Returns the ids of a module's parameters, in a quarter of the time of `parameters()`."""
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
