"""What an edit keeps: the label that each picture has now, or its value of a continuous attribute."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy import ClassifierEnergy, Energy, GaussianHead
from composable_energy.errors import OptionError
from composable_energy_latent.attributes import Attributes, FixedWidth, LogOdds
from composable_energy_latent.flow import EditError

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
    listed: Any = [keep] if isinstance(keep, Energy | GaussianHead) else keep
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
    """Returns the labels or values of points by name, each with shape $(B,)$.

    If the events are all labels of one classifier, the most probable one holds, also where none has a probability above a half.
    """
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
        part = todo.pop()
        if part.formula is not None:
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
