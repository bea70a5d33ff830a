r"""One evaluation of an expression: what its parts share, given values, other points of some terms, values and gradients.

An evaluation belongs to a thread, and an inner one takes over what the outer one knows. Its memo keeps the results of bases, networks of
events, decoders, `shared` modules and repeated terms for each tensor of points, so that each is computed once, also in the backward pass.

`Energy.with_gradient` evaluates an expression and computes its gradient by autograd. Terms whose classes override `with_gradient` are then
evaluated by their override: `OwnGradient` is their node in the autograd graph, so sums, weights, mixtures and decoders follow by the chain
rule. Outside of `with_gradient`, as in training, `forward` is used.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from composable_energy.arithmetic import unsqueeze_to, zeros
from composable_energy.energies.checks import as_points, changed_points, check_energies, note_evaluation, weights_of
from composable_energy.errors import ExpressionError, ShapeError
from composable_energy.supports import Support, evaluate_inside, same_support

if TYPE_CHECKING:
    from composable_energy.energies.energy import Energy


@dataclass(frozen=True)
class Use:
    """A call of an energy with a gradient of its own; without one, of any function whose result autograd finds constant."""

    energy: Any
    x: Tensor
    conditions: dict[str, Any]
    gradient: Tensor | None
    energies: Tensor | None = None


class Evaluation:
    """One evaluation of an expression. Its attributes are set after its construction, as a call less in each step counts."""

    root: "Energy | None" = None  # whose `with_gradient` runs by its `forward`, also if its class overrides it; None outside of one
    valueless: bool = False  # whether a term without value was evaluated
    memo: dict[Any, Any] | None = None  # results of parts that several terms share; None outside of the evaluation of one energy
    repeated: frozenset[int] = frozenset()  # the ids of sub-expressions that occur more than once
    uses: list[Use] | None = None  # collects the calls of energies whose gradient is not that of autograd
    # The values of some energies, each with shape (B,), of which an expression is a function then; also of scores, which no term refuses.
    given: Mapping[Any, Tensor] | None = None
    # Points that a sampler made inside of a support, compared by identity, and that support: energies on it need not check them.
    inside: tuple[Tensor, Support] | None = None
    # Points with noise, compared by identity; the denoised ones where terms without noise levels are evaluated, None to leave these out;
    # and the noise level, for terms that allow for the spread of the data there, None to let none do so.
    denoised: tuple[Tensor | None, Tensor | None, float | None] = (None, None, None)


class _Thread(threading.local):
    evaluation: Evaluation | None = None


THREAD = _Thread()
"""The current evaluation of this thread. `torch.compile` can read it, unlike a context variable; in a graph there is none."""


@contextmanager
def evaluating(**changes: Any) -> Iterator[Evaluation]:
    """A context in which parts are evaluated once, unless `memo=None`, and attributes of the evaluation, such as `given`, are set."""
    outer, inner = THREAD.evaluation, Evaluation()
    if outer is not None:
        vars(inner).update(vars(outer), valueless=False)
    vars(inner).update({"memo": {} if inner.memo is None else inner.memo, **changes})
    THREAD.evaluation = inner
    try:
        yield inner
    finally:
        THREAD.evaluation = outer
        if outer is not None and inner.root is outer.root:
            outer.valueless |= inner.valueless


def current() -> Evaluation | None:
    """Returns the evaluation of this thread; None outside of `with_gradient`."""
    return None if (evaluation := THREAD.evaluation) is None or evaluation.root is None else evaluation


def is_left_out(x: Tensor) -> bool:
    """Returns whether terms without noise levels count as 0 at these points."""
    noisy, points, _ = _denoised()
    return noisy is x and points is None


def seen(x: Tensor) -> Tensor:
    """Returns the points where a term made for data, without noise levels, is evaluated; without gradient where such are left out."""
    noisy, points, _ = _denoised()
    return x if noisy is not x else x.detach() if points is None else points


def denoised_level() -> tuple[Tensor, float] | None:
    """Returns the denoised points where terms without noise levels are evaluated now, and the noise level; None if there is none."""
    _, points, sigma = _denoised()
    return None if points is None or sigma is None else (points, sigma)


def _denoised() -> tuple[Tensor | None, Tensor | None, float | None]:
    return Evaluation.denoised if (evaluation := THREAD.evaluation) is None else evaluation.denoised


def note_repeated(items: Sequence[object]) -> None:
    """Notes sub-expressions that occur more than once in the expression under evaluation, so that each is evaluated once."""
    if THREAD.evaluation is not None and THREAD.evaluation.memo is not None:
        THREAD.evaluation.repeated |= {id(item) for item in items}


def evaluate_once(
    function: Callable[..., Any], x: Tensor, conditions: Mapping[str, Any], call: Callable[..., Any] | None = None, *, always: bool = False
) -> Any:
    """Returns `function(x, **conditions)`, or that of `call`, once while an expression is evaluated; in training mode only if `always`."""
    call = call or function
    if torch.compiler.is_dynamo_compiling():  # a compiled graph has no memo
        return call(x, **conditions)
    module = function.__self__ if isinstance(function, MethodType) else function
    if (getattr(module, "training", False) and not always) or x.is_inference():  # dropout masks differ
        return call(x, **conditions)
    # In-place changes, other weights (`torch.func.functional_call`) and another gradient mode are separate calls.
    identity = (id(module), id(function.__func__)) if isinstance(function, MethodType) else id(module)
    # `_version` counts writes to a tensor; it is not public, and torch has no other counter (`test_identity.py` pins it).
    key = identity, id(x), x._version, tuple((name, id(value)) for name, value in conditions.items())
    key = (*key, *map(id, weights_of(module))) if isinstance(module, nn.Module) else key
    result = memoize(key, (function, x, conditions), lambda: call(x, **conditions))
    if x.requires_grad and isinstance(result, Tensor) and not result.requires_grad and not hasattr(module, "terms"):
        note_detached(call, x, conditions)
    return result


def memoize(key: tuple[Any, ...], holds: object, compute: Callable[[], Any]) -> Any:
    """Returns `compute()`, once for each key while an expression is evaluated; `holds` are the objects whose ids are in the key."""
    if (evaluation := THREAD.evaluation) is None or evaluation.memo is None or torch.compiler.is_dynamo_compiling():
        return compute()
    memo, key = evaluation.memo, (torch.is_grad_enabled(), evaluation.root is not None, *key)
    if key not in memo:
        memo[key] = compute(), holds
    return memo[key][0]


class SharedModule(nn.Module):
    """A module that is evaluated once for all terms of an expression; see `shared`."""

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
        >>> from torch import nn
        >>> features = ce.shared(nn.Linear(3, 8))
        >>> a, b = (ce.as_energy(nn.Sequential(features, nn.Linear(8, 1), nn.Flatten(0))) for _ in range(2))
        >>> (a & b).eval()(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    return module if isinstance(module, SharedModule) else SharedModule(module)


def evaluate(energy: "Energy", x: Tensor, conditions: dict[str, Any], forward: Callable[..., Tensor]) -> Tensor:
    """Returns the checked energies of checked points; `forward` is that of the energy with the hooks of the module."""
    kind = type(energy)
    if (evaluation := THREAD.evaluation) is None or evaluation.memo is None:
        if not torch.compiler.is_dynamo_compiling():
            with evaluating():
                return evaluate(energy, x, conditions, forward)
    else:
        if evaluation.given and energy in evaluation.given:
            return evaluation.given[energy]
        if evaluation.denoised[0] is x and not energy.terms and "sigma" not in energy.conditions:
            if is_left_out(x):
                return zeros(x)
            x = seen(x)
    if not (kind.infinite_outside or energy.terms or energy.bases or energy.support is None):
        forward = partial(_within, energy, forward)
    counted = not (torch.compiler.is_dynamo_compiling() or x.is_inference())
    version = x._version if counted else 0
    try:
        if not kind.has_own_gradient and kind.has_value is not False:
            energies = check_energies(energy, forward(x, **conditions), x)
            if x.requires_grad and not energies.requires_grad:
                note_detached(energy, x, conditions)
        elif uses_own_gradient(energy, x):
            energies = check_energies(energy, OwnGradient.apply(x, energy, conditions), x)  # pyright: ignore[reportArgumentType]
        else:
            if not energy.has_value:
                if evaluation is None or evaluation.root is not energy:
                    way = "use `with_gradient`, or a sampler that needs only gradients, such as `langevin`"
                    raise ExpressionError(f"{energy} has a gradient and no value (`has_value` is False), so it cannot be evaluated: {way}.")
                evaluation.valueless = True
            energies = check_energies(energy, forward(x, **conditions), x)
        if counted and x._version != version:
            raise changed_points(energy)
        return energies
    except Exception as error:
        note_evaluation(error, energy, x)
        raise


def _within(energy: "Energy", forward: Callable[..., Tensor], x: Tensor, /, **conditions: Any) -> Tensor:
    """Returns energies that are infinite outside of the support of an energy, where it is not evaluated."""
    inside = None if THREAD.evaluation is None else THREAD.evaluation.inside
    if inside is not None and inside[0] is x and (inside[1] is energy.support or same_support(inside[1], energy.support)):
        return forward(x, **conditions)
    return evaluate_inside(energy.support, x, lambda points: check_energies(energy, forward(points, **conditions), points))


def note_detached(energy: Any, x: Tensor, conditions: Mapping[str, Any]) -> None:
    """Lists a call whose result does not depend on the points for autograd, if the uses of energies are collected."""
    if (evaluation := THREAD.evaluation) is not None and evaluation.uses is not None and not getattr(energy, "terms", ()):
        evaluation.uses.append(Use(energy, x.detach(), dict(conditions), None))


def value_and_gradient(self: "Energy", x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
    r"""Returns energies and $\nabla E$ in one pass, without a graph: the method `Energy.with_gradient`.

    Override the method to compute the gradient without autograd; expressions then use the override by the chain rule. An energy without
    value returns zeros for the energies, and $\infty$ where one of its terms is infinite.

    Args:
        x: The points, with shape $(B, *)$, as the gradients.
        **conditions: One value for all points, or one row for each.
    """
    x = x if isinstance(x, Tensor) and x.is_floating_point() else as_points(self, x)
    if torch.is_inference_mode_enabled():  # the check is cheaper than always entering the context
        with torch.inference_mode(False):
            return value_and_gradient(self, x, **conditions)
    if conditions:
        inference = (name for name, value in conditions.items() if isinstance(value, Tensor) and value.is_inference())
        conditions = {**conditions, **{name: conditions[name].clone() for name in inference}}  # autograd refuses such tensors
    outer = THREAD.evaluation
    THREAD.evaluation = evaluation = Evaluation()
    if outer is not None:
        vars(evaluation).update(vars(outer), valueless=False)
    evaluation.root, evaluation.memo = self, {} if evaluation.memo is None else evaluation.memo
    try:
        with torch.enable_grad():
            point = (x.clone() if x.is_inference() else x).detach().requires_grad_()
            energies = self(point, **conditions)
            # The sum, because gradients of vectors make torch import sympy, which takes half a second.
            gradient = torch.autograd.grad((energies.sum(),), point, allow_unused=True)[0] if energies.requires_grad else None
    except Exception as error:  # also of a backward pass
        note_evaluation(error, self, x)
        raise
    finally:
        THREAD.evaluation = outer
    if gradient is None:
        raise ExpressionError(f"{self} has no gradient at its points: it is constant, or detaches them (`detach`, `no_grad`, NumPy).")
    energies = energies.detach()
    return torch.where(energies.isfinite(), 0.0, energies) if evaluation.valueless else energies, gradient


def uses_own_gradient(energy: "Energy", x: Tensor) -> bool:
    """Returns whether an energy is evaluated by its override of `with_gradient`: as a term, when a gradient is needed."""
    if (evaluation := current()) is None or evaluation.root is energy or not (x.requires_grad and torch.is_grad_enabled()):
        return False
    if not energy.has_value:
        evaluation.valueless = True
        if evaluation.root is not None and evaluation.root.has_value:
            raise ExpressionError(
                f"{evaluation.root} uses {energy}, which has a gradient and no value: set `has_value = False` in "
                f"{type(evaluation.root).__name__} if its gradient is right without that value."
            )
    return True


class OwnGradient(torch.autograd.Function):
    """The energies of points with shape $(B, *)$, with the gradient of an override of `with_gradient`, which has no derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, energy: "Energy", conditions: dict[str, Any]) -> Tensor:
        point = x.detach()
        with evaluating(root=None):
            energies, gradient = energy.with_gradient(point, **conditions)
        if gradient.shape != x.shape:
            raise ShapeError(f"`with_gradient` of {energy} gave a gradient of shape {tuple(gradient.shape)} for points {tuple(x.shape)}.")
        ctx.energy, gradient = energy, gradient.detach()
        if (evaluation := THREAD.evaluation) is not None and evaluation.uses is not None:
            evaluation.uses.append(Use(energy, point, conditions, gradient, energies))
        ctx.save_for_backward(gradient)
        return energies.detach()

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            way = "`create_graph` inside of an energy needs terms whose gradient is autograd's"
            raise ExpressionError(f"The gradient of {ctx.energy} is that of its own `with_gradient`, and has no derivative: {way}.")
        (gradient,) = ctx.saved_tensors
        return torch.where((weights := unsqueeze_to(weights, gradient)) == 0, 0.0, weights * gradient), None, None
