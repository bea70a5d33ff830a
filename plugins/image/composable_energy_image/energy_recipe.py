"""Recipes of one energy: pictures, a network by name, an objective, and an optimizer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Any, Literal, Optional, Union, cast, get_args

import torch
from torch import Tensor

import composable_energy_training as training
from composable_energy import Energy, Recommendation
from composable_energy.errors import ComposableEnergyError, OptionError
from composable_energy.files import expanded, stored_options
from composable_energy.options import check_choice, listed, nearest
from composable_energy.registry import get, get_factory
from composable_energy.sampling import Noise
from composable_energy_image.data import Pictures, Preparation, open_pictures
from composable_energy_training import Callback, Recipe, Trainer, join
from composable_energy_training.toml import flatten, get_parameters

_OBJECTIVES: Mapping[str, type[training.Objective]] = {
    "contrastive-divergence": training.ContrastiveDivergence,
    "denoising-score-matching": training.DenoisingScoreMatching,
    "diffusion-recovery-likelihood": training.DiffusionRecoveryLikelihood,
    "energy-discrepancy": training.EnergyDiscrepancy,
    "energy-matching": training.EnergyMatching,
    "improved-contrastive-divergence": training.ImprovedContrastiveDivergence,
    "joint-energy-classifier": training.JointEnergyClassifier,
    "noise-contrastive": training.NoiseContrastive,
}
_IN_OTHER_TABLES = frozenset({"steps", "sampler", "options", "augment"})  # arguments of an objective
_NOT_SETTINGS = frozenset({"model", "objective", "data", "optimizer", "callbacks"})
_OF_STEPS = ("ema", "accumulate", "precision")  # settings of an optimizer in the table of the training
_OPTIONAL_TABLES = frozenset({"augmentation", "sampling", "sheets"})
_NOISES = Literal["gaussian", "flow"]
_NOISE_PICTURES = 5000  # are enough for the noise, which need not be close to the data
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
                defaults = {name: each.default for name, each in parameters.items() if isinstance(each.default, _PLAIN)}
                defaults = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
                given = self._table(table)
                resolved[table] = given | {name: value for name, value in defaults.items() if name not in given}
        return resolved

    def _parameters(self, settings: Mapping[str, Any]) -> dict[str, dict[str, Parameter]]:
        """Returns the parameters of each table; settings determine the model, the objective and the samplers."""
        model = get_factory("energy", self._name(settings, "model").partition("/")[0])
        objective = _objective_class(self._name(settings, "objective"))
        own, optimizer, store = get_parameters(objective), get_parameters(training.Optimizer), get_parameters(training.Checkpoints)
        device = _setting("device", Optional[str]).replace(default=None)  # noqa: UP045  (a value)
        files = {"checkpoint_every": store["every"], "keep": store["keep"], "device": device}
        tables = {
            "data": get_parameters(open_pictures, {"path", "progress"}),
            "preparation": get_parameters(Preparation),
            "model": {"name": _setting("name", str), **get_parameters(model, get_parameters(model).keys() - stored_options(model).keys())},
            "objective": {"name": _setting("name", str), **get_parameters(objective, _IN_OTHER_TABLES if "options" in own else set())},
            "training": {**get_parameters(Trainer, _NOT_SETTINGS), **{name: optimizer.pop(name) for name in _OF_STEPS}, **files},
            "optimizer": optimizer,
            "monitor": get_parameters(training.Monitor),
            "log": get_parameters(training.CSVLog),
            "sheets": {name: parameter for name, parameter in get_parameters(training.SampleSheet).items() if name in ("every", "n")},
            "sampling": _sampler_parameters(settings.get("sampling.sampler", "langevin")),
        }
        if objective is training.NoiseContrastive:
            tables["objective"]["noise"] = _setting("noise", _NOISES)
        if (start := own.get("start")) is not None:
            annotation = Union[start.annotation, tuple[float, float]]  # noqa: UP007  (a value)
            tables["objective"]["start"] = start.replace(annotation=annotation)
        if "options" in own:
            options = _sampler_parameters(settings.get("chains.sampler", "langevin"))
            tables["chains"] = {name: option for name, option in options.items() if name != "sampler" or name in own}
            tables["chains"]["steps"] = _setting("steps", int)
        if "augment" in own:
            tables["augmentation"] = get_parameters(training.Augmentation)
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
            energy.recommended = Recommendation(*_sampler_options(self._table("sampling")))
        return energy

    def trainer(
        self, pictures: Pictures, out: str | Path | None = None, *, callbacks: Sequence[Callback] = (), progress: bool = False
    ) -> Trainer:
        """Returns the trainer of a new energy, `trainer.model`.

        Args:
            out: The folder for checkpoints, the log and sheets; None writes no files.

        Raises:
            OptionError: A setting does not fit the data, the network or the objective.
        """
        energy, device = self.energy(), join().device
        self._check_fits(energy, pictures)
        own, preparation = self._table("training"), _call("preparation", Preparation, self._table("preparation"))
        device = torch.device(own.pop("device", None) or device)
        names = {"checkpoint_every": "every", "keep": "keep"}
        store = {new: own.pop(name) for name, new in names.items() if name in own}
        steps = {name: own.pop(name) for name in _OF_STEPS if name in own}
        checkpoints = _call("training", training.Checkpoints, {"folder": out, **store})
        monitor = _call("monitor", training.Monitor, self._table("monitor"))
        files: list[Callback] = [] if out is None else [_call("log", training.CSVLog, self._table("log"))]
        if out is not None and "sheets" in self.settings:
            files.append(_call("sheets", training.SampleSheet, self._table("sheets")))
        return _call(
            "training",
            Trainer,
            {
                **own,
                "model": energy.to(device),
                "objective": self._build_objective(partial(_fit_noise, pictures, preparation, own.get("seed", 0), device)),
                "data": training.Prepared(pictures, preparation),
                "optimizer": _call("optimizer", training.Optimizer, {**self._table("optimizer"), **steps}),
                "callbacks": [*callbacks, *files, checkpoints, monitor, *[training.ProgressBar()] * progress],
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
        ranks.call_on_first(lambda: cast(Energy, trainer.model).save(folder))
        return folder

    def _build_objective(self, fit: Callable[[str], training.NoiseDistribution]) -> training.Objective:
        arguments = self._table("objective")
        objective = _objective_class(arguments.pop("name"))
        if isinstance(arguments.get("start"), list):
            arguments["start"] = _Normal(*arguments["start"])
        if objective is training.NoiseContrastive:
            arguments["noise"] = fit(arguments.get("noise", "flow"))
        if "chains" in self.settings:
            if "steps" not in (chains := self._table("chains")):
                raise OptionError(f"The table [chains] of the recipe {self.name!r} lacks the number of steps: write `steps = ...`.")
            arguments["steps"] = chains.pop("steps")
            sampler, arguments["options"] = _sampler_options(chains)
            if "sampler" in get_parameters(objective):
                arguments["sampler"] = sampler
        if "augmentation" in self.settings:
            arguments["augment"] = _call("augmentation", training.Augmentation, self._table("augmentation"))
        return _call("objective", objective, arguments)

    def _check_fits(self, energy: Energy, pictures: Pictures) -> None:
        """Raises if the sizes or the labels of network and pictures differ."""
        if energy.event_shape not in (None, pictures.event_shape):
            raise OptionError(
                f"{pictures} do not fit {energy}, which takes {tuple(energy.event_shape or ())}: set data.size and data.channels to the "
                "size of the network, or model.size and model.channels to the size of the pictures."
            )
        settings = self.resolved_settings()
        objective, labels = settings["objective"], settings["model"].get("labels")
        if (attribute := objective.get("condition") or objective.get("label")) is not None:
            if labels != len(names := pictures.variable(attribute).names):
                raise OptionError(f"{attribute} has {len(names)} values, model.labels is {labels}: set model.labels={len(names)}.")
        elif labels is not None:
            raise OptionError(f"model.labels is {labels}, but no attribute is named: set objective.condition, or model.labels=none.")

    def _table(self, name: str) -> dict[str, Any]:
        return dict(self.settings.get(name, {}))

    def _name(self, settings: Mapping[str, Any], table: str) -> str:
        if not isinstance(name := settings.get(f"{table}.name"), str):
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


def _objective_class(name: str) -> type[training.Objective]:
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


def _fit_noise(pictures: Pictures, preparation: Preparation, seed: int, device: torch.device, name: str) -> training.NoiseDistribution:
    """Returns a noise that is fitted to the first pictures; they should be dequantized, because constant pixels have no density."""
    check_choice("objective.noise", name, get_args(_NOISES))
    rows = torch.arange(min(_NOISE_PICTURES, len(pictures)))
    x = preparation(pictures.images(rows).cpu(), Noise(seed, range(len(rows))).child("noise"))
    return (training.GaussianNoise.fit(x) if name == "gaussian" else training.FlowNoise.fit(x, seed=seed)).to(device)


def _setting(name: str, annotation: Any) -> Parameter:
    """Returns a setting of a type, without a default."""
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation)


def _sampler_parameters(name: str) -> dict[str, Parameter]:
    """Returns the options of a sampler, each optional; for Langevin also the step and the noise of papers."""
    options = get_parameters(get("sampler", name))
    papers = {"step": float, "noise": float} if {"step_size", "temperature"} <= options.keys() else {}
    types = {**papers, **{key: option.annotation for key, option in options.items()}}
    return {"sampler": _setting("sampler", str), **{key: _setting(key, Optional[kind]) for key, kind in types.items()}}  # noqa: UP045


def _sampler_options(table: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name of a sampler and its options; `step` and `noise` of a paper become a step size and a temperature."""
    options = {key: value for key, value in table.items() if value is not None}
    name = options.pop("sampler", "langevin")
    if "step" in options or "noise" in options:
        if not {"step", "noise"} <= options.keys() or {"step_size", "temperature"} & options.keys():
            raise OptionError(f"Set either step and noise of a sampler, or step_size and temperature; got {', '.join(options)}.")
        step, noise = options.pop("step"), options.pop("noise")
        if not step > 0:
            raise OptionError(f"step must be positive, got {step!r}.")
        options["step_size"], options["temperature"] = 2 * step, noise**2 / (2 * step)
    return name, options
