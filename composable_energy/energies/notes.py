"""Notes on exceptions from other people's code: which energy was evaluated where."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

from composable_energy.errors import ComposableEnergyError, ExpressionError, ShapeError
from composable_energy.options import ran_out

if TYPE_CHECKING:
    from torch import Tensor

_NUMPY = "Can't call numpy() on Tensor that requires grad"
_TERM, _TEXT = "_composable_energy_term", "_composable_energy_note"  # attributes of an exception that passed through an energy


class EvaluationNote(Exception):  # noqa: N818  (a note, which Python 3.10 shows as the cause of an exception)
    """A note about an exception: which energy was evaluated where."""


def add_note(error: BaseException, text: str) -> None:
    """Adds a line to the traceback of an exception, whose type stays; on Python 3.10 as its cause.

    Args:
        error: The exception.
        text: The note.
    """
    if hasattr(error, "add_note"):
        error.add_note(text)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        before = error.__cause__
        if before is None or isinstance(before, EvaluationNote):
            error.__cause__ = EvaluationNote(f"{before}\n{text}" if before else text)


def warn_caller(message: str | Warning, category: type[Warning] | None = None) -> None:
    """Warns at the line that called this package, however many of its functions are in between."""
    package, frame, depth, level = __name__.partition(".")[0], sys._getframe(1), 3, 2
    while frame is not None:
        level = depth if frame.f_globals.get("__name__", "").partition(".")[0] == package else level
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def note_evaluation(error: Exception, energy: object, x: Tensor) -> None:
    """Notes on an exception from a user's function which term of which expression was evaluated, and at how many points.

    The energies that an exception passes through call it one after another: the first is the term, the last the expression. Errors of this
    library name their energy already.

    Args:
        error: The exception.
        energy: The energy that it leaves.
        x: The points.

    Raises:
        ExpressionError: The energy calls NumPy where a gradient is needed.
        ShapeError: The function of the energy works on single points, not on a batch.
    """
    if isinstance(error, RuntimeError) and _NUMPY in str(error):
        raise ExpressionError(f"{energy} calls NumPy, which has no gradient: compute it with torch alone.") from error
    if (
        type(error) in (RuntimeError, IndexError, TypeError, ValueError, ShapeError)
        and not ran_out(error)
        and _takes_single_points(energy, x)
    ):
        text = str(error).strip().partition("\n")[0]
        what = text if isinstance(error, ShapeError) else f"{energy} raised at points of shape {tuple(x.shape)}: {text}."
        raise ShapeError(f"{what} Its function takes one point at a time: `torch.vmap` of it takes a batch.") from error
    if isinstance(error, ComposableEnergyError):
        return
    term, before = getattr(error, _TERM, None), getattr(error, _TEXT, None)
    if term is None:
        term = str(energy)
        setattr(error, _TERM, term)
    whole = "" if str(energy) == term else f", a term of {energy},"
    text = f"This happened in the energy {term}{whole} at points of shape {tuple(x.shape)}."
    setattr(error, _TEXT, text)
    notes = getattr(error, "__notes__", None)
    if notes is not None and before in notes:
        notes[notes.index(before)] = text
    elif before is not None and isinstance(error.__cause__, EvaluationNote):
        error.__cause__ = EvaluationNote(text)
    else:
        add_note(error, text)


def _takes_single_points(energy: object, x: Tensor) -> bool:
    """Returns whether the function of an energy gives a number for each single point."""
    function = getattr(energy, "function", None)
    if not callable(function) or not len(x):
        return False
    try:
        import torch  # late: the registry imports this file, and commands need no torch

        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.vmap(function)(x.detach())
    except Exception:
        return False
    return isinstance(found, torch.Tensor) and found.shape == x.shape[:1]
