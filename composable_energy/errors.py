"""Errors. Messages say what was requested, what was found, and what to do. Each class derives from the matching built-in error."""

import sys
import warnings
from collections.abc import Callable, Iterable
from threading import RLock, local
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

FILTERS = RLock()  # of warnings, which all threads share: of two that change them at once, one may leave those of the other
_THREAD = local()  # `heard` is the one kind of SamplingWarning that is emitted; all if it is None


def add_note(error: BaseException, text: str) -> None:
    """Adds a line to the traceback of an exception, whose type stays; Python 3.10 does not show it."""
    error.__notes__ = [*getattr(error, "__notes__", ()), text]  # pyright: ignore[reportAttributeAccessIssue]


def warn_caller(message: str | Warning, category: type[Warning] | None = None) -> None:
    """Warns at the line that called this package, however many of its functions are in between."""
    package, frame, depth, level = __name__.partition(".")[0], sys._getframe(1), 3, 2
    while frame is not None:
        level = depth if frame.f_globals.get("__name__", "").partition(".")[0] == package else level
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


class ComposableEnergyError(Exception):
    """Base class of all errors of this library. A note in the traceback names the section of the documentation (Python 3.11 or newer).

    Attributes:
        documentation: The page and section that explain the error. Subclasses may set their own, such as a URL; else it is their base's.
    """

    documentation: ClassVar[str] = "errors.md"

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        if cls.__module__ == __name__:
            cls.documentation = f"errors.md#{cls.__name__.lower()}"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        add_note(self, f"The documentation explains this error: {self.documentation}")


class ShapeError(ComposableEnergyError, ValueError):
    """Points, energies or conditions have a shape that does not fit."""


class DtypeError(ComposableEnergyError, TypeError):
    """Points have another dtype than the energy, or not a floating one."""


class LiftError(ComposableEnergyError, TypeError):
    """An object cannot become an energy: a class, or a distribution with computed learnable tensors."""


class DeviceError(ComposableEnergyError, ValueError):
    """Points and energies are on different devices."""


class OptionError(ComposableEnergyError, ValueError):
    """An option is unknown or out of range.

    Attributes:
        options: The names of options in the message; a command line or a form may spell them in its own way.
    """

    def __init__(self, message: str, options: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.options = tuple(options)


class ExpressionError(ComposableEnergyError, ValueError):
    """An expression cannot be built, parsed or evaluated as written."""


class CalibrationError(ExpressionError):
    """A number of an expression is not known, such as the level of `~A` or log Z, or its estimate is not reliable."""


class OperatorError(ExpressionError, TypeError):
    """An operator that energies do not have was used, such as `+`; the message names the one to use."""


class ContradictionError(ExpressionError):
    """An expression that no point fulfils, such as `A & ~A`, was evaluated or sampled."""


class MemoryShortage(ComposableEnergyError, MemoryError):  # noqa: N818
    """Memory ran out in sampling or training."""


class UngroundedError(ExpressionError):
    """An energy that cannot be normalised was sampled or integrated: it has no lower bound, or grows too slowly."""


class ExtraNotInstalled(ComposableEnergyError, ImportError):  # noqa: N818
    """A package of an optional extra is not installed."""


class FileFormatError(ComposableEnergyError, ValueError):
    """A file is missing, corrupt, truncated or written by a newer version."""


class StorageError(ComposableEnergyError, OSError):
    """A file cannot be written: the disk is full, writing is not permitted, or another call or process uses the file."""


class PluginNotFound(ComposableEnergyError, LookupError):  # noqa: N818  (as `ModuleNotFoundError`)
    """No plug-in offers the name."""


class PluginLoadError(ComposableEnergyError, RuntimeError):
    """A plug-in was found but failed to load or breaks the contract."""


class PluginConflictError(ComposableEnergyError, LookupError):
    """Two distributions offer the same name."""


UNAVAILABLE = (ExtraNotInstalled, PluginNotFound, PluginLoadError, PluginConflictError)
"""Why a plug-in that a file names may not be there."""


class SamplingDiverged(ComposableEnergyError, RuntimeError):  # noqa: N818
    """Chains reached a non-finite energy or gradient.

    Attributes:
        samples: The last finite points of all chains, with shape $(m, *)$.
        diverged: Which chains diverged, with shape $(m,)$.
        step: The step at which the first chain diverged.
    """

    def __init__(self, message: str, *, samples: "Tensor | None" = None, diverged: "Tensor | None" = None, step: int = 0) -> None:
        super().__init__(message)
        self.samples, self.diverged, self.step = samples, diverged, step


class SamplingInterrupted(KeyboardInterrupt):
    """Ctrl-C interrupted the sampling. As `KeyboardInterrupt` it is no `Exception`, so `except Exception` does not swallow it.

    Attributes:
        points: What `sample` would have returned after the steps that were taken.
        trace: Their trace; `sample(..., resume=trace, steps=k)` takes k more steps.
    """

    def __init__(self, message: str, *, points: "Tensor", trace: Any) -> None:
        super().__init__(message)
        self.points, self.trace = points, trace


class SupportWarning(UserWarning):
    """Points are so close to the boundary of a support that their dtype rounds them to it."""


class ProcessLost(ComposableEnergyError, RuntimeError):  # noqa: N818
    """Another process of a distributed run has ended or does not respond."""


class SamplingWarning(UserWarning):
    """A warning about a run. `trace.warnings()` returns all; `sample` emits those that are clear without a trace.

    Args:
        kind: `"start"`, `"diverged"`, `"errors"`, `"formula"`, `"acceptance"`, `"constant"`, `"stuck"`, `"drift"`, `"r_hat"`, `"ess"`,
            `"bias"`, `"mode"`, `"branch"`, `"families"`, `"trips"`, `"weak"`, `"precise"`, `"tail"` or `"unchecked"`.
        seen: The observation, with figures.
        advice: What to do.
    """

    def __init__(self, kind: str, seen: str, advice: str) -> None:
        super().__init__(kind, seen, advice)
        self.kind, self.seen, self.advice = kind, seen, advice

    def emit(self) -> None:
        """Warns at the line that called the library. Samplers may call it."""
        if getattr(_THREAD, "heard", None) in (None, self.kind):
            warn_caller(self)

    @staticmethod
    def muted(function: Callable[..., Any], *args: Any, but: str = "", **named: Any) -> Any:
        """Calls a function, and emits none of its warnings but those of one kind. Filters of `warnings` would act on other threads, too."""
        before, _THREAD.heard = getattr(_THREAD, "heard", None), but
        try:
            return function(*args, **named)
        finally:
            _THREAD.heard = before

    def __str__(self) -> str:
        return f"{self.kind}: {self.seen} {self.advice}"


class MixtureWarning(UserWarning):
    """A mixture of densities with unknown normalisers was sampled, so the shares of its branches are arbitrary."""
