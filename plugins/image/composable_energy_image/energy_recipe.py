"""Recipes of one energy: pictures, a network by name, an objective, and an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import Tensor

from composable_energy import Energy, Recommendation
from composable_energy.errors import ComposableEnergyError, OptionError
from composable_energy.files import expanded, save, stored_options
from composable_energy.options import listed, nearest
from composable_energy.registry import get, get_factory
from composable_energy.sampling.noise import Noise
from composable_energy_image.data import Pictures, Preparation, open_pictures
from composable_energy_image.fitted_noise import FittedNoise, fit_noise
from composable_energy_image.sampler_settings import sampler_options, sampler_parameters, setting
from composable_energy_training import (
    Augmentation,
    Callback,
    Checkpoints,
    ContrastiveDivergence,
    CSVLog,
    DenoisingScoreMatching,
    DiffusionRecoveryLikelihood,
    EnergyDiscrepancy,
    EnergyMatching,
    ImprovedContrastiveDivergence,
    JointEnergyClassifier,
    Monitor,
    NoiseContrastive,
    NoiseDistribution,
    Objective,
    Optimizer,
    Prepared,
    ProgressBar,
    Recipe,
    SampleSheet,
    Trainer,
    join,
)
from composable_energy_training.setting_types import get_parameters
from composable_energy_training.toml import flatten

_OBJECTIVES: Mapping[str, type[Objective]] = {
    "contrastive-divergence": ContrastiveDivergence,
    "denoising-score-matching": DenoisingScoreMatching,
    "diffusion-recovery-likelihood": DiffusionRecoveryLikelihood,
    "energy-discrepancy": EnergyDiscrepancy,
    "energy-matching": EnergyMatching,
    "improved-contrastive-divergence": ImprovedContrastiveDivergence,
    "joint-energy-classifier": JointEnergyClassifier,
    "noise-contrastive": NoiseContrastive,
}
_IN_OTHER_TABLES = frozenset({"steps", "sampler", "options", "augment"})  # arguments of an objective
_NOT_SETTINGS = frozenset({"model", "objective", "data", "optimizer", "callbacks"})
_OF_STEPS = ("ema", "accumulate", "precision")  # settings of an optimizer in the table of the training
_OPTIONAL_TABLES = frozenset({"augmentation", "sampling", "sheets"})
_PLAIN = (bool, int, float, str, list, tuple, type(None))


@dataclass(frozen=True)
class EnergyRecipe(Recipe):
    r"""Trains one energy on pictures. Each table of the settings holds the arguments of a class or function:

    | table | arguments of |
    |---|---|
    | `[data]` | `open_pictures` |
    | `[preparation]` | `Preparation` |
    | `[model]` | `get`: a `name` and its options |
    | `[objective]` | an objective by `name`, such as `"contrastive-divergence"` |
    | `[chains]` | its negative samples: the `steps` for each training step, a `sampler` by name and its options |
    | `[augmentation]` | `Augmentation` of chains of the buffer; optional |
    | `[training]` | `Trainer`; `ema`, `accumulate`, `precision` of `Optimizer`; `keep`, `checkpoint_every` of `Checkpoints`; a `device` |
    | `[optimizer]` | `Optimizer`, the others |
    | `[monitor]` | `Monitor` |
    | `[log]` | `CSVLog` |
    | `[sheets]` | `SampleSheet`: its `every` and `n`; optional |
    | `[sampling]` | the sampler that the trained energy recommends, and its options; without the table the network's own |

    In `[chains]` and `[sampling]`, the step of `langevin` may be written as in papers, by `step` and `noise`:
    $x' = x - \text{step}\, \nabla E(x) + \text{noise}\, \xi$.
    """

    def setting_types(self, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        tables = self._parameters({**flatten(self.settings), **changes})
        return {f"{table}.{name}": parameter.annotation for table, parameters in tables.items() for name, parameter in parameters.items()}

    def resolved_settings(self) -> Mapping[str, Any]:
        resolved = {}
        for table, parameters in self._parameters(flatten(self.settings)).items():
            if table in self.settings or table not in _OPTIONAL_TABLES:
                defaults = {name: parameter.default for name, parameter in parameters.items() if isinstance(parameter.default, _PLAIN)}
                defaults = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
                given = self._table(table)
                resolved[table] = {**given, **{name: value for name, value in defaults.items() if name not in given}}
        return resolved

    def _parameters(self, settings: Mapping[str, Any]) -> dict[str, dict[str, Parameter]]:
        """Returns the parameters of each table; settings determine the model, the objective and the samplers."""
        model, objective = _energy_factory(self._name(settings, "model")), _objective_class(self._name(settings, "objective"))
        own, optimizer, store = get_parameters(objective), get_parameters(Optimizer), get_parameters(Checkpoints)
        device = setting("device", Optional[str]).replace(default=None)  # noqa: UP045  (a value)
        files = {"checkpoint_every": store["every"], "keep": store["keep"], "device": device}
        tables = {
            "data": get_parameters(open_pictures, {"path", "progress"}),
            "preparation": get_parameters(Preparation),
            "model": {"name": setting("name", str), **get_parameters(model, get_parameters(model).keys() - stored_options(model).keys())},
            "objective": {"name": setting("name", str), **get_parameters(objective, _IN_OTHER_TABLES if "options" in own else set())},
            "training": {**get_parameters(Trainer, _NOT_SETTINGS), **{name: optimizer.pop(name) for name in _OF_STEPS}, **files},
            "optimizer": optimizer,
            "monitor": get_parameters(Monitor),
            "log": get_parameters(CSVLog),
            "sheets": {name: parameter for name, parameter in get_parameters(SampleSheet).items() if name in ("every", "n")},
            "sampling": sampler_parameters(settings.get("sampling.sampler", "langevin")),
        }
        if objective is NoiseContrastive:
            tables["objective"]["noise"] = setting("noise", FittedNoise)
        start = own.get("start")
        if start is not None:
            annotation = Union[start.annotation, tuple[float, float]]  # noqa: UP007  (a value)
            tables["objective"]["start"] = start.replace(annotation=annotation)
        if "options" in own:
            options = sampler_parameters(settings.get("chains.sampler", "langevin"))
            tables["chains"] = {name: option for name, option in options.items() if name != "sampler" or name in own}
            tables["chains"]["steps"] = setting("steps", int)
        if "augment" in own:
            tables["augmentation"] = get_parameters(Augmentation)
        return tables

    def energy(self) -> Energy:
        """Returns the untrained energy, whose weights are determined by the seed of the training.

        Raises:
            PluginNotFound: No plug-in offers it.
            OptionError: It does not take an option.
        """
        table = self._table("model")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._table("training").get("seed", 0))
            energy = _call("model", partial(get, "energy", table.pop("name", "")), table)
        if "sampling" in self.settings:
            energy.recommended = Recommendation(*sampler_options(self._table("sampling")))
        return energy

    def trainer(
        self, pictures: Pictures, out: str | Path | None = None, *, callbacks: Sequence[Callback] = (), progress: bool = False
    ) -> Trainer:
        """Returns the trainer of a new energy, `trainer.model`.

        Args:
            pictures: The data.
            out: The folder for checkpoints, the log and sheets; None writes no files.
            callbacks: Further callbacks.
            progress: Whether to show a progress bar.

        Raises:
            OptionError: A setting does not fit the data, the network or the objective.
        """
        energy, device = self.energy(), join().device
        self._check_fits(energy, pictures)
        training, preparation = self._table("training"), _call("preparation", Preparation, self._table("preparation"))
        device = torch.device(training.pop("device", None) or device)
        names = {"checkpoint_every": "every", "keep": "keep"}
        store = {own: training.pop(name) for name, own in names.items() if name in training}
        steps = {name: training.pop(name) for name in _OF_STEPS if name in training}
        checkpoints = _call("training", Checkpoints, {"folder": out, **store})
        monitor = _call("monitor", Monitor, self._table("monitor"))
        own = [] if out is None else self._callbacks()
        return _call(
            "training",
            Trainer,
            {
                **training,
                "model": energy.to(device),
                "objective": self._build_objective(partial(fit_noise, pictures, preparation, training.get("seed", 0), device)),
                "data": Prepared(pictures, preparation),
                "optimizer": _call("optimizer", Optimizer, {**self._table("optimizer"), **steps}),
                "callbacks": [*callbacks, *own, checkpoints, monitor, *[ProgressBar()] * progress],
            },
        )

    def run(self, data: str | Path, out: str | Path, *, progress: bool = False) -> Path:
        out = expanded(out)
        ranks, folder = join(), out / "energy"
        progress = progress and ranks.is_first
        pictures = _call("data", open_pictures, {**self._table("data"), "path": data, "progress": progress})
        trainer = self.trainer(pictures, out, progress=progress)
        ranks.call_on_first(lambda: self.save(out))
        trainer.fit()
        ranks.call_on_first(lambda: save(trainer.model, folder))  # pyright: ignore[reportArgumentType]
        return folder

    def _build_objective(self, fit: Callable[[str], NoiseDistribution]) -> Objective:
        arguments = self._table("objective")
        objective = _objective_class(arguments.pop("name"))
        if isinstance(arguments.get("start"), list):
            arguments["start"] = _Normal(*arguments["start"])
        if objective is NoiseContrastive:
            arguments["noise"] = fit(arguments.get("noise", "flow"))
        if "chains" in self.settings:
            chains = self._table("chains")
            if "steps" not in chains:
                raise OptionError(f"The table [chains] of the recipe {self.name!r} lacks the number of steps: write `steps = ...`.")
            arguments["steps"] = chains.pop("steps")
            sampler, arguments["options"] = sampler_options(chains)
            if "sampler" in get_parameters(objective):
                arguments["sampler"] = sampler
        if "augmentation" in self.settings:
            arguments["augment"] = _call("augmentation", Augmentation, self._table("augmentation"))
        return _call("objective", objective, arguments)

    def _callbacks(self) -> list[Callback]:
        sheets = [_call("sheets", SampleSheet, self._table("sheets"))] if "sheets" in self.settings else []
        return [_call("log", CSVLog, self._table("log")), *sheets]

    def _check_fits(self, energy: Energy, pictures: Pictures) -> None:
        """Raises if the sizes or the labels of network and pictures differ."""
        if energy.event_shape not in (None, pictures.event_shape):
            raise OptionError(
                f"{pictures} do not fit {energy}, which takes {tuple(energy.event_shape or ())}: set data.size and data.channels to the "
                "size of the network, or model.size and model.channels to the size of the pictures."
            )
        settings = self.resolved_settings()
        objective, labels = settings["objective"], settings["model"].get("labels")
        attribute = objective.get("condition") or objective.get("label")
        if attribute is not None:
            names = pictures.variable(attribute).names
            if labels != len(names):
                raise OptionError(f"{attribute} has {len(names)} values, model.labels is {labels}: set model.labels={len(names)}.")
        elif labels is not None:
            raise OptionError(f"model.labels is {labels}, but no attribute is named: set objective.condition, or model.labels=none.")

    def _table(self, name: str) -> dict[str, Any]:
        return dict(self.settings.get(name, {}))

    def _name(self, settings: Mapping[str, Any], table: str) -> str:
        name = settings.get(f"{table}.name")
        if not isinstance(name, str):
            raise OptionError(f"The recipe {self.name!r} names no {table}: write `name = ...` in its table [{table}].")
        return name


def energy_recipe() -> EnergyRecipe:
    """Returns the recipe `energy`, which has no settings; its class reads files that extend no recipe."""
    about = "one network of any name on pictures: write every table yourself, or start from the file of another recipe"
    return EnergyRecipe("energy", about, "", "pictures", "", {})


@dataclass(frozen=True)
class _Normal:
    """Draws starts of chains with independent normal coordinates. Checkpoints record the name of this class."""

    mean: float
    deviation: float

    def __call__(self, like: Tensor, noise: Noise) -> Tensor:
        return self.mean + self.deviation * noise.normal(like)


def _energy_factory(name: str) -> Callable[..., Any]:
    return get_factory("energy", name.partition("/")[0])


def _objective_class(name: str) -> type[Objective]:
    if name not in _OBJECTIVES:
        raise OptionError(f"There is no objective {name!r}.{nearest(name, _OBJECTIVES)}{listed(_OBJECTIVES)}")
    return _OBJECTIVES[name]


def _call(table: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Calls a class or function with the arguments of a table, and raises OptionError if it rejects one."""
    try:
        return function(**arguments)
    except ComposableEnergyError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"The table [{table}] does not fit: {error}") from error
