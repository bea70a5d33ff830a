"""One call of a network for all of its concepts in an expression."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.algebra import Conditioned
from composable_energy.energies.evaluation import current

Conditions = Mapping[str, Tensor]
Check = Callable[[Tensor, dict[str, Any]], Conditions]
Gradient = Callable[[Tensor, Conditions], Tensor]


def batched_gradient(energy: Energy, x: Tensor, conditions: Conditions, check: Check, gradient: Gradient) -> Tensor | None:
    """Returns the gradient of a leaf from a batch with all conditions under which the expression evaluates it; None if it stands alone.

    The expression is that of the current `with_gradient`. Conditions with one row for each chain are not batched.
    """
    evaluation = current()
    if evaluation is None or not x.requires_grad or torch.compiler.is_compiling():
        return None
    root = evaluation.root
    if root is energy or not isinstance(root, Energy):
        return None
    sigma = conditions["sigma"]

    # `_version` counts writes to a tensor; the memo of the expression ends with its evaluation, and holds what the key names.
    memo, key = evaluation.memo, ("batched", id(energy), id(x), x._version, id(sigma))
    if memo is None:
        return None
    if key not in memo:
        memo[key] = _gradients(root, energy, x, conditions, check, gradient), (energy, x, sigma)
    return next((found for use, found in memo[key][0] if _same(use, conditions)), None)


def _gradients(
    root: Energy, energy: Energy, x: Tensor, conditions: Conditions, check: Check, gradient: Gradient
) -> list[tuple[Conditions, Tensor]]:
    """Returns all conditions under which an expression evaluates a leaf at these points, with the gradients."""
    sigma, point, uses = conditions["sigma"], x.detach(), [conditions]
    for values in _bound_values(root, energy):
        rows = check(x, {"sigma": sigma, **values})
        if torch.equal(rows["sigma"], sigma) and _alike(rows, conditions) and not any(_same(rows, use) for use in uses):
            uses.append(rows)
    if len(uses) == 1:
        return [(conditions, gradient(point, conditions))]
    joined = {name: torch.cat([use[name] for use in uses]) for name in conditions}
    return list(zip(uses, gradient(torch.cat([point] * len(uses)), joined).chunk(len(uses)), strict=True))


def _bound_values(root: Energy, energy: Energy) -> list[Mapping[str, Any]]:
    """Returns the conditions that are bound where a leaf occurs in an expression, without those of which each chain has its own."""
    found: list[Mapping[str, Any]] = []
    todo: list[tuple[Energy, Mapping[str, Any]]] = [(root, {})]
    seen: set[tuple[Energy, tuple[tuple[str, int], ...]]] = set()
    for node, outer in todo:
        values = {**outer, **node.values} if isinstance(node, Conditioned) else outer
        for part in dict.fromkeys((*node.terms, *(base.energy for base in node.bases))):
            if part is energy:
                complete = energy.required_conditions <= values.keys() | {"sigma"}
                if complete and not any(isinstance(value, Tensor) and value.ndim > 0 and len(value) > 1 for value in values.values()):
                    found.append({name: value for name, value in values.items() if name in energy.conditions})
            key = part, tuple((name, id(value)) for name, value in values.items())
            if key not in seen:
                seen.add(key)
                todo.append((part, values))
    return found


def _alike(some: Conditions, others: Conditions) -> bool:
    """Returns whether rows of conditions can be joined."""
    return some.keys() == others.keys() and all((v.shape, v.dtype) == (others[name].shape, others[name].dtype) for name, v in some.items())


def _same(some: Conditions, others: Conditions) -> bool:
    return _alike(some, others) and all(v is others[name] or torch.equal(v, others[name]) for name, v in some.items())
