"""Operators and noise models: modules with a name, that are built from a description and describe themselves."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, ClassVar, TypeVar

from torch import Size, Tensor, nn

from composable_energy.errors import OptionError
from composable_energy.options import check_choice


class Described(nn.Module, ABC):
    """Abstract module whose attributes have the names of the constructor's arguments."""

    name: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()

    def config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, as numbers, texts and tensors."""
        found = {name: getattr(self, name) for name in signature(type(self)).parameters}
        return {name: value.item() if isinstance(value, Tensor) and not value.ndim else value for name, value in found.items()}


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
