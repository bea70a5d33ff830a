"""The interface of operators: what an instrument makes of a point, without its noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Size, Tensor, nn

from composable_energy.errors import ExpressionError


class Operator(nn.Module, ABC):
    """Abstract operator $A$. A subclass writes `forward`, `config` and, if a measurement has another shape than a point, `point_shape`.

    Attributes:
        name: The name in `OPERATORS`.
        linear: Whether $A$ is linear; then it has an `adjoint`.
    """

    name: ClassVar[str] = ""
    linear: ClassVar[bool] = True

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Returns $A x$, with shape $(B, *)$ of measurements, for points with shape $(B, *)$."""

    def point_shape(self, measured: Size) -> Size | None:
        """Returns the shape of one point from that of its measurement; None if it is unknown.

        Raises:
            ShapeError: No point has such a measurement.
        """
        return measured

    def select(self, y: Tensor) -> Tensor:
        """Returns a measurement as this operator gives it: a mask takes the measured numbers of a whole picture."""
        return y

    def config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, as numbers, texts and tensors."""
        return {}

    def adjoint(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        r"""Returns $A^\top y$, with $\langle A x, y \rangle = \langle x, A^\top y \rangle$.

        Args:
            y: Measurements, with shape $(B, *)$.
            shape: The shape of one point.

        Raises:
            ExpressionError: The operator is not linear.
        """
        if not self.linear:
            raise ExpressionError(f"The operator {self} is not linear, so it has no adjoint.")
        with torch.enable_grad():
            x = y.new_zeros(len(y), *shape).requires_grad_()
            return torch.autograd.grad(self(x), x, y)[0]

    def __str__(self) -> str:
        return self.name or type(self).__name__


class Function(Operator):
    """Any function or module of points with shape $(B, *)$. It is not saved, unless a plug-in built the module.

    Args:
        function: The function.
    """

    linear = False

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def point_shape(self, measured: Size) -> Size | None:
        return None

    def __str__(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return "function" if name == "<lambda>" else name
