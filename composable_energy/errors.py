"""Errors: what was asked, what was got, what to do.

Each class is also the built-in error that fits, so `except ValueError` keeps working for callers who know nothing of this library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "ComposableEnergyError",
    "ContradictionError",
    "DeviceError",
    "DtypeError",
    "ExpressionError",
    "ExtraNotInstalled",
    "FileFormatError",
    "LiftError",
    "NormalizerError",
    "OptionError",
    "PluginConflictError",
    "PluginLoadError",
    "PluginNotFound",
    "ProcessLost",
    "SamplingDiverged",
    "ShapeError",
    "StorageError",
    "TrainingDiverged",
    "UngroundedError",
]


class ComposableEnergyError(Exception):
    """Root of every error that this library raises on purpose."""


class ShapeError(ComposableEnergyError, ValueError):
    """Points, energies or conditions have a shape that does not fit."""


class DtypeError(ComposableEnergyError, TypeError):
    """Points have another dtype than the energy, or none that has a gradient."""


class LiftError(ComposableEnergyError, TypeError):
    """An object cannot be made an energy: a class, a discrete distribution, or one that computes with what is learnt."""


class DeviceError(ComposableEnergyError, ValueError):
    """Points and energies live on different devices."""


class OptionError(ComposableEnergyError, ValueError):
    """An option is unknown or out of range."""


class ExpressionError(ComposableEnergyError, ValueError):
    """An expression cannot be built, parsed or evaluated as written."""


class ContradictionError(ExpressionError):
    """An expression that no point fulfils, such as `A & ~A`, was evaluated or sampled as a whole."""


class UngroundedError(ExpressionError):
    """A density without a normaliser was to be sampled: its energy has no lower bound."""


class NormalizerError(ComposableEnergyError, RuntimeError):
    """The normaliser of a density cannot be estimated with what was given."""


class ExtraNotInstalled(ComposableEnergyError, ImportError):  # noqa: N818
    """A package of an optional extra is needed and not installed."""


class FileFormatError(ComposableEnergyError, ValueError):
    """A file is missing, corrupt, truncated or written by a newer version."""


class StorageError(ComposableEnergyError, OSError):
    """A file cannot be written: the disk is full, or does not let us."""


class PluginNotFound(ComposableEnergyError, LookupError):  # noqa: N818  (the built-in names of its family end likewise)
    """No plug-in offers the name."""


class PluginLoadError(ComposableEnergyError, RuntimeError):
    """A plug-in was found but failed to load or breaks the contract."""


class PluginConflictError(ComposableEnergyError, LookupError):
    """Two distributions offer the same name."""


class SamplingDiverged(ComposableEnergyError, RuntimeError):  # noqa: N818
    """Chains reached a non-finite energy or gradient.

    Attributes:
        samples: The last finite points of all chains, with shape $(m, *)$. There are $m = n$ chains for $n$ points, or $m = nk$ with
            `best_of=k`: the $k$ chains of a point stand one after another.
        diverged: Which chains diverged, with shape $(m,)$.
        step: The step at which the first of them did.
    """

    def __init__(self, message: str, *, samples: Tensor | None = None, diverged: Tensor | None = None, step: int = 0) -> None:
        super().__init__(message)
        self.samples = samples
        self.diverged = diverged
        self.step = step


class TrainingDiverged(ComposableEnergyError, RuntimeError):  # noqa: N818
    """A run of training went astray, and its monitor stopped it.

    Attributes:
        step: The step at which it was stopped.
        checkpoint: The last checkpoint that is good; None if the run wrote none.
    """

    def __init__(self, message: str, *, step: int = 0, checkpoint: Path | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.checkpoint = checkpoint


class ProcessLost(ComposableEnergyError, RuntimeError):  # noqa: N818
    """Another process of a distributed run has ended or does not answer."""
