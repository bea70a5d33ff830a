"""Errors of generators, labels and edits."""

from __future__ import annotations

from typing import ClassVar

from composable_energy.errors import ComposableEnergyError


class GeneratorError(ComposableEnergyError, ValueError):
    """A generator returned something else than finite pictures of one shape, one for each latent point."""

    documentation: ClassVar[str] = "errors.md#generatorerror"


class LabelError(ComposableEnergyError, ValueError):
    """Labels from which no attribute can be learnt, such as one without positives."""

    documentation: ClassVar[str] = "errors.md#labelerror"


class EditError(ComposableEnergyError, ValueError):
    """An edit that contradicts what it keeps, or that left the support of the prior."""

    documentation: ClassVar[str] = "errors.md#editerror"
