"""Operators by name and their interface: masks, matrices, chains, and those of pictures: blur, down-sampling, the Radon transform."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_choice, check_integer, check_number


class Described(nn.Module, ABC):
    """Abstract module whose attributes have the names of the constructor's arguments."""

    name: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()

    def config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, as numbers, texts and tensors."""
        found = {name: getattr(self, name) for name in signature(type(self)).parameters}
        single = {name for name, value in found.items() if isinstance(value, Tensor) and not value.ndim and value.is_floating_point()}
        return {name: value.item() if name in single else value for name, value in found.items()}


class Operator(Described):
    """Abstract operator $A$: what an instrument makes of a point, without its noise.

    A subclass writes `forward` and, if a measurement has another shape than a point, `point_shape`.
    """

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

    def __str__(self) -> str:
        return self.name or type(self).__name__


class Function(Operator):
    """Any function or module of points with shape $(B, *)$. It is not saved, unless a plug-in built the module."""

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


Kind = TypeVar("Kind", bound=Described)


def build(what: str, classes: Mapping[str, type[Kind]], description: str | Mapping[str, Any]) -> Kind:
    """Returns the operator or noise model of a name, or of a mapping with `name` and options."""
    options = dict(description) if isinstance(description, Mapping) else {"name": description}
    name = check_choice(what, options.pop("name", None), classes)
    known = signature(classes[name]).parameters
    missing = [key for key, parameter in known.items() if parameter.default is parameter.empty and key not in options]
    unknown = sorted(options.keys() - known.keys())
    if missing or unknown:
        found = f"unknown {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}"
        raise OptionError(f"The {what} {name} takes {', '.join(known) or 'no options'}; {found}.")
    return classes[name](**options)


_PADDINGS = {"reflect": "reflect", "circular": "circular", "zeros": "constant"}


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
        self.register_buffer("mask", mask.bool().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self._whole(x.shape[1:])]

    def select(self, y: Tensor) -> Tensor:
        if y.ndim == 1 and y.shape != self.mask.shape and len(y) == int(self.mask.sum()):
            return y
        self.mask = self._whole(y.shape)
        return y[self.mask]

    def point_shape(self, measured: Size) -> Size:
        return self.mask.shape

    def _whole(self, shape: Size) -> Tensor:
        """Returns the mask with the shape of a point."""
        try:
            return self.mask.expand(shape).contiguous()
        except RuntimeError:
            raise ShapeError(f"A mask of shape {tuple(self.mask.shape)} does not fit a point of shape {tuple(shape)}.") from None


class Linear(Operator):
    r"""A matrix: $A x = M\, \mathrm{vec}(x)$.

    Args:
        matrix: $M$, with shape $(m, n)$ for points of $n$ numbers.
        shape: The shape of one point, or its length; None for vectors.

    Raises:
        OptionError: The matrix does not have two axes, or is not finite or not real.
    """

    name = "linear"
    matrix: Tensor

    def __init__(self, matrix: Tensor, shape: int | Sequence[int] | None = None) -> None:
        super().__init__()
        if not isinstance(matrix, Tensor) or matrix.ndim != 2 or matrix.is_complex() or not bool(matrix.isfinite().all()):
            got = f"{matrix.dtype} of shape {tuple(matrix.shape)}" if isinstance(matrix, Tensor) else type(matrix).__name__
            raise OptionError(f"A matrix has two axes and finite real numbers, got {got}.")
        self.register_buffer("matrix", matrix.detach().clone() if matrix.is_floating_point() else matrix.float())
        lengths = matrix.shape[1:] if shape is None else shape if isinstance(shape, Iterable) else [shape]
        self.shape = tuple(check_integer("shape", length) for length in lengths)
        if Size(self.shape).numel() != matrix.shape[1]:
            raise OptionError(f"A matrix of {matrix.shape[1]} columns takes no points of shape {self.shape}.")

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x).T

    def point_shape(self, measured: Size) -> Size:
        return Size(self.shape)


class Blur(Operator):
    """A convolution of pictures of shape $(C, H, W)$ with one kernel for all channels.

    Args:
        kernel: The kernel, with shape $(h, w)$ of odd numbers; or the standard deviation of a Gaussian in pixels.
        padding: What lies beyond the border: `reflect`, `circular` or `zeros`.

    Raises:
        OptionError: The kernel has no centre, or is not finite.
    """

    name = "blur"
    kernel: Tensor

    def __init__(self, kernel: Tensor | float, padding: str = "reflect") -> None:
        super().__init__()
        if not isinstance(kernel, Tensor):
            width = check_number("kernel, a standard deviation in pixels,", kernel, above=0)
            reach = max(1, math.ceil(3 * width))
            line = torch.exp(-torch.arange(-reach, reach + 1, dtype=torch.float64).square() / (2 * width**2))
            kernel = torch.outer(line / line.sum(), line / line.sum()).float()
        if kernel.ndim != 2 or 0 in (kernel.shape[0] % 2, kernel.shape[1] % 2) or kernel.is_complex() or not bool(kernel.isfinite().all()):
            got = f"{kernel.dtype} of shape {tuple(kernel.shape)}"
            raise OptionError(f"The kernel of a blur has two axes of odd length and finite real numbers, got {got}.")
        self.register_buffer("kernel", kernel.detach().clone() if kernel.is_floating_point() else kernel.float())
        self.padding = check_choice("padding", padding, _PADDINGS)

    def forward(self, x: Tensor) -> Tensor:
        channels, kernel = _pictures(self, x), self.kernel.to(x)
        up, left = kernel.shape[0] // 2, kernel.shape[1] // 2
        if self.padding != "zeros" and (up >= x.shape[2] or left >= x.shape[3]):
            raise ShapeError(f"A kernel of shape {tuple(kernel.shape)} is too large for pictures of shape {tuple(x.shape[1:])}.")
        padded = F.pad(x, (left, left, up, up), mode=_PADDINGS[self.padding])
        return F.conv2d(padded, kernel.expand(channels, 1, *kernel.shape), groups=channels)


class Downsample(Operator):
    """The means of squares of `factor` by `factor` pixels, at least 2, of pictures of shape $(C, H, W)$."""

    name = "downsample"

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = check_integer("factor", factor, 2)

    def forward(self, x: Tensor) -> Tensor:
        _pictures(self, x)
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ShapeError(f"Pictures of shape {tuple(x.shape[1:])} have no whole squares of {self.factor} pixels.")
        return F.avg_pool2d(x, self.factor)

    def point_shape(self, measured: Size) -> Size:
        if len(measured) != 3:
            raise ShapeError(f"A down-sampled picture has shape (C, H, W), got {tuple(measured)}.")
        channels, height, width = measured
        return Size((channels, height * self.factor, width * self.factor))


class Radon(Operator):
    r"""The Radon transform: sums along parallel lines, $(C, W, W)$ to $(C, K, W)$ for $K$ angles; pictures are 0 outside.

    Args:
        angles: The angles in degrees, at least one.

    Raises:
        OptionError: There are no angles, or one is not finite.
    """

    name = "radon"
    angles: Tensor

    def __init__(self, angles: Sequence[float] | Tensor) -> None:
        super().__init__()
        if not isinstance(angles, Tensor):
            listed = [check_number("angles", angle) for angle in (angles if isinstance(angles, Iterable) else [angles])]
            angles = torch.tensor(listed, dtype=torch.float64)
        if angles.ndim != 1 or not len(angles) or not bool(angles.isfinite().all()):
            raise OptionError(f"The angles of a Radon transform are finite numbers in degrees, got {angles.tolist()}.")
        self.register_buffer("angles", angles.clone())

    def forward(self, x: Tensor) -> Tensor:
        _pictures(self, x)
        if x.shape[2] != x.shape[3]:
            raise ShapeError(f"The Radon transform takes square pictures, got shape {tuple(x.shape[1:])}.")
        return torch.stack([self._turn(x, float(angle)).sum(2) for angle in self.angles.deg2rad()], 2)

    def _turn(self, x: Tensor, angle: float) -> Tensor:
        c, s = math.cos(angle), math.sin(angle)
        turn = x.new_tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(len(x), 2, 3)
        return F.grid_sample(x, F.affine_grid(turn, list(x.shape), align_corners=False), align_corners=False)

    def point_shape(self, measured: Size) -> Size:
        if len(measured) != 3 or measured[1] != len(self.angles):
            raise ShapeError(f"The projections of {len(self.angles)} angles have shape (C, {len(self.angles)}, W), got {tuple(measured)}.")
        return Size((measured[0], measured[2], measured[2]))


class Chain(Operator):
    """Operators one after the other, the first one first, such as a blur and a down-sampling; each is one that `operator_of` takes."""

    name = "chain"

    def __init__(self, operators: Sequence[Any]) -> None:
        super().__init__()
        if not operators:
            raise OptionError("A chain has at least one operator.")
        self.operators = torch.nn.ModuleList(operator_of(operator) for operator in operators)

    @property
    def parts(self) -> list[Operator]:
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
            raise OptionError(f"A tensor of {operator.dtype} may be mask or matrix: write `mask.bool()`, `Mask(mask)` or `Linear(matrix)`.")
        return Mask(operator)
    if isinstance(operator, str | Mapping):
        return build("operator", OPERATORS, operator)
    if callable(operator) and not isinstance(operator, type):
        return Function(operator)
    raise OptionError(f"An operator is a function, a mask, an `Operator`, or the name of one, got {operator!r}.")


def is_linear(operator: Operator) -> bool:
    """Returns whether an operator is one of the library's, which are linear."""
    parts = operator.parts if isinstance(operator, Chain) else []
    return OPERATORS.get(operator.name) is type(operator) and all(map(is_linear, parts))


def description_of(operator: Operator) -> Any:
    """Returns an operator as a mapping for `operator_of`; the function of a `Function`, and any other operator itself."""
    if isinstance(operator, Function):
        return operator.function
    return {"name": operator.name, **operator.config()} if OPERATORS.get(operator.name) is type(operator) else operator


def _pictures(operator: Operator, x: Tensor) -> int:
    """Returns the number of channels of pictures."""
    if x.ndim != 4:
        raise ShapeError(f"The operator {operator} takes pictures of shape (B, C, H, W), got {tuple(x.shape)}.")
    return x.shape[1]
