"""Gradients of expressions, also over energies that override `with_gradient`.

`Energy.with_gradient` evaluates an expression and computes its gradient by autograd. Terms whose classes override `with_gradient` are then
evaluated by their override: `OwnGradient` is their node in the autograd graph, so sums, weights, mixtures and decoders follow by the chain
rule. Outside of `with_gradient`, as in training, `forward` is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to, zeros
from composable_energy.checks import check_energies
from composable_energy.denoised import DENOISED, is_denoised, is_left_out, seen
from composable_energy.errors import ExpressionError, ShapeError
from composable_energy.notes import note_evaluation

if TYPE_CHECKING:
    from composable_energy.energy import Energy


@dataclass(frozen=True)
class Use:
    """A call of an energy whose gradient is not that of autograd: the energy, the points with shape $(B, *)$, conditions and gradient."""

    energy: Energy
    x: Tensor
    conditions: dict[str, Any]
    gradient: Tensor


class Evaluation:
    """One evaluation of an expression: all that its parts know of each other. It belongs to a thread.

    Args:
        root: The energy whose `with_gradient` runs, which uses its `forward`, also if its class overrides it; None outside of one.
        outer: The evaluation around this one, whose other attributes it takes.

    Attributes:
        valueless: Whether a term without value was evaluated.
        memo: Results of parts that several terms share; see `memo`.
        uses: Collects the calls inside of overrides of `with_gradient`.
        constant: Collects the calls of energies that autograd finds constant.
        given: The values of some energies; see `substituting`.
    """

    __slots__ = ("constant", "given", "memo", "root", "uses", "valueless")

    def __init__(self, root: Energy | None, outer: Evaluation | None = None) -> None:
        self.root, self.valueless = root, False
        self.memo: dict[Any, Any] | None = None
        self.uses: list[Use] | None = None
        self.constant: list[Use] | None = None
        self.given: Mapping[Any, Tensor] | None = None
        if outer is not None:
            self.memo, self.uses, self.constant, self.given = outer.memo, outer.uses, outer.constant, outer.given


EVALUATION: ContextVar[Evaluation | None] = ContextVar("evaluation", default=None)


@contextmanager
def _evaluation(**changes: Any) -> Iterator[None]:
    """A context with an evaluation that differs from the current one in some attributes."""
    outer = EVALUATION.get()
    inner = Evaluation(None if outer is None else outer.root, outer)
    for name, value in changes.items():
        setattr(inner, name, value)
    token = EVALUATION.set(inner)
    try:
        yield
    finally:
        EVALUATION.reset(token)
        if outer is not None and inner.root is outer.root:
            outer.valueless |= inner.valueless


@contextmanager
def recording(*, constant: bool = False) -> Iterator[list[Use]]:
    """A context that lists the calls inside of overrides of `with_gradient`, or of energies that autograd finds constant.

    Args:
        constant: Whether to list the latter.
    """
    uses: list[Use] = []
    with _evaluation(**{"constant" if constant else "uses": uses}):
        yield uses


def substituting(energies: Mapping[Energy, Tensor]) -> AbstractContextManager[None]:
    """Returns a context in which some energies have given values at all points, so that an expression is a function of these values.

    It gives a value to energies that have none, such as scores. Terms that need values do not refuse energies without one inside of it.

    Args:
        energies: The values of energies, each with shape $(B,)$.
    """
    return _evaluation(given=energies)


def substituted() -> Mapping[Any, Tensor] | None:
    """Returns the given values of energies; None outside of `substituting`."""
    evaluation = None if torch.compiler.is_dynamo_compiling() else EVALUATION.get()  # `torch.compile` cannot trace a context variable
    return None if evaluation is None else evaluation.given


def evaluate(energy: Energy, x: Tensor, conditions: dict[str, Any], forward: Callable[..., Tensor]) -> Tensor:
    """Returns the energies, with shape $(B,)$, of points with shape $(B, *)$.

    Args:
        energy: The energy.
        x: The points.
        conditions: Its conditions.
        forward: Its `forward` with the hooks of the module.

    Raises:
        ShapeError, DtypeError: The energies are not a floating tensor of shape $(B,)$.
        ExpressionError: The energy has no value.
    """
    kind = type(energy)
    if not torch.compiler.is_dynamo_compiling():
        evaluation = EVALUATION.get()
        given = None if evaluation is None else evaluation.given
        if given and energy in given:
            return given[energy]
        if DENOISED.get() is not None and is_denoised(x) and not energy.terms and "sigma" not in energy.conditions:
            if is_left_out(x):
                return zeros(x)
            x = seen(x)
    try:
        if not kind.has_own_gradient and kind.has_value is not False:
            energies = check_energies(energy, forward(x, **conditions), x)
            if x.requires_grad and not energies.requires_grad:
                note_detached(energy, x, conditions)
            return energies
        if uses_own_gradient(energy, x):
            return check_energies(energy, OwnGradient.apply(x, energy, conditions), x)  # pyright: ignore[reportArgumentType]
        if not energy.has_value and not _is_root(energy):
            raise ExpressionError(
                f"{energy} has a gradient and no value (`has_value` is False), so it cannot be evaluated: use `with_gradient`, or a "
                "sampler that needs only gradients, such as `langevin`."
            )
        return check_energies(energy, forward(x, **conditions), x)
    except Exception as error:
        note_evaluation(error, energy, x)
        raise


def note_detached(energy: Energy, x: Tensor, conditions: dict[str, Any]) -> None:
    """Lists a call whose energies do not depend on the points for autograd, inside of `recording(constant=True)`."""
    evaluation = EVALUATION.get()
    if evaluation is not None and evaluation.constant is not None and not energy.terms:
        evaluation.constant.append(Use(energy, x.detach(), conditions, torch.zeros_like(x)))


def value_and_gradient(energy: Energy, x: Tensor, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns energies, with shape $(B,)$, and gradients, with shape $(B, *)$, by autograd; see `Energy.with_gradient`.

    Raises:
        ExpressionError: The energies have no gradient.
    """
    if torch.is_inference_mode_enabled():  # the check is cheaper than always entering the context
        with torch.inference_mode(False):
            return value_and_gradient(energy, x, conditions)
    if conditions:
        conditions = {name: _outside_inference(value) for name, value in conditions.items()}
    evaluation = Evaluation(energy, EVALUATION.get())
    token = EVALUATION.set(evaluation)
    try:
        with torch.enable_grad():
            point = (x.clone() if x.is_inference() else x).detach().requires_grad_()
            energies = energy(point, **conditions)
            gradient = None
            if energies.requires_grad:
                # The sum, because gradients of vectors make torch import sympy, which takes half a second.
                gradient = torch.autograd.grad(energies.sum(), point, allow_unused=True)[0]
    finally:
        EVALUATION.reset(token)
    if gradient is None:
        raise ExpressionError(f"{energy} has no gradient at its points: it is constant, or detaches them (`detach`, `no_grad`, NumPy).")
    energies = energies.detach()
    if evaluation.valueless:
        energies = torch.where(energies.isfinite(), 0.0, energies)
    return energies, gradient


