"""Operators by name: masks, matrices, chains, and those of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Size, Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy_observed.interface import Function, Operator, build
from composable_energy_observed.pictures import Blur, Downsample, Radon


class Identity(Operator):
    """The point itself."""

    name = "identity"

    def forward(self, x: Tensor) -> Tensor:
        return x


class Mask(Operator):
    """Some of the numbers of a point.

    Args:
        mask: True where a number is measured. Its shape is that of a point, or broadcasts to it; the measurement may be a whole point,
            of which the other numbers are ignored.

    Raises:
        OptionError: The mask is no tensor of truth values, or measures nothing.
    """

    name = "mask"
    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if not isinstance(mask, Tensor) or not bool(((mask == 0) | (mask == 1)).all()):
            got = f"a tensor with {mask.unique().numel()} values" if isinstance(mask, Tensor) else type(mask).__name__
            raise OptionError(f"A mask is a tensor of True where a number is measured and False elsewhere, got {got}.")
        if not bool(mask.any()):
            raise OptionError(f"The mask of shape {tuple(mask.shape)} is False everywhere, so nothing is measured.")
        self.register_buffer("mask", mask.bool())

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self._whole(x.shape[1:])]

    def select(self, y: Tensor) -> Tensor:
        if y.ndim == 1 and y.shape != self.mask.shape and len(y) == int(self.mask.sum()):
            return y
        self.mask = self._whole(y.shape)
        return y[self.mask]

    def point_shape(self, measured: Size) -> Size:
        return self.mask.shape

    def config(self) -> dict[str, Any]:
        return {"mask": self.mask}

    def _whole(self, shape: Size) -> Tensor:
        """Returns the mask with the shape of a point."""
        if self.mask.shape == shape:
            return self.mask
        try:
            return self.mask.expand(shape).contiguous()
        except RuntimeError:
            raise ShapeError(f"A mask of shape {tuple(self.mask.shape)} does not fit a point of shape {tuple(shape)}.") from None


class Linear(Operator):
    r"""A matrix: $A x = M\, \mathrm{vec}(x)$.

    Args:
        matrix: $M$, with shape $(m, n)$ for points of $n$ numbers.
        shape: The shape of one point; None for vectors.

    Raises:
        OptionError: The matrix does not have two axes, or is not finite.
    """

    name = "linear"
    matrix: Tensor

    def __init__(self, matrix: Tensor, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        if not isinstance(matrix, Tensor) or matrix.ndim != 2 or not bool(matrix.isfinite().all()):
            got = f"shape {tuple(matrix.shape)}" if isinstance(matrix, Tensor) else type(matrix).__name__
            raise OptionError(f"A matrix has two axes and finite numbers, got {got}.")
        self.register_buffer("matrix", matrix if matrix.is_floating_point() else matrix.float())
        self.shape = tuple(matrix.shape[1:] if shape is None else shape)
        if Size(self.shape).numel() != matrix.shape[1]:
            raise OptionError(f"A matrix of {matrix.shape[1]} columns takes no points of shape {self.shape}.")

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x).T

    def point_shape(self, measured: Size) -> Size:
        return Size(self.shape)


class Chain(Operator):
    """Operators one after the other, the first one first, such as a blur and a down-sampling.

    Args:
        operators: At least one, each as `operator_of` takes it.
    """

    name = "chain"

    def __init__(self, operators: Sequence[Any]) -> None:
        super().__init__()
        if not operators:
            raise OptionError("A chain has at least one operator.")
        self.operators = torch.nn.ModuleList(operator_of(operator) for operator in operators)

    @property
    def parts(self) -> list[Operator]:
        """The operators."""
        return list(self.operators)  # pyright: ignore[reportReturnType]

    def forward(self, x: Tensor) -> Tensor:
        for operator in self.parts:
            x = operator(x)
        return x

    def select(self, y: Tensor) -> Tensor:
        return self.parts[-1].select(y)

    def point_shape(self, measured: Size) -> Size | None:
        shape: Size | None = measured
        for operator in reversed(self.parts):
            shape = None if shape is None else operator.point_shape(shape)
        return shape

    def config(self) -> dict[str, Any]:
        return {"operators": [description_of(operator) for operator in self.parts]}

    def __str__(self) -> str:
        return ", ".join(map(str, self.parts))


OPERATORS: Mapping[str, type[Operator]] = {cls.name: cls for cls in (Identity, Mask, Blur, Downsample, Radon, Linear, Chain)}


def operator_of(operator: Operator | str | Mapping[str, Any] | Tensor | Callable[[Tensor], Tensor] | None) -> Operator:
    """Returns an operator: itself, that of a name or of a mapping with `name` and options, a mask, or a function.

    Args:
        operator: None for the identity; a tensor of truth values for a mask. Other tensors are refused: write `Mask` or `Linear`.

    Raises:
        OptionError: It is none of these, a tensor is no mask, or a name or option is unknown or out of range.
    """
    if isinstance(operator, Operator):
        return operator
    if operator is None:
        return Identity()
    if isinstance(operator, Tensor):
        if operator.dtype != torch.bool:
            raise OptionError(
                f"A tensor of {operator.dtype} may be a mask or a matrix: write `mask.bool()`, `Mask(mask)` or `Linear(matrix)`."
            )
        return Mask(operator)
    if isinstance(operator, str | Mapping):
        return build("operator", OPERATORS, operator)
    if callable(operator) and not isinstance(operator, type):
        return Function(operator)
    raise OptionError(f"An operator is a function, a mask, an `Operator`, or the name of one, got {operator!r}.")


def description_of(operator: Operator) -> Any:
    """Returns an operator as a mapping for `operator_of`; the function of a `Function`, and any other operator itself."""
    if isinstance(operator, Function):
        return operator.function
    return {"name": operator.name, **operator.config()} if OPERATORS.get(operator.name) is type(operator) else operator
