r"""The energies of classes: the branches of a mixture, or the values of a condition."""

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.options import check_integer
from composable_energy.sampling import twin
from composable_energy_classification.calibration import CalibrationWarning


class ClassEnergies(nn.Module):
    r"""The energies $E_k(x) + \log Z_k - \log w_k$ of $K$ classes, the branches of a mixture, in eval mode and with the caller's weights.

    Args:
        mixture: The mixture; it is copied, and tensors keep their storage.
        labels: The names of the classes.
        exhaustive: Whether the classes are events of which always one holds; points of any class then have the energy of the bases.

    Raises:
        OptionError: There are less than two classes.
    """

    def __init__(self, mixture: ce.Disjunction, labels: Sequence[Any], exhaustive: bool = False) -> None:
        super().__init__()
        if len(labels) < 2:
            raise OptionError(f"A classifier needs two classes or more, got {len(labels)}.")
        self.mixture, self.labels, self.exhaustive = twin(mixture), tuple(labels), exhaustive

    def forward(self, x: Tensor) -> Tensor:
        """Returns the energies of the classes without the bases that all share, with shape $(B, K)$.

        Raises:
            ContradictionError: All classes are impossible.
            ExpressionError: An energy is not a number.
        """
        energies = self.mixture.branches(x).T
        if bool(energies.isnan().any()):
            count = int(energies.isnan().any(1).sum())
            raise ExpressionError(f"The energy of a class is not a number at {count} of {len(x)} points: are the points finite?")
        return energies

    def base(self, x: Tensor) -> Tensor:
        """Returns the energies of the bases that all classes share, with shape $(B,)$; 0 if there are none."""
        return sum((base(x) for base in self.mixture.bases), x.new_zeros(len(x)))


class Marginal(ce.Energy):
    r"""The energy of points of any class, $E(x) = \text{base}(x) - \log \sum_k e^{-E_k(x) + o_k}$.

    Args:
        classes: The energies $E_k$ of the classes.
        offsets: $o_k$, the logarithms of prior probabilities over normalisers; 0 each if None.
    """

    def __init__(self, classes: ClassEnergies, offsets: Sequence[float] | None = None) -> None:
        super().__init__()
        mixture = classes.mixture
        self.classes, self.event_shape, self.name = classes, mixture.event_shape, "marginal"
        self.support, self.recommended = mixture.support, mixture.recommended
        self.offsets = None if offsets is None else tuple(offsets)

    def forward(self, x: Tensor) -> Tensor:
        if self.classes.exhaustive and self.offsets is None:
            return self.classes.base(x)
        energies = self.classes(x)
        shifted = energies if self.offsets is None else energies - energies.new_tensor(self.offsets)
        return self.classes.base(x) - torch.logsumexp(-shifted, 1)


def class_energies(energy: Any, over: str, classes: Iterable[Any] | int | None) -> ClassEnergies:
    """Returns the energies of the classes of anything that `Classifier` takes."""
    if isinstance(energy, ClassEnergies):
        return energy
    if isinstance(energy, ce.Energy) and (over in energy.conditions or not isinstance(energy, ce.Disjunction)):
        return _of_values(energy, over, classes)
    if isinstance(energy, str) or not isinstance(energy, ce.Disjunction | Mapping | Sequence):
        raise OptionError(f"A classifier takes an energy, or several as a list or by name, got {type(energy).__name__}.")
    if isinstance(energy, ce.Disjunction):
        mixture, shares = energy, energy.shares
    else:
        terms = [ce.as_energy(term) for term in (energy.values() if isinstance(energy, Mapping) else energy)]
        # With weights a mixture keeps its terms apart; a class that is a mixture itself would be flattened.
        mixture, shares = ce.Disjunction(*terms, weights=[1.0] * len(terms)), ce.Disjunction(*terms).shares
    if isinstance(classes, int | str):
        raise OptionError(f"The names of branches are a list, got classes={classes!r}.")
    names = energy if isinstance(energy, Mapping) else map(str, mixture.terms) if classes is None else classes
    if len(labels := list(names)) != len(mixture.terms):
        raise OptionError(f"A mixture of {len(mixture.terms)} branches has {len(labels)} names in `classes`; give one for each.")
    _check_exclusive(mixture.terms, labels)
    if shares == "unknown":
        warnings.warn(
            "The classes are densities with unknown normalisers, so their probabilities are arbitrary up to a factor for each class. "
            "Estimate them, `ce.calibrate(A | B)`, or fit one offset for each class, `classifier.calibrated(x, y, offsets=True)`.",
            CalibrationWarning,
            stacklevel=3,
        )
    return ClassEnergies(mixture, labels)


def _of_values(energy: ce.Energy, over: str, classes: Iterable[Any] | int | None) -> ClassEnergies:
    """Returns the energies $E(x \\mid c)$ of the values of a condition, whose normalisers are taken as equal."""
    if over not in (known := energy.conditions - {"chains"}):
        raise OptionError(
            f"{energy} has no condition {over} to classify by, it has {sorted(known) or 'none'}. The classes are the values "
            "of a condition, the branches of a mixture `A | B`, or several energies, `Classifier({'cat': A, 'dog': B})`."
        )
    if others := sorted(energy.required_conditions - {over}):
        raise OptionError(f"{energy} also depends on {', '.join(others)}: bind it first, such as `.given({others[0]}=...)`.")
    values = _values(energy, over, classes)
    labels = [value.item() if isinstance(value, Tensor) and value.numel() == 1 else value for value in values]
    rows = [value.unsqueeze(0) if isinstance(value, Tensor) and value.ndim > 0 else value for value in values]
    mixture = ce.Disjunction(*(energy.given(**{over: row}) for row in rows), weights=[1.0] * len(rows))
    exhaustive = isinstance(energy, ce.ClassifierEnergy) and energy.labels == len(labels) and set(labels) == set(range(len(labels)))
    return ClassEnergies(mixture, labels, exhaustive)


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


def _check_exclusive(terms: Sequence[ce.Energy], labels: Sequence[Any]) -> None:
    """Raises if two events may hold together: their probabilities are then no distribution over classes."""
    events = [(label, term) for label, term in zip(labels, terms, strict=True) if term.formula is not None]
    for (one, a), (other, b) in itertools.combinations(events, 2):
        if not (a & b).unsatisfiable:
            way = "Exclude one, as in `A` and `B & ~A`, or classify by each event alone, `Classifier([A, ~A])`."
            raise OptionError(f"The events {one} and {other} may hold together, so they are no classes. {way}")
