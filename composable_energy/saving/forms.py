"""How each node and each leaf of the core is written: what it has besides its terms, and how it is made of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution

from composable_energy.algebra import (
    Conditioned,
    Conjunction,
    Difference,
    Disjunction,
    Negation,
    PulledBack,
    Relative,
    Sharpened,
    Weighted,
)
from composable_energy.energy import Energy
from composable_energy.events import ClassifierEnergy, DensityEnergy, GaussianHead, IntervalEnergy
from composable_energy.lifting import DistributionEnergy

__all__ = ["FORMS", "Form", "form_of"]

_WEIGHT = (int, float, Tensor)
_LABEL = (int, type(None))


@dataclass(frozen=True)
class Form:
    """How one class is written.

    Args:
        cls: The class.
        terms: How many terms it has; None for one or more.
        types: The names of its other parts, with the types that they may have.
        parts: Gives them for an energy.
        make: Makes an energy of terms and parts.
    """

    cls: type[Energy]
    terms: int | None
    types: Mapping[str, tuple[type, ...]] = field(default_factory=dict)
    parts: Callable[[Any], Mapping[str, Any]] | None = None
    make: Callable[..., Energy] | None = None

    def parts_of(self, energy: Energy) -> Mapping[str, Any]:
        """Returns what an energy has besides its terms."""
        return {name: getattr(energy, name) for name in self.types} if self.parts is None else self.parts(energy)

    def made(self, terms: Sequence[Energy], parts: Mapping[str, Any]) -> Energy:
        """Returns an energy of terms and parts.

        Raises:
            ValueError: There are too many or too few of either, or a part has another type.
        """
        if len(terms) != self.terms and (self.terms is not None or not terms):
            raise ValueError(f"it has {len(terms)} terms")
        if parts.keys() != self.types.keys():
            raise ValueError(f"it has the parts {sorted(parts)}, expected {sorted(self.types)}")
        for name, value in parts.items():
            if not isinstance(value, self.types[name]) or (isinstance(value, bool) and bool not in self.types[name]):
                raise ValueError(f"its {name} is a {type(value).__name__}")
        return (self.make or self.cls)(*terms, **parts)


def _classifier_parts(energy: ClassifierEnergy) -> Mapping[str, Any]:
    """Labels of chains are a tensor under `label`, where others are a list."""
    config = energy.config()
    return config | {"label": config.pop("each")} if "each" in config else config


def _classifier(*, label: list[int] | Tensor | None, **parts: Any) -> ClassifierEnergy:
    return ClassifierEnergy(each=label, **parts) if isinstance(label, Tensor) else ClassifierEnergy(label=label, **parts)


def _density(*, network: nn.Module, base: Energy | None, dims: int, columns: slice | None, name: str, c: Tensor | None) -> DensityEnergy:
    density = DensityEnergy(GaussianHead(network, base, dims=dims, columns=columns), c)
    density.name = name
    return density


def _interval(
    *, network: nn.Module, base: Energy | None, dims: int, columns: slice | None, name: str, low: Tensor, high: Tensor
) -> IntervalEnergy:
    return IntervalEnergy(GaussianHead(network, base, dims=dims, columns=columns), low, high, name)


_HEAD = {"base": (Energy, type(None)), "columns": (slice, type(None)), "name": (str,)}
_GAUSSIAN = {"network": (nn.Module,), "dims": (int,), **_HEAD}

FORMS: Mapping[str, Form] = {
    "conjunction": Form(Conjunction, None),
    "disjunction": Form(Disjunction, None, {"weights": (tuple, type(None)), "log_z": (tuple, type(None))}),
    "negation": Form(Negation, 1, {"mode": (str,), "weight": _WEIGHT, "offset": (int, float)}),
    "weighted": Form(Weighted, 1, {"weight": _WEIGHT, "inverse": (bool,)}),
    "sharpened": Form(Sharpened, 1, {"weight": _WEIGHT}),
    "difference": Form(Difference, 2),
    "relative": Form(Relative, 2),
    "conditioned": Form(Conditioned, 1, {"values": (dict,)}),
    "pulled_back": Form(PulledBack, 1, {"decoder": (nn.Module,)}),
    "distribution": Form(DistributionEnergy, 0, {"distribution": (Distribution,), "name": (str,)}),
    "classifier": Form(
        ClassifierEnergy,
        0,
        {"logits": (nn.Module,), "label": (list, Tensor, type(None)), "labels": _LABEL, **_HEAD},
        _classifier_parts,
        _classifier,
    ),
    "density": Form(DensityEnergy, 0, {"c": (Tensor, type(None)), **_GAUSSIAN}, DensityEnergy.config, _density),
    "interval": Form(IntervalEnergy, 0, {"low": (Tensor,), "high": (Tensor,), **_GAUSSIAN}, IntervalEnergy.config, _interval),
}
_NAMES = {form.cls: name for name, form in FORMS.items()}


def form_of(energy: Energy) -> str | None:
    """Returns the name of the form in which an energy is written; None if it has none."""
    return _NAMES.get(type(energy))
