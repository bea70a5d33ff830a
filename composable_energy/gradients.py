"""Gradients of expressions, also over energies that override `with_gradient`.

`Energy.with_gradient` evaluates an expression and computes its gradient by autograd. Terms whose classes override `with_gradient` are then
evaluated by their override: `OwnGradient` is their node in the autograd graph, so sums, weights, mixtures and decoders follow by the chain
rule. Outside of `with_gradient`, as in training, `forward` is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to, zeros
from composable_energy.checks import check_energies
from composable_energy.errors import ExpressionError, ShapeError
from composable_energy.evaluation import THREAD, Use, current, evaluating, is_denoised, is_left_out, memo_scope, seen
from composable_energy.notes import note_evaluation

if TYPE_CHECKING:
    from composable_energy.energy import Energy


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
    evaluation = THREAD.evaluation
    if evaluation is None or evaluation.memo is None:
        if not torch.compiler.is_dynamo_compiling():
            with memo_scope():
                return evaluate(energy, x, conditions, forward)
    else:
        if evaluation.given and energy in evaluation.given:
            return evaluation.given[energy]
        if evaluation.denoised is not None and is_denoised(x) and not energy.terms and "sigma" not in energy.conditions:
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
    evaluation = THREAD.evaluation
    if evaluation is not None and evaluation.constant is not None and not energy.terms:
        evaluation.constant.append(Use(energy, x.detach(), conditions, torch.zeros_like(x)))


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


class OwnGradient(torch.autograd.Function):
    """The energies of points with shape $(B, *)$, with the gradient of an override of `with_gradient`.

    Raises:
        ShapeError: The gradient does not have the shape of the points.
        ExpressionError: The gradient is to be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, energy: Energy, conditions: dict[str, Any]) -> Tensor:
        point = x.detach()
        with evaluating(root=None):
            energies, gradient = energy.with_gradient(point, **conditions)
        if gradient.shape != x.shape:
            raise ShapeError(f"`with_gradient` of {energy} gave a gradient of shape {tuple(gradient.shape)} for points {tuple(x.shape)}.")
        gradient = gradient.detach()
        evaluation = THREAD.evaluation
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
