"""Combine energy-based models with logic: `(E_male & ~E_smile).sample(shape)`."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        all_of,
        any_of,
        negate,
    )
    from composable_energy.diagnostics import RunningMoments, SamplingWarning
    from composable_energy.energy import Energy, Recommendation, RelativeEnergy, WeightedBase
    from composable_energy.events import ClassifierEnergy, GaussianHead
    from composable_energy.explain import Explanation
    from composable_energy.identity import Origin
    from composable_energy.inference import Inference
    from composable_energy.lifting import CallableEnergy, DistributionEnergy, ScoreEnergy, as_energy
    from composable_energy.normalizers import LogZ, calibrate, log_z
    from composable_energy.registry import (
        API_VERSION,
        EnergyFamily,
        PluginRecord,
        get_encoder,
        get_energy,
        get_family,
        get_kernel,
        get_recipe,
        get_sampler,
        get_world,
        plugins,
        refresh,
        register,
    )
    from composable_energy.saving import load, save
    from composable_energy.sharing import shared

__version__ = "0.1.0"

__all__ = [
    "API_VERSION",
    "CallableEnergy",
    "ClassifierEnergy",
    "Conditioned",
    "Conjunction",
    "Difference",
    "Disjunction",
    "DistributionEnergy",
    "Energy",
    "EnergyFamily",
    "Explanation",
    "GaussianHead",
    "Inference",
    "LogZ",
    "Negation",
    "Origin",
    "PluginRecord",
    "PulledBack",
    "Recommendation",
    "Relative",
    "RelativeEnergy",
    "RunningMoments",
    "SamplingWarning",
    "ScoreEnergy",
    "Sharpened",
    "Weighted",
    "WeightedBase",
    "all_of",
    "any_of",
    "as_energy",
    "calibrate",
    "get_encoder",
    "get_energy",
    "get_family",
    "get_kernel",
    "get_recipe",
    "get_sampler",
    "get_world",
    "load",
    "log_z",
    "negate",
    "plugins",
    "refresh",
    "register",
    "save",
    "shared",
]

# The modules whose `__all__` the names above come from.
_HOMES = (
    "registry",
    "energy",
    "algebra",
    "events",
    "explain",
    "identity",
    "inference",
    "distributions",
    "lifting",
    "normalizers",
    "saving",
    "sharing",
    "diagnostics",
)


def __getattr__(name: str) -> Any:
    """Imports what a name needs at its first use: `composable-energy --help` does not wait for torch."""
    if name in __all__:
        for home in _HOMES:
            module = importlib.import_module(f"{__name__}.{home}")
            if name in module.__all__:
                globals()[name] = getattr(module, name)
                return globals()[name]
    elif not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
