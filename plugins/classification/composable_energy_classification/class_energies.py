r"""The energies of classes: those of a condition, of the branches of a mixture, or of several energies."""

from __future__ import annotations

import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.energies.bases import WeightedBase
from composable_energy.energies.checks import check_batch, check_value
from composable_energy.energies.evaluation import evaluating
from composable_energy.errors import ContradictionError, ExpressionError, MixtureWarning, OptionError
from composable_energy.options import check_integer
from composable_energy.sampling import twin


class ClassEnergies(nn.Module, ABC):
    """Abstract energies of $K$ classes, in eval mode and with the caller's weights.

    Args:
        energy: The expression; it is copied, and tensors keep their storage.
        labels: The names of the classes.

    Attributes:
        labels: The names of the classes.
        event_shape: The shape of one point; None if there are several.
        exhaustive: Whether the classes are events of which always one holds; points of any class then have the energy of the bases.
    """

    exhaustive = False

    def __init__(self, energy: ce.Energy, labels: Sequence[Any]) -> None:
        super().__init__()
        check_value(energy, "`Classifier`")
        if len(labels) < 2:
            raise OptionError(f"A classifier needs two classes or more, got {len(labels)}.")
        self.energy, self.labels, self.event_shape = twin(energy), tuple(labels), energy.event_shape

    @property
    @abstractmethod
    def bases(self) -> tuple[WeightedBase, ...]:
        """The bases that all classes share; they do not change probabilities."""

    @abstractmethod
    def evidence(self, x: Tensor) -> list[Tensor | None]:
        """Returns the energies of each class without the shared bases, each with shape $(B,)$; None for a class that is impossible."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the energies of the classes without the shared bases, with shape $(B, K)$.

        Raises:
            ContradictionError: All classes are impossible.
            ExpressionError: An energy is not a number.
        """
        check_batch(self.energy, x)
        with evaluating():  # a network that all classes share is evaluated once
            found = self.evidence(x)
        like = next((energies for energies in found if energies is not None), None)
        if like is None:
            raise ContradictionError(f"No point fulfils {self.energy} for any class.")
        energies = torch.stack([torch.full_like(like, torch.inf) if part is None else part for part in found], 1)
        if bool(energies.isnan().any()):
            count = int(energies.isnan().any(1).sum())
            raise ExpressionError(f"The energy of a class is not a number at {count} of {len(x)} points: are the points finite?")
        return energies

    def base(self, x: Tensor) -> Tensor:
        """Returns the energies of the shared bases, with shape $(B,)$; 0 if there are none."""
        total = x.new_zeros(len(x))
        for base in self.bases:
            total = total + base(x)
        return total


class Values(ClassEnergies):
    r"""The energies $E(x \mid c)$ of the values of a condition.

    Args:
        energy: An energy with one condition that is not bound.
        over: The name of the condition.
        values: The values of the condition; None takes the labels of a classifier in the expression.

    Raises:
        OptionError: The energy does not depend on the condition, depends on another one too, or there are less than two values.
    """

    def __init__(self, energy: ce.Energy, over: str, values: Iterable[Any] | int | None = None) -> None:
        open_conditions = energy.conditions - {"chains"}
        if over not in open_conditions:
            raise OptionError(
                f"{energy} has no condition {over} to classify by, it has {sorted(open_conditions) or 'none'}. The classes are the values "
                "of a condition, the branches of a mixture `A | B`, or several energies, `Classifier({'cat': A, 'dog': B})`."
            )
        others = sorted(energy.required_conditions - {over})
        if others:
            raise OptionError(f"{energy} also depends on {', '.join(others)}: bind it first, such as `.given({others[0]}=...)`.")
        values = _values(energy, over, values)
        labels = [value.item() if isinstance(value, Tensor) and value.numel() == 1 else value for value in values]
        super().__init__(energy, labels)
        self.parts = nn.ModuleList(self.energy.given(**{over: _as_row(value)}) for value in values)
        if isinstance(energy, ce.ClassifierEnergy):
            self.exhaustive = energy.labels == len(labels) and set(labels) == set(range(len(labels)))
        self.shares_bases = not any(over in base.energy.conditions for base in energy.bases)

    @property
    def bases(self) -> tuple[WeightedBase, ...]:
        return self.energy.bases if self.shares_bases else ()

    def evidence(self, x: Tensor) -> list[Tensor | None]:
        return [_possible(part, x, relative=self.shares_bases) for part in self.parts]


class Branches(ClassEnergies):
    r"""The energies $E_k(x) + \log Z_k - \log w_k$ of the branches of a mixture; the probabilities are the shares of the branches.

    Args:
        mixture: The mixture.
        labels: The names of the branches; their texts if None.

    Raises:
        OptionError: Two branches are events that may hold together.
    """

    def __init__(self, mixture: ce.Disjunction, labels: Sequence[Any] | None = None) -> None:
        super().__init__(mixture, [str(term) for term in mixture.terms] if labels is None else labels)
        _check_exclusive(mixture.terms, self.labels)

    @property
    def bases(self) -> tuple[WeightedBase, ...]:
        return self.energy.bases

    def evidence(self, x: Tensor) -> list[Tensor | None]:
        mixture: Any = self.energy
        return list(mixture.branches(x))


