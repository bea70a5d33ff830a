r"""Gradients that are differentiated again, as training on scores does, with fast second derivatives of common layers.

Objectives such as denoising score matching differentiate $\nabla_x E(x)$ with respect to weights. There torch computes the gradient of a
convolution's weights as a convolution whose kernel is as large as the picture, and SiLU as a chain of operations with a new tensor each.
`differentiable_gradient` replaces these layers while the energy is evaluated; all derivatives stay the same.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import get_gradient_edge
from torch.nn import Parameter
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from composable_energy.errors import ExpressionError


def differentiable_gradient(energy: Callable[..., Tensor], x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
    r"""Returns $E(x)$, with shape $(B,)$, and $\nabla_x \sum_b E(x_b)$, with the shape of the points; both have a graph.

    The energy may be a function of points and conditions. The derivatives are those of `torch.autograd.grad(..., create_graph=True)`.

    Raises:
        ExpressionError: The energies do not depend on the points.
    """
    with torch.enable_grad():
        point = x if x.requires_grad else x.detach().requires_grad_()
        layers = _Layers(point, alone=point is not x)
        with layers:
            values = energy(point, **conditions)
        gradient = None
        if values.requires_grad:
            layers.stage.current = "points"
            try:
                (gradient,) = torch.autograd.grad(values.sum(), point, create_graph=True, allow_unused=True)
            finally:
                layers.stage.current = "weights"
    if gradient is None:
        raise ExpressionError(f"{energy} has no gradient at its points: it is constant, or detaches them (`detach`, `no_grad`, NumPy).")
    return values, gradient


class _Stage:
    """What is computed: energies, whose function may differentiate too; gradients of points; then those of weights."""

    current: Literal["energies", "points", "weights"] = "energies"


class _Layers(TorchFunctionMode):
    """Replaces layers by those with fast second derivatives. With `alone` only the first pass needs the gradient of the points."""

    def __init__(self, point: Tensor, alone: bool) -> None:
        super().__init__()
        self.point, self.alone, self.stage = point, alone, _Stage()
        self._target, self._independent = get_gradient_edge(point).node, set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = torch.is_grad_enabled() and not torch.compiler.is_compiling() and all(kind in _PLAIN for kind in types)
        replace = _REPLACEMENTS.get(func) if plain else None
        if replace is not None and (result := replace(self, *args, **(kwargs or {}))) is not None:
            return result
        return func(*args, **(kwargs or {}))

    def depends(self, tensor: Tensor | None) -> bool:
        """Returns whether a tensor depends on the points, like the weights of a hypernetwork."""
        seen, left = set(), [tensor.grad_fn] if tensor is not None and tensor.grad_fn is not None else []
        while left:
            if (node := left.pop()) is self._target:
                return True
            if node not in seen and node not in self._independent:
                seen.add(node)
                left += [after for after, _ in node.next_functions if after is not None]
        self._independent |= seen
        return tensor is self.point


def _convolve(
    layers: _Layers,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Returns a convolution with fast second derivatives, or None where torch's own is needed."""
    x, n = input, weight.ndim - 2
    if isinstance(padding, str) or x.ndim != weight.ndim or not x.requires_grad or layers.depends(weight) or layers.depends(bias):
        return None
    if torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, weight.dtype):  # which autocast leaves alone
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if not x.is_floating_point() or x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype):
        return None
    sizes = [[one] * n if isinstance(one, int) else [*one] * (n // len(one)) for one in (stride, padding, dilation)]
    is_first = layers.alone and input is layers.point  # then nothing reads the gradient of points in the second pass
    return _Convolution.apply(x, weight, bias, layers.stage, is_first, (*sizes, groups))


class _Convolution(Function):
    """A convolution whose first gradient with respect to its input is `_ConvolutionOfGradients`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stage: _Stage, is_first: bool, sizes: Any) -> Tensor:
        *sizes, groups = sizes
        return torch.ops.aten.convolution(x, weight, bias, *sizes, False, [0] * len(sizes[0]), groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, bias, ctx.stage, ctx.is_first, ctx.sizes = inputs
        ctx.with_bias = bias is not None
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        if ctx.stage.current == "points":
            return _ConvolutionOfGradients.apply(gradient, weight, x, ctx.sizes), None, None, None, None, None
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        of_x = of_x and not (ctx.is_first and ctx.stage.current == "weights")
        return (*_differentiate(gradient, x, weight, ctx.sizes, [of_x, of_weight, of_bias and ctx.with_bias]), None, None, None)


class _ConvolutionOfGradients(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, weight: Tensor, x: Tensor, sizes: Any) -> Tensor:
        return _differentiate(gradient, x, weight, sizes, [True, False, False])[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        gradient, weight, _, ctx.sizes = inputs
        ctx.save_for_backward(gradient, weight)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, weight = ctx.saved_tensors
        *sizes, groups = ctx.sizes
        of_gradient = of_weight = None
        if ctx.needs_input_grad[0]:
            of_gradient = torch.ops.aten.convolution(outer, weight, None, *sizes, False, [0] * len(sizes[0]), groups)
        if ctx.needs_input_grad[1]:
            of_weight = _differentiate(gradient, outer, weight, ctx.sizes, [False, True, False])[1]
        return of_gradient, of_weight, None, None


def _differentiate(gradient: Tensor, x: Tensor, weight: Tensor, sizes: Any, needed: list[bool]) -> Any:
    """Returns the needed gradients of a convolution, with respect to its input, its weight and its bias."""
    if not any(needed):
        return None, None, None
    *sizes, groups = sizes
    return torch.ops.aten.convolution_backward(gradient, x, weight, [len(weight)], *sizes, False, [0] * len(sizes[0]), groups, needed)


class _Silu(Function):
    r"""$x\, \sigma(x)$."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.silu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Slope.apply(gradient, *ctx.saved_tensors)


class _Slope(Function):
    r"""$g\, \sigma(x)\, (1 + x\, (1 - \sigma(x)))$, the gradient of SiLU times $g$; it is linear in $g$."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, x: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(gradient, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, x = ctx.saved_tensors
        share = x.sigmoid()
        if torch.is_grad_enabled():
            bend = outer * gradient * (torch.addcmul(x, x, share, value=-2) + 2)
            return _Slope.apply(outer, x), torch.ops.aten.sigmoid_backward(bend, share)  # pyright: ignore[reportReturnType]
        bend = torch.addcmul(x, x, share, value=-2).add_(2).mul_(outer).mul_(gradient)  # one new tensor, not five
        return torch.ops.aten.silu_backward(outer, x), torch.ops.aten.sigmoid_backward.grad_input(bend, share, grad_input=bend)


_PLAIN = (Tensor, Parameter)  # subclasses may have layers of their own
_REPLACEMENTS: dict[Any, Callable[..., Tensor | None]] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolve),
    F.silu: lambda _, input, inplace=False: _Silu.apply(input) if input.requires_grad and not inplace else None,
}
