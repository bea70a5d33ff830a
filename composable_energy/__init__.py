"""Combine energy-based models with logic: `(E_male & ~E_smile).sample(shape)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from composable_energy.lazy import lazy_exports

if TYPE_CHECKING:
    from composable_energy import samplers, viz
    from composable_energy.algebra import (
        Conditioned,
        Conjunction,
        Decoded,
        Difference,
        Disjunction,
        Inside,
        Negation,
        PulledBack,
        Relative,
        Restricted,
        Sharpened,
        Weighted,
        all_of,
        any_of,
        inside,
        negate,
    )
    from composable_energy.bases import RelativeEnergy, WeightedBase
    from composable_energy.catalog import EnergyFamily, get_encoder, get_energy, get_family
    from composable_energy.classification import classifier
    from composable_energy.diagnostics import RunningMoments, SamplingWarning
    from composable_energy.energy import Energy, Recommendation
    from composable_energy.events import ClassifierEnergy, GaussianHead
    from composable_energy.explain import Explanation
    from composable_energy.identity import Origin
    from composable_energy.inference import Inference
    from composable_energy.installed import EnergyInfo, EnergyTable, energies
    from composable_energy.lift import CallableEnergy, DistributionEnergy, ScoreEnergy, as_energy
    from composable_energy.memo import shared
    from composable_energy.normalizers import LogZ, calibrate, log_z
    from composable_energy.observations import observed, reward
    from composable_energy.registry import (
        API_VERSION,
        PluginRecord,
        get,
        get_kernel,
        get_recipe,
        get_sampler,
        get_world,
        plugins,
        refresh,
        register,
    )
    from composable_energy.saving import load, push, save
    from composable_energy.trajectories import over_time

__version__ = "0.1.0"

__all__ = [
    "API_VERSION",
    "CallableEnergy",
    "ClassifierEnergy",
    "Conditioned",
    "Conjunction",
    "Decoded",
    "Difference",
    "Disjunction",
    "DistributionEnergy",
    "Energy",
    "EnergyFamily",
    "EnergyInfo",
    "EnergyTable",
    "Explanation",
    "GaussianHead",
    "Inference",
    "Inside",
    "LogZ",
    "Negation",
    "Origin",
    "PluginRecord",
    "PulledBack",
    "Recommendation",
    "Relative",
    "RelativeEnergy",
    "Restricted",
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
    "classifier",
    "energies",
    "get",
    "get_encoder",
    "get_energy",
    "get_family",
    "get_kernel",
    "get_recipe",
    "get_sampler",
    "get_world",
    "inside",
    "load",
    "log_z",
    "negate",
    "observed",
    "over_time",
    "plugins",
    "push",
    "refresh",
    "register",
    "reward",
    "samplers",
    "save",
    "shared",
    "viz",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "algebra": (
            "Conditioned",
            "Conjunction",
            "Decoded",
            "Difference",
            "Disjunction",
            "Inside",
            "Negation",
            "PulledBack",
            "Relative",
            "Restricted",
            "Sharpened",
            "Weighted",
            "all_of",
            "any_of",
            "inside",
            "negate",
        ),
        "catalog": ("EnergyFamily", "get_encoder", "get_energy", "get_family"),
        "classification": ("classifier",),
        "diagnostics": ("RunningMoments", "SamplingWarning"),
        "distributions": ("DistributionEnergy",),
        "bases": ("RelativeEnergy", "WeightedBase"),
        "energy": ("Energy", "Recommendation"),
        "events": ("ClassifierEnergy", "GaussianHead"),
        "explain": ("Explanation",),
        "identity": ("Origin",),
        "inference": ("Inference",),
        "installed": ("EnergyInfo", "EnergyTable", "energies"),
        "lift": ("CallableEnergy", "ScoreEnergy", "as_energy"),
        "normalizers": ("LogZ", "calibrate", "log_z"),
        "observations": ("observed", "reward"),
        "trajectories": ("over_time",),
        "registry": (
            "API_VERSION",
            "PluginRecord",
            "get",
            "get_kernel",
            "get_recipe",
            "get_sampler",
            "get_world",
            "plugins",
            "refresh",
            "register",
        ),
        "saving": ("load", "push", "save"),
        "memo": ("shared",),
    },
    submodules=("diagnostics", "errors", "events", "registry", "samplers", "sampling", "supports", "testing", "viz"),
)
