r"""Classification by energies: $p(k \mid x) \propto e^{-E_k(x)}$."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from composable_energy import Energy
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.options import check_integer, check_number
from composable_energy_classification.calibration import check_labels, check_points, fit_probabilities
from composable_energy_classification.class_energies import ClassEnergies, Marginal, class_energies
from composable_energy_classification.refinement import Refinement


class Classifier(nn.Module):
    r"""A classifier by energies: $p(k \mid x) \propto e^{(o_k - E_k(x)) / T}$.

    The classes are the values of a condition (of a conditional energy, or of a classifier's label), the branches of a mixture `A | B`, or
    several energies: densities, or events that exclude each other. Probabilities of events are those given that one of them holds. Bases
    that all classes share cancel. For a condition the normalisers of the classes are taken as equal, as `E.infer` does; offsets $o_k$ stand
    for other ones, and for prior probabilities.

    A classifier is a module that maps points to log probabilities, which are logits for losses and libraries of attacks. It evaluates
    copies of the energies in eval mode that share their weights. The methods `calibrated`, `abstaining` and `refined` return changed
    classifiers and leave this one as it is.

    Args:
        energy: An energy, a list of energies, or energies by the names of classes.
        over: The condition whose values are the classes.
        classes: The values of the condition, as a list or their number; or the names of the branches. None takes the labels of a
            classifier in the expression, or the texts of the branches.
        temperature: $T$.
        offsets: $o_k$, one for each class; 0 each if None.
        threshold: The energy above which `predict` abstains; None never abstains.
        refinement: Langevin steps before classification; None for none.

    Attributes:
        labels: The names of the classes.
        marginal: The energy of points of any class, $-\log \sum_k e^{o_k - E_k(x)}$ with the shared bases.

    Raises:
        OptionError: There is nothing to classify by, there are less than two classes, or an option is out of range.
        ExpressionError: An energy has no value.

    Warns:
        CalibrationWarning: The classes are densities with unknown normalisers.

    Example:
        >>> import torch, composable_energy as ce
        >>> from composable_energy_classification import Classifier
        >>> left, right = (ce.as_energy(torch.distributions.Normal(torch.tensor([m]), 1.0)) for m in (-1.0, 1.0))
        >>> Classifier({"left": left, "right": right}).probabilities(torch.tensor([[0.0], [3.0]]))[:, 1]
        tensor([0.5000, 0.9975])
    """

    def __init__(
        self,
        energy: Energy | Sequence[Energy] | Mapping[Any, Energy] | ClassEnergies,
        over: str = "y",
        classes: Iterable[Any] | int | None = None,
        *,
        temperature: float = 1.0,
        offsets: Sequence[float] | Tensor | None = None,
        threshold: float | None = None,
        refinement: Refinement | None = None,
    ) -> None:
        super().__init__()
        self.classes = class_energies(energy, over, classes)
        self.temperature = check_number("temperature", temperature, above=0)
        self.threshold = None if threshold is None else check_number("threshold", threshold)
        if refinement is not None and not isinstance(refinement, Refinement):
            raise OptionError(f"refinement must be a Refinement or None, got {refinement!r}.")
        self.refinement = refinement
        self.offsets = None if offsets is None else _offsets(offsets, len(self.labels))
        self.marginal = Marginal(self.classes, self.offsets)
        self.train(False)

    @property
    def labels(self) -> tuple[Any, ...]:
        return self.classes.labels

    @property
    def random(self) -> bool:
        return self.refinement is not None and self.refinement.random

    def forward(self, x: Tensor, *, seed: int | None = None, rows: Sequence[int] | None = None) -> Tensor:
        """Returns the log probabilities of points with shape $(B, *)$, with shape $(B, K)$.

        They can be differentiated by the points, through the refinement too.

        Args:
            seed: A seed of the refinement in place of its own.
            rows: The numbers of the points for the noise of the refinement; None counts them.

        Raises:
            ExpressionError: An energy is not a number, or all classes are impossible at a point.
        """
        if self.refinement is None:
            return self._log_probabilities(x)
        graph, logs = torch.is_grad_enabled() and x.requires_grad, []
        for draw in range(self.refinement.draws if self.random else 1):
            logs.append(self._log_probabilities(self.refinement(self.marginal, x, draw=draw, seed=seed, rows=rows, graph=graph)))
        return logs[0] if len(logs) == 1 else torch.logsumexp(torch.stack(logs), 0) - math.log(len(logs))

    def probabilities(self, x: Tensor, *, batch_size: int | None = None) -> Tensor:
        """Returns the probabilities of points with shape $(B, *)$, with shape $(B, K)$ and without a graph.

        Args:
            batch_size: The number of points that are evaluated together; it does not change the result.

        Raises:
            ExpressionError: An energy is not a number, or all classes are impossible at a point.
        """
        with torch.no_grad():
            return torch.cat([self(part, rows=rows).exp() for part, rows in _parts(x, None, batch_size)])

    def predict(self, x: Tensor, *, batch_size: int | None = None) -> Tensor:
        """Returns the most probable of `labels` by number, shape $(B,)$; -1 above the threshold. Arguments: see `probabilities`."""
        with torch.no_grad():
            kept = torch.ones(len(check_points(x)), dtype=torch.bool, device=x.device)
            if self.threshold is not None:
                kept = self.energy(x, batch_size=batch_size) <= self.threshold
            found = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
            if bool(kept.any()):
                rows = kept.nonzero().flatten().tolist()
                found[kept] = torch.cat([self(part, rows=ids).argmax(1) for part, ids in _parts(x[kept], rows, batch_size)])
            return found

    def energy(self, x: Tensor, *, batch_size: int | None = None) -> Tensor:
        """Returns energies of points of any class before refinement, shape $(B,)$, without a graph. Arguments: see `probabilities`."""
        with torch.no_grad():
            return torch.cat([self.marginal(part) for part, _ in _parts(x, None, batch_size)])

    def calibrated(self, x: Tensor, y: Tensor, *, offsets: bool = False, batch_size: int | None = None) -> Classifier:
        """Returns the classifier with the temperature that fits held-out points best.

        With a refinement of several draws it is fitted to the energies at the first draw.

        Args:
            x: Held-out points, with shape $(B, *)$; points of the training make it too low.
            y: Their classes, with shape $(B,)$.
            offsets: Whether to fit an offset for each class too, which stands for its unknown normaliser and prior probability.
            batch_size: The number of points that are evaluated together.

        Raises:
            OptionError: A class is out of range, or with `offsets` absent; or offsets would change the energies that a threshold is for.

        Warns:
            CalibrationWarning: The points do not determine the temperature.
        """
        if offsets and self.threshold is not None:
            raise OptionError("Offsets change the energies that the threshold is for: call `calibrated` first, then `abstaining`.")
        y, parts = check_labels(y, len(check_points(x)), len(self.labels)), []
        with torch.no_grad():
            for part, rows in _parts(x, None, batch_size):
                points = part if self.refinement is None else self.refinement(self.marginal, part, rows=rows)
                parts.append(self._energies(points, fixed=not offsets))
        temperature, found = fit_probabilities(torch.cat(parts), y, offsets=offsets)
        return self._changed(temperature=temperature, **({"offsets": found} if offsets else {}))

    def abstaining(self, x: Tensor, *, keep: float = 0.95, batch_size: int | None = None) -> Classifier:
        """Returns the classifier that abstains where the energy is above that of most held-out points.

        Args:
            x: Held-out points, with shape $(B, *)$.
            keep: The share of them that is classified.
            batch_size: The number of points that are evaluated together.

        Raises:
            ExpressionError: The quantile of the energies is not finite.
        """
        keep = check_number("keep", keep, above=0, below=1)
        threshold = float(torch.quantile(self.energy(x, batch_size=batch_size).double(), keep, interpolation="higher"))
        if not math.isfinite(threshold):
            raise ExpressionError(f"The energies of held-out points have no finite {keep:g} quantile: it is {threshold}.")
        return self._changed(threshold=threshold)

    def refined(self, refinement: Refinement | None = None, **options: Any) -> Classifier:
        """Returns the classifier that takes Langevin steps on `marginal` before it classifies.

        Args:
            refinement: The refinement; None makes one of the options.
            **options: Those of `Refinement`: `steps`, `step_size`, `temperature`, `draws`, `clamp` and `seed`.
        """
        if refinement is not None and options:
            raise OptionError(f"Give either a refinement or its options, got both: {', '.join(options)}.")
        return self._changed(refinement=refinement or Refinement(**options))

    @property
    def plain(self) -> Classifier:
        """The classifier without refinement."""
        return self._changed(refinement=None)

    def train(self, mode: bool = True) -> Self:
        """Keeps eval mode: probabilities of one point are one number, also while the caller trains the energies."""
        del mode
        return super().train(False)

    def _energies(self, x: Tensor, *, fixed: bool = True) -> Tensor:
        """Returns $E_k(x) - o_k$, with shape $(B, K)$; without the offsets unless `fixed`."""
        energies = self.classes(x)
        return energies - energies.new_tensor(self.offsets) if fixed and self.offsets is not None else energies

    def _log_probabilities(self, x: Tensor) -> Tensor:
        energies = self._energies(x)
        if impossible := int((energies == torch.inf).all(1).sum()):
            raise ExpressionError(f"All classes are impossible at {impossible} of {len(x)} points; with a `threshold`, `predict` abstains.")
        return torch.log_softmax(-energies / self.temperature, 1)

    def _changed(self, **changes: Any) -> Classifier:
        now = {name: getattr(self, name) for name in ("temperature", "offsets", "threshold", "refinement")}
        return Classifier(self.classes, **{**now, **changes})

    def extra_repr(self) -> str:
        settings = [f"{len(self.labels)} classes", f"temperature={self.temperature:g}"]
        settings += [] if self.threshold is None else [f"threshold={self.threshold:g}"]
        return ", ".join([*settings, *([] if self.refinement is None else [str(self.refinement)])])


def build_classifier(energy: Any, over: str = "y", classes: Iterable[Any] | int | None = None, **options: Any) -> Classifier:
    """Returns a `Classifier`; the estimator `classifier`, which `composable_energy.classifier` calls."""
    return Classifier(energy, over, classes, **options)


def _offsets(offsets: Sequence[float] | Tensor, count: int) -> tuple[float, ...]:
    try:
        found = torch.as_tensor(offsets, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0)
    if found.shape != (count,) or not bool(found.isfinite().all()):
        raise OptionError(f"offsets are {count} finite numbers, one for each class, got {offsets!r}.")
    return tuple(found.tolist())


def _parts(x: Tensor, rows: Sequence[int] | None, batch_size: int | None) -> Iterator[tuple[Tensor, Sequence[int]]]:
    """Yields points in parts of `batch_size`, with the numbers of their rows."""
    rows = range(len(check_points(x))) if rows is None else rows
    size = len(x) if batch_size is None else check_integer("batch_size", batch_size)
    for first in range(0, len(x), size):
        yield x[first : first + size], rows[first : first + size]
