"""Labels of generated pictures: what a labeller returns, checked, as columns of heads to train; and those that an edit keeps."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import Self

import composable_energy as ce
from composable_energy import ClassifierEnergy, Energy, GaussianHead
from composable_energy.errors import ComposableEnergyError, OptionError
from composable_energy_latent.attributes import Attributes, FixedWidth, LogOdds
from composable_energy_latent.generator import Generator
from composable_energy_latent.lace import EditError

Labeller = Callable[[Tensor], Mapping[str, Tensor] | Tensor]

_CHUNK = 250
_FEWEST = 10  # of each label; fewer say nothing about the held-out part
_MOST_LABELS = 100


class LabelError(ComposableEnergyError, ValueError):
    """Labels from which no attribute can be learnt, such as one without positives."""

    documentation: ClassVar[str] = "errors.md#labelerror"


@dataclass(frozen=True)
class Column:
    """One attribute and its columns in the output of the heads."""

    name: str
    target: Tensor  # labels from 0 on, or values, with shape (N,)
    labels: int  # 0 for a continuous attribute
    start: int
    centre: float = 0.0  # mean and standard deviation of values
    scale: float = 1.0

    @property
    def columns(self) -> slice:
        """Its columns: one for a binary or continuous attribute."""
        return slice(self.start, self.start + (self.labels if self.labels > 2 else 1))

    def rows(self, rows: Tensor) -> Self:
        """Returns the same attribute with the labels of some rows."""
        return replace(self, target=self.target[rows])


def label_pictures(base: Energy, z: Tensor, labeller: Labeller, names: Sequence[str] | None, progress: bool) -> dict[str, Tensor]:
    """Returns the labels of the pictures of latent points, by attribute."""
    decoder = base.decoder
    if not isinstance(decoder, Generator):
        raise LabelError(f"{base} has no Generator as its decoder, so it has no pictures: `composable_energy_latent.latent` makes a base.")
    with torch.no_grad():
        parts = tqdm(z.split(_CHUNK), desc="label", disable=not progress)
        return join_labels([_named(labeller(decoder(part)), names, len(part)) for part in parts])


def join_labels(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the labels of all parts, by attribute; each part has the same attributes, as labels or as values."""
    kinds = [{(name, labels.is_floating_point()) for name, labels in part.items()} for part in parts]
    uneven = sorted({name for name, _ in set.union(*kinds) - set.intersection(*kinds)})
    if uneven or not parts[0]:
        seen = f"{', '.join(uneven)} for some batches only, or as labels of some and values of others" if uneven else "no attribute"
        raise LabelError(f"The labeller gave {seen}; return all names each time, and each in one dtype.")
    return {name: torch.cat([part[name].detach() for part in parts]) for name in parts[0]}


def columns_of_labels(labels: Mapping[str, Tensor]) -> list[Column]:
    """Returns the columns of the heads: bool and whole numbers are labels, other numbers are values."""
    columns: list[Column] = []
    for name, target in labels.items():
        start = columns[-1].columns.stop if columns else 0
        columns.append(_continuous(name, target, start) if target.is_floating_point() else _labelled(name, target.long(), start))
    return columns


def _labelled(name: str, target: Tensor, start: int) -> Column:
    if bool((target < 0).any()) or int(target.max()) >= _MOST_LABELS:
        low, high = int(target.min()), int(target.max())
        raise LabelError(f"The labels of {name} go from {low} to {high}; they are whole numbers from 0 to {_MOST_LABELS - 1}.")
    labels = max(2, int(target.max()) + 1)
    counts = torch.bincount(target, minlength=labels).tolist()
    if rare := [label for label, count in enumerate(counts) if count < _FEWEST]:
        which = f"{name}={rare[0]}" if labels > 2 else f"{name}" if rare[0] == 1 else f"a picture without {name}"
        raise LabelError(
            f"Of {len(target)} pictures {counts[rare[0]]} show {which}, too few to learn it (at least {_FEWEST}): draw more with `count`, "
            "lower the labeller's threshold, or leave the attribute out. If the generator never shows it, no latent point has it."
        )
    return Column(name, target, labels, start)


def _continuous(name: str, target: Tensor, start: int) -> Column:
    if broken := int((~target.isfinite()).sum()):
        raise LabelError(f"{broken} of {len(target)} values of {name} are not finite; leave those pictures out, or return bool labels.")
    if (scale := target.float().std().item()) < 1e-6:
        raise LabelError(f"All pictures have the same value of {name}, {target[0].item():g}, so nothing can be learnt.")
    return Column(name, target.float(), 0, start, target.float().mean().item(), scale)


def _named(labels: object, names: Sequence[str] | None, count: int) -> dict[str, Tensor]:
    if isinstance(labels, Tensor):
        columns = labels.unsqueeze(1) if labels.ndim == 1 else labels
        if names is None or columns.ndim != 2 or not columns.shape[1] == len(names) == len(set(names)):
            way = "give each column a name of its own in `names`, or return a mapping of names to labels."
            raise LabelError(f"The labeller returned a tensor of shape {tuple(labels.shape)}: {way}")
        labels = dict(zip(names, columns.unbind(1), strict=True))
    if not isinstance(labels, Mapping) or not all(isinstance(value, Tensor) for value in labels.values()):
        kind = type(next(iter(labels.values()))).__name__ if isinstance(labels, Mapping) else type(labels).__name__
        raise LabelError(f"The labeller returned {kind}; return a mapping of names to tensors of torch, with shape (B,), as `x > 0` is.")
    if (wrong := next((name for name, value in labels.items() if value.shape != (count,)), None)) is not None:
        raise LabelError(f"The labels of {wrong} have shape {tuple(labels[wrong].shape)} for {count} pictures; expected ({count},).")
    return dict(labels)