class Marginal(ce.Energy):
    r"""The energy of points of any class, $E(x) = \text{base}(x) - \log \sum_k e^{-E_k(x) + o_k}$.

    Args:
        classes: The energies $E_k$ of the classes.
        offsets: $o_k$, the logarithms of prior probabilities over normalisers; 0 each if None.
    """

    def __init__(self, classes: ClassEnergies, offsets: Sequence[float] | None = None) -> None:
        super().__init__()
        self.classes, self.event_shape, self.name = classes, classes.event_shape, "marginal"
        self.support, self.recommended = classes.energy.support, classes.energy.recommended
        self.offsets = None if offsets is None else tuple(offsets)

    def forward(self, x: Tensor) -> Tensor:
        if self.classes.exhaustive and self.offsets is None:
            return self.classes.base(x)
        with evaluating():
            energies = self.classes(x)
            shifted = energies if self.offsets is None else energies - energies.new_tensor(self.offsets)
            return self.classes.base(x) - torch.logsumexp(-shifted, 1)


def class_energies(energy: Any, over: str, classes: Iterable[Any] | int | None) -> ClassEnergies:
    """Returns the energies of the classes of anything that `Classifier` takes.

    Raises:
        OptionError: There is no condition, mixture or list of energies to classify by.
    """
    if isinstance(energy, ClassEnergies):
        return energy
    if isinstance(energy, ce.Disjunction) and over not in energy.conditions:
        return _checked_branches(energy, energy.shares, _names(classes))
    if isinstance(energy, ce.Energy):
        return Values(energy, over, classes)
    if isinstance(energy, str) or not isinstance(energy, Mapping | Sequence):
        raise OptionError(f"A classifier takes an energy, or several as a list or by name, got {type(energy).__name__}.")
    named = isinstance(energy, Mapping)
    terms = [ce.as_energy(term) for term in (energy.values() if named else energy)]
    if len(terms) < 2:
        raise OptionError(f"A classifier needs two classes or more, got {len(terms)}.")
    labels = list(energy) if named else _names(classes)
    if labels is not None and len(labels) != len(terms):
        raise OptionError(f"{len(terms)} energies have {len(labels)} names in `classes`; give one for each.")
    plain: Any = ce.any_of(*terms)
    # With weights a mixture keeps its terms apart; a class that is a mixture itself would be flattened.
    return _checked_branches(ce.Disjunction(*terms, weights=[1.0] * len(terms)), plain.shares, labels)


def _checked_branches(mixture: ce.Disjunction, shares: str, labels: Sequence[Any] | None) -> Branches:
    if labels is not None and len(labels) != len(mixture.terms):
        raise OptionError(f"A mixture of {len(mixture.terms)} branches has {len(labels)} names in `classes`; give one for each.")
    found = Branches(mixture, labels)
    if shares == "unknown":
        warnings.warn(
            "The classes are densities with unknown normalisers, so their probabilities are arbitrary up to a factor for each class. "
            "Estimate them, `ce.calibrate(A | B)`, or fit one offset for each class, `classifier.calibrated(x, y, offsets=True)`.",
            MixtureWarning,
            stacklevel=4,
        )
    return found


def _names(classes: Iterable[Any] | int | None) -> list[Any] | None:
    if isinstance(classes, int | str):
        raise OptionError(f"The names of branches are a list, got classes={classes!r}.")
    return None if classes is None else list(classes)


def _values(energy: ce.Energy, over: str, values: Iterable[Any] | int | None) -> list[Any]:
    if values is None:
        heads = [part for part in energy.modules() if isinstance(part, ce.ClassifierEnergy) and part.formula is None and part.labels]
        if over != "y" or not heads:
            raise OptionError(f"Say which values of {over} are the classes, such as `classes=range(10)`.")
        return list(range(min(head.labels or 0 for head in heads)))
    if isinstance(values, int):
        return list(range(check_integer("classes", values, 2)))
    try:
        return list(values)
    except TypeError as error:
        raise OptionError(f"classes must be a number of classes or a list of values, got {values!r}.") from error


def _as_row(value: Any) -> Any:
    return value.unsqueeze(0) if isinstance(value, Tensor) and value.ndim > 0 else value


def _possible(energy: Any, x: Tensor, *, relative: bool) -> Tensor | None:
    try:
        return energy.evidence(x) if relative else energy(x)
    except ContradictionError:
        return None


def _check_exclusive(terms: Sequence[ce.Energy], labels: Sequence[Any]) -> None:
    """Raises if two events may hold together: their probabilities are then no distribution over classes."""
    events = [(label, term) for label, term in zip(labels, terms, strict=True) if term.formula is not None]
    for (one, a), (other, b) in itertools.combinations(events, 2):
        if not (a & b).unsatisfiable:
            raise OptionError(
                f"The events {one} and {other} may hold together, so they are no classes. Exclude one, as in `A` and `B & ~A`, or classify "
                "by each event alone, `Classifier([A, ~A])`."
            )
