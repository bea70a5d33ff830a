"""Recipes of one energy: pictures, a network by name, an objective, and how its weights follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import Tensor

from composable_energy.catalog import get_energy
from composable_energy.energy import Energy, Recommendation
from composable_energy.errors import ComposableEnergyError, OptionError
from composable_energy.noise import Noise
from composable_energy.registry import get_sampler
from composable_energy.registry.api import REGISTRY
from composable_energy.saving import save
from composable_energy.suggestions import listed, nearest
from composable_energy_image.data import Pictures, Preparation, open_pictures
from composable_energy_training.augmentation import Augmentation
from composable_energy_training.callbacks import Callback, CSVLog, SampleSheet
from composable_energy_training.contrastive import ContrastiveDivergence
from composable_energy_training.denoising import DenoisingScoreMatching
from composable_energy_training.improved import ImprovedContrastiveDivergence
from composable_energy_training.joint import JointEnergyClassifier
from composable_energy_training.kinds import Argument, arguments_of
from composable_energy_training.monitor import Monitor
from composable_energy_training.objective import Objective
from composable_energy_training.optimizing import Optimizer
from composable_energy_training.ranks import join
from composable_energy_training.recipes import Recipe
from composable_energy_training.toml import flat
from composable_energy_training.trainer import Trainer

__all__ = ["EnergyRecipe", "energy_recipe"]

_OBJECTIVES: Mapping[str, type[Objective]] = {
    "contrastive-divergence": ContrastiveDivergence,
    "denoising-score-matching": DenoisingScoreMatching,
    "improved-contrastive-divergence": ImprovedContrastiveDivergence,
    "joint-energy-classifier": JointEnergyClassifier,
}
_CHAINS = frozenset({"steps", "sampler", "options", "augment"})  # an objective's arguments that are tables of their own
_ELSEWHERE = frozenset({"model", "objective", "data", "out", "optimizer", "preparation", "monitor", "callbacks", "progress", "dtype"})
_OPTIONAL = frozenset({"augmentation", "sampling", "sheets"})


@dataclass(frozen=True)
class EnergyRecipe(Recipe):
    r"""Trains one energy on pictures. Each table of its settings has the arguments of what it makes:

    | table | what |
    |---|---|
    | `[data]` | `open_pictures` |
    | `[preparation]` | `Preparation` |
    | `[model]` | `get_energy`: a `name` and its options |
    | `[objective]` | an objective by `name`, such as `"contrastive-divergence"`, and its arguments |
    | `[chains]` | its negative samples: the `steps` of training, a `sampler` by name and its options |
    | `[augmentation]` | `Augmentation` of chains in the buffer; none without the table |
    | `[training]` | `Trainer` |
    | `[optimizer]` | `Optimizer` |
    | `[monitor]` | `Monitor` |
    | `[log]` | `CSVLog` |
    | `[sheets]` | `SampleSheet`: its `every` and `n`; no sheets without the table |
    | `[sampling]` | what the energy recommends when it is done: a `sampler` and its options; the network's own without the table |

    In `[chains]` and `[sampling]`, `langevin` may be written as papers do, by `step` and `noise`:
    $x' = x - \text{step}\, \nabla E(x) + \text{noise}\, \xi$.
    """

    def accepted(self, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        tables = self._arguments({**flat(self.settings), **changes})
        return {f"{table}.{name}": argument.kind for table, arguments in tables.items() for name, argument in arguments.items()}

    def written(self) -> Mapping[str, Any]:
        tables = self._arguments(flat(self.settings))
        tables = {name: arguments for name, arguments in tables.items() if name in self.settings or name not in _OPTIONAL}
        written = {name: self._table(name) for name in tables}
        for name, arguments in tables.items():
            for key, argument in arguments.items():
                if key not in written[name] and argument.written:
                    default = argument.default
                    written[name][key] = list(default) if isinstance(default, tuple) else default
        return written

    def _arguments(self, settings: Mapping[str, Any]) -> dict[str, dict[str, Argument]]:
        """Returns the arguments that each table may have, where settings say what it makes."""
        model, objective = _factory(self._named(settings, "model")), _objective(self._named(settings, "objective"))
        own = arguments_of(objective)
        tables = {
            "data": arguments_of(open_pictures, {"path", "progress"}),
            "preparation": arguments_of(Preparation),
            "model": {"name": Argument(str), **arguments_of(model)},
            "objective": {"name": Argument(str), **{name: argument for name, argument in own.items() if name not in _CHAINS}},
            "training": arguments_of(Trainer, _ELSEWHERE),
            "optimizer": arguments_of(Optimizer),
            "monitor": arguments_of(Monitor),
            "log": arguments_of(CSVLog),
            "sheets": {name: argument for name, argument in arguments_of(SampleSheet).items() if name in ("every", "n")},
            "sampling": _sampler_arguments(settings.get("sampling.sampler", "langevin")),
        }
        start = own.get("start")
        if start is not None:
            tables["objective"]["start"] = Argument(Union[start.kind, tuple[float, float]], start.default)  # noqa: UP007  (a value)
        if "options" in own:
            options = _sampler_arguments(settings.get("chains.sampler", "langevin"))
            tables["chains"] = {name: option for name, option in options.items() if name != "sampler" or name in own}
            tables["chains"]["steps"] = Argument(int)
        if "augment" in own:
            tables["augmentation"] = arguments_of(Augmentation)
        return tables

    def energy(self) -> Energy:
        """Returns the energy, untrained; the seed of the training says its weights.

        Raises:
            PluginNotFound: No plug-in offers it.
            OptionError: It does not take an option.
        """
        table = self._table("model")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._table("training").get("seed", 0))
            energy = _made("model", partial(get_energy, table.pop("name", "")), table)
        if "sampling" in self.settings:
            energy.recommended = Recommendation(*_sampler(self._table("sampling")))
        return energy

    def trainer(
        self, pictures: Pictures, out: str | Path | None = None, *, callbacks: Sequence[Callback] = (), progress: bool = False
    ) -> Trainer:
        """Returns the trainer of a new energy, `trainer.model`.

        Args:
            pictures: The data.
            out: Where checkpoints, the log and sheets go; None writes none.
            callbacks: What is told of the run beside them.
            progress: Whether to show a bar.

        Raises:
            OptionError: A setting does not fit the data, the network or the objective.
        """
        energy, device = self.energy(), join().device
        self._check_fits(energy, pictures)
        training = self._table("training")
        return _made(
            "training",
            Trainer,
            {
                **training,
                "device": training.get("device") or device,
                "model": energy,
                "objective": self._objective(),
                "data": pictures,
                "out": out,
                "optimizer": _made("optimizer", Optimizer, self._table("optimizer")),
                "preparation": _made("preparation", Preparation, self._table("preparation")),
                "monitor": _made("monitor", Monitor, self._table("monitor")),
                "callbacks": [*callbacks, *([] if out is None else self._callbacks())],
                "progress": progress,
            },
        )

    def run(self, data: str | Path, out: str | Path, *, progress: bool = False) -> Path:
        out = Path(out).expanduser()
        ranks, folder = join(), out / "energy"
        told = progress and ranks.first
        trainer = self.trainer(_made("data", open_pictures, {**self._table("data"), "path": data, "progress": told}), out, progress=told)
        ranks.agreed(lambda: self.claim(out))
        trainer.fit()
        ranks.agreed(lambda: save(trainer.model, folder))  # pyright: ignore[reportArgumentType]
        return folder

    def _objective(self) -> Objective:
        arguments = self._table("objective")
        made = _objective(arguments.pop("name"))
        if isinstance(arguments.get("start"), list):
            arguments["start"] = _Normal(*arguments["start"])
        if "chains" in self.settings:
            chains = self._table("chains")
            if "steps" not in chains:
                raise OptionError(f"The table [chains] of the recipe {self.name!r} does not say how many steps: write `steps = ...`.")
            arguments["steps"] = chains.pop("steps")
            sampler, arguments["options"] = _sampler(chains)
            if "sampler" in arguments_of(made):
                arguments["sampler"] = sampler
        if "augmentation" in self.settings:
            arguments["augment"] = _made("augmentation", Augmentation, self._table("augmentation"))
        return _made("objective", made, arguments)

    def _callbacks(self) -> list[Callback]:
        sheets = [_made("sheets", SampleSheet, self._table("sheets"))] if "sheets" in self.settings else []
        return [_made("log", CSVLog, self._table("log")), *sheets]

    def _check_fits(self, energy: Energy, pictures: Pictures) -> None:
        if energy.event_shape not in (None, pictures.event_shape):
            raise OptionError(
                f"{pictures} do not fit {energy}, which takes {tuple(energy.event_shape or ())}: set data.size and data.channels to what "
                "the network takes, or model.size and model.channels to what the pictures have."
            )
        objective, labels = self.written()["objective"], self.written()["model"].get("labels")
        attribute = objective.get("condition") or objective.get("label")
        if attribute is not None:
            names = pictures.variable(attribute).names
            if labels != len(names):
                raise OptionError(f"{attribute} has {len(names)} values, model.labels is {labels}: set model.labels={len(names)}.")
        elif labels is not None:
            raise OptionError(f"model.labels is {labels}, but no attribute is named: set objective.condition, or model.labels=none.")

    def _table(self, name: str) -> dict[str, Any]:
        return dict(self.settings.get(name, {}))

    def _named(self, settings: Mapping[str, Any], table: str) -> str:
        name = settings.get(f"{table}.name")
        if not isinstance(name, str):
            raise OptionError(f"The recipe {self.name!r} does not say which {table}: write `name = ...` in its table [{table}].")
        return name


def energy_recipe() -> EnergyRecipe:
    """Returns the recipe `energy`, which has no settings; a file whose settings are whole is read by its class."""
    about = "one network of any name on pictures: write every table yourself, or start from the file of another recipe"
    return EnergyRecipe("energy", about, "", "pictures", "", {})


@dataclass(frozen=True)
class _Normal:
    """Starts of chains: independent normal coordinates."""

    mean: float
    deviation: float

    def __call__(self, like: Tensor, noise: Noise) -> Tensor:
        return self.mean + self.deviation * noise.normal(like)


def _factory(model: str) -> Callable[..., Any]:
    name = model.partition("/")[0]
    return REGISTRY.load("energy", REGISTRY.entry("energy", name))


def _objective(name: str) -> type[Objective]:
    if name not in _OBJECTIVES:
        raise OptionError(f"There is no objective {name!r}.{nearest(name, _OBJECTIVES)}{listed(_OBJECTIVES)}")
    return _OBJECTIVES[name]


def _sampler_arguments(name: str) -> dict[str, Argument]:
    """The options of a sampler that can be written down; of Langevin also the two numbers that papers give."""
    options = arguments_of(get_sampler(name))
    papers = {"step": float, "noise": float} if {"step_size", "temperature"} <= options.keys() else {}
    kinds = {**papers, **{key: option.kind for key, option in options.items()}}
    return {"sampler": Argument(str), **{key: Argument(Optional[kind]) for key, kind in kinds.items()}}  # noqa: UP045  (kind is a value)


def _sampler(table: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name of a sampler and its options; `step` and `noise` of a paper become a step size and a temperature."""
    options = {key: value for key, value in table.items() if value is not None}
    name = options.pop("sampler", "langevin")
    if "step" in options or "noise" in options:
        both = {"step", "noise"} <= options.keys()
        if not both or {"step_size", "temperature"} & options.keys():
            raise OptionError(f"A sampler's step is said by step and noise, or by step_size and temperature; got {', '.join(options)}.")
        step, noise = options.pop("step"), options.pop("noise")
        if not step > 0:
            raise OptionError(f"step must be positive, got {step!r}.")
        options["step_size"], options["temperature"] = 2 * step, noise**2 / (2 * step)
    return name, options


def _made(table: str, made: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Calls a class or function; what it does not take is an error of the table, whoever raises it."""
    try:
        return made(**arguments)
    except ComposableEnergyError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"The table [{table}] does not fit: {error}") from error