def evaluating_together(root: Energy) -> AbstractContextManager[None]:
    """Returns a context in which energies are evaluated as terms of an expression, so that terms with their own gradient use it.

    Args:
        root: An energy that has them as its terms.
    """
    return _evaluation(root=root)


def uses_own_gradient(energy: Energy, x: Tensor) -> bool:
    """Returns whether an energy is evaluated by its override of `with_gradient`: as a term, when a gradient is needed.

    Raises:
        ExpressionError: The energy has no value, but the expression has `has_value` set.
    """
    evaluation = current()
    if evaluation is None or evaluation.root is energy or not (x.requires_grad and torch.is_grad_enabled()):
        return False
    if not energy.has_value:
        evaluation.valueless = True
        if evaluation.root is not None and evaluation.root.has_value:
            raise ExpressionError(
                f"{evaluation.root} uses {energy}, which has a gradient and no value: set `has_value = False` in "
                f"{type(evaluation.root).__name__} if its gradient is right without that value."
            )
    return True


def _is_root(energy: Energy) -> bool:
    """Returns whether this energy is the root of the current evaluation."""
    evaluation = current()
    if evaluation is None or evaluation.root is not energy:
        return False
    evaluation.valueless = evaluation.valueless or not energy.has_value
    return True


def _outside_inference(value: Any) -> Any:
    """Returns a copy of a tensor of inference mode, which autograd refuses; any other value as it is."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def current() -> Evaluation | None:
    """Returns the evaluation of this thread; None outside of `with_gradient`."""
    evaluation = EVALUATION.get()
    return None if evaluation is None or evaluation.root is None else evaluation


class OwnGradient(torch.autograd.Function):
    """The energies of points with shape $(B, *)$, with the gradient of an override of `with_gradient`.

    Raises:
        ShapeError: The gradient does not have the shape of the points.
        ExpressionError: The gradient is to be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, energy: Energy, conditions: dict[str, Any]) -> Tensor:
        point = x.detach()
        with _evaluation(root=None):
            energies, gradient = energy.with_gradient(point, **conditions)
        if gradient.shape != x.shape:
            raise ShapeError(f"`with_gradient` of {energy} gave a gradient of shape {tuple(gradient.shape)} for points {tuple(x.shape)}.")
        gradient = gradient.detach()
        evaluation = EVALUATION.get()
        if evaluation is not None and evaluation.uses is not None:
            evaluation.uses.append(Use(energy, point, conditions, gradient))
        ctx.save_for_backward(gradient)
        ctx.energy = energy
        return energies.detach()

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise ExpressionError(
                f"The gradient of {ctx.energy} is that of its own `with_gradient`, and has no derivative: "
                "`create_graph` inside of an energy needs terms whose gradient is autograd's."
            )
        (gradient,) = ctx.saved_tensors
        weights = unsqueeze_to(weights, gradient)
        return torch.where(weights == 0, 0.0, weights * gradient), None, None