_ALL = 1e-3  # how far from 1 the probabilities of all labels of a classifier may sum up to

Keep = Attributes | Mapping[str, Energy | GaussianHead] | Iterable[Energy | GaussianHead] | Energy | GaussianHead


@dataclass(frozen=True)
class Kept:
    """One attribute that is kept."""

    energy: Energy  # an event, or the density of a value with the condition `c`
    opposite: Energy | None  # None for a value

    def output(self, z: Tensor) -> Tensor:
        """Returns the log odds of an event, or the value, with shape $(B,)$."""
        if self.opposite is not None:
            return self.opposite.evidence(z) - self.energy.evidence(z)
        output: Any = self.energy.get_submodule("network")(z)
        return output[0][:, 0]

    def labels(self, z: Tensor) -> Tensor:
        """Returns whether points have an attribute, 0 or 1, or their values of it, with shape $(B,)$."""
        output = self.output(z)
        return output if self.opposite is None else (output > 0).to(z)

    def evidence(self, z: Tensor, labels: Tensor) -> Tensor:
        """Returns the evidence of labels or values, with shape $(B,)$."""
        if self.opposite is None:  # the width of the head
            return self.energy.evidence(z, c=labels.unsqueeze(1))
        return torch.where(labels > 0.5, self.energy.evidence(z), self.opposite.evidence(z))

    def stayed(self, before: Tensor, z: Tensor) -> float:
        """Returns the share of points whose label stayed; for a value 1 minus the mean change in standard deviations of the points."""
        after = self.labels(z)
        if self.opposite is not None:
            return (after == before).double().mean().item()
        spread = before.std().clamp(min=1e-6) if len(before) > 1 else before.new_ones(())
        return 1 - ((after - before).abs() / spread).mean().item()


def kept_attributes(keep: Keep, expression: Energy) -> dict[str, Kept]:
    """Returns what is kept by name; of a mapping, what the expression does not speak of."""
    listed: Any = keep if isinstance(keep, Iterable) else [keep]
    named: dict[Any, Any] = dict(keep) if isinstance(keep, Mapping) else {str(getattr(part, "name", "") or part): part for part in listed}
    spoken, found = _variables(expression), {}
    for name, part in named.items():
        energy = part() if isinstance(part, GaussianHead) and isinstance(part.network, FixedWidth) else part
        if not isinstance(energy, Energy) or not (isinstance(part, GaussianHead) or (isinstance(part, ClassifierEnergy) and part.formula)):
            raise OptionError(f"keep takes events of classifiers and continuous attributes of composable_energy_latent, got {part!r}.")
        if not isinstance(keep, Mapping) or spoken.isdisjoint(_variables(energy)):
            found[name] = Kept(energy, None if isinstance(part, GaussianHead) else ~energy)
    return found


def held_labels(kept: Mapping[str, Kept], z: Tensor) -> dict[str, Tensor]:
    """Returns the labels or values of points by name, each with shape $(B,)$. If the events are all labels of one classifier, the most
    probable one holds, also where none has a probability above a half."""
    found = {name: part.labels(z) for name, part in kept.items()}
    groups: dict[Any, list[str]] = {}
    for name, part in kept.items():
        if part.opposite is not None:
            groups.setdefault(frozenset(_variables(part.energy)), []).append(name)
    for names in groups.values():
        odds = torch.stack([kept[name].output(z) for name in names], 1)
        if len(names) > 1 and bool(((odds.sigmoid().sum(1) - 1).abs() < _ALL).all()):
            found |= {name: (odds.argmax(1) == i).to(z) for i, name in enumerate(names)}
    return found


def check_contradictions(expression: Energy, kept: Mapping[str, Kept], labels: Mapping[str, Tensor]) -> None:
    """Raises if no picture can fulfil an expression and keep its labels."""
    events = {name: part for name, part in kept.items() if part.opposite is not None}
    if not events or expression.formula is None:
        return
    rows, counts = torch.stack([labels[name] for name in events], 1).unique(dim=0, return_counts=True)
    for row, count in zip(rows.bool().tolist(), counts.tolist(), strict=True):
        facts = [part.energy if held or part.opposite is None else part.opposite for part, held in zip(events.values(), row, strict=True)]
        if ce.all_of(expression, *facts).unsatisfiable:
            raise EditError(
                f"{expression} contradicts what is kept: {count} of the pictures have {', '.join(map(str, facts))}, which stays. Leave "
                "that out of `keep`, or ask for something else."
            )


def _variables(energy: Energy) -> set[Any]:
    """Returns a variable of events for each network, with its columns, that an expression speaks of."""
    found: set[Any] = set()
    todo = [energy]
    while todo:
        if (part := todo.pop()).formula is not None:
            found |= {_variable(variable.source.network, variable.columns) for variable in part.formula.variables}
        elif not part.terms and "network" in dict(part.named_children()):
            found.add(_variable(part.get_submodule("network"), None))
        else:
            todo += part.terms
    return found


def _variable(network: Callable[..., Any], columns: slice | None) -> Any:
    """Returns a variable that is equal for equal networks and columns, whatever is made of their output."""
    if isinstance(network, FixedWidth):
        return _variable(network.network, slice(network.column, network.column + 1))
    if isinstance(network, LogOdds):
        return _variable(network.network, network.columns)
    event: Any = ce.ClassifierEnergy(network, 0, columns=columns)
    return event.formula.variables[0]
