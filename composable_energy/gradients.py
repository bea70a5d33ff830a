"""Energies that compute their gradient themselves, inside expressions.

`Energy.with_gradient` evaluates an expression and takes the gradient by autograd. While it does so, energies inside whose classes override
`with_gradient` are evaluated by their override: `OwnGradient` is the node in the graph, and the rules for sums, weights, mixtures and
decoders follow by the chain rule. Outside of `with_gradient`, as in training, `forward` is used.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from composable_energy.errors import ShapeError

if TYPE_CHECKING:
    from composable_energy.energy import Energy

__all__ = ["Evaluation", "OwnGradient", "Use", "current", "evaluating", "recording", "wide"]


class Evaluation:
    """One evaluation for a gradient.

    Args:
        root: The energy whose `with_gradient` runs; it uses its `forward` even if its class has a `with_gradient` of its own.

    Attributes:
        valueless: Whether an energy without value took part.
    """

    __slots__ = ("root", "valueless")

    def __init__(self, root: Energy) -> None:
        self.root = root
        self.valueless = False


@dataclass(frozen=True)
class Use:
    """One use of an own gradient: the energy, the points with shape $(B, *)$, its conditions, and the gradient there."""

    energy: Energy
    x: Tensor
    conditions: dict[str, Any]
    gradient: Tensor


_EVALUATION: ContextVar[Evaluation | None] = ContextVar("evaluation", default=None)
_USES: ContextVar[list[Use] | None] = ContextVar("uses", default=None)


class evaluating:  # noqa: N801  (a context manager, as a class because that is cheap)
    """A context with an evaluation for a gradient; with None, one without."""

    __slots__ = ("_evaluation", "_token")

    def __init__(self, evaluation: Evaluation | None) -> None:
        self._evaluation = evaluation

    def __enter__(self) -> None:
        self._token: Token[Evaluation | None] = _EVALUATION.set(self._evaluation)

    def __exit__(self, *_: object) -> None:
        _EVALUATION.reset(self._token)


class recording:  # noqa: N801
    """A context that returns a list of the own gradients that are used in it."""

    def __enter__(self) -> list[Use]:
        uses: list[Use] = []
        self._token = _USES.set(uses)
        return uses

    def __exit__(self, *_: object) -> None:
        _USES.reset(self._token)


def current() -> Evaluation | None:
    """Returns the evaluation for a gradient that runs in this thread; None outside of `with_gradient`."""
    return _EVALUATION.get()


class OwnGradient(torch.autograd.Function):
    """The energies of points with shape $(B, *)$, whose gradient is that of the energy's own `with_gradient`.

    Raises:
        ShapeError: The gradient does not have the shape of the points.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, energy: Energy, conditions: dict[str, Any]) -> Tensor:
        point = x.detach()
        with evaluating(None):
            energies, gradient = energy.with_gradient(point, **conditions)
        if gradient.shape != x.shape:
            raise ShapeError(f"`with_gradient` of {energy} gave a gradient of shape {tuple(gradient.shape)} for points {tuple(x.shape)}.")
        gradient = gradient.detach()
        uses = _USES.get()
        if uses is not None:
            uses.append(Use(energy, point, conditions, gradient))
        ctx.save_for_backward(gradient)
        return energies.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        weights = wide(weights, gradient)
        return torch.where(weights == 0, 0.0, weights * gradient), None, None


def wide(values: Tensor, like: Tensor) -> Tensor:
    """Returns one number for each point, with as many axes as points have."""
    return values.view(-1, *[1] * (like.ndim - 1))
