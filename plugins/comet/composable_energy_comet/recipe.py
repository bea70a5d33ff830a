"""The training recipes of COMET: from unlabelled pictures to a model that decomposes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn import functional as F

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.files import expanded, replace_file
from composable_energy.options import check_choice
from composable_energy_comet.component import QuadraticEnergy
from composable_energy_comet.encoders import GlimpseEncoder
from composable_energy_comet.factory import load_comet, save_comet
from composable_energy_comet.model import Comet
from composable_energy_comet.objective import Decomposition, charbonnier, edge_error, squared_error
from composable_energy_comet.sheet import write_sheet
from composable_energy_image.data import Pictures, open_pictures
from composable_energy_image.network_training import read_costs, train_network
from composable_energy_training import CSVLog, Monitor, Ranks, Recipe, join

_STAGES = ("quadratic", "conv", "window")
_OBJECTIVE = ("iterates", "truncate", "cover")
_ERRORS = {"squared": squared_error, "charbonnier": charbonnier, "edges": edge_error}
_BOUNDS = ("model.cap", "training.clip")  # a number, or none
_MEDIAN_OF = 2_000  # pictures; their median is the start image


@dataclass(frozen=True)
class CometRecipe(Recipe):
    """Trains a model with quadratic energies, which is fast, then one with other energies that starts from its encoder.

    The run folder holds the model as `comet`, the model of the first stage as `quadratic`, `decomposition.png` (pictures, reconstructions
    and each component alone) and `report.json`. A stage of 0 steps is skipped. The first stage of `comet-window` trains the attention
    alone, with quadratic energies of few pixels.
    """

    def setting_types(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        kinds = super().setting_types(changes)
        return {**kinds, **{key: float | None for key in _BOUNDS if key in kinds}}

    def with_steps(self, steps: int) -> CometRecipe:
        now = {name: self.settings[name]["steps"] for name in self._stages}
        return self.with_changes({f"{name}.steps": round(steps * own / max(1, sum(now.values()))) for name, own in now.items()})

    def run(self, data: str | Path, out: str | Path, *, progress: bool = False) -> Path:
        return self.train(open_pictures(data, progress=progress, **self.settings["data"]), out, progress=progress)

    def train(self, pictures: Pictures, out: str | Path, *, progress: bool = False) -> Path:
        """Trains on pictures that are already open, without their labels; otherwise as `run`.

        Raises:
            OptionError: The folder holds another run, or a setting does not fit the pictures.
        """
        out = expanded(out)
        if not (stages := [name for name in self._stages if self.settings[name]["steps"]]):
            names = " and ".join(f"{name}.steps" for name in self._stages)
            raise OptionError(f"There is nothing to train: {names} are both 0.")
        for name in stages:
            check_choice(f"{name}.reconstruction", self.settings[name]["reconstruction"], list(_ERRORS))
        ranks = join()
        ranks.call_on_first(lambda: self.save(out))
        comet: Comet | None = None
        for name in stages:
            comet = self._stage(name, pictures, out, comet, ranks, progress and ranks.is_first)
        report = {name: read_costs(out / "stages" / name) for name in stages}
        ranks.call_on_first(lambda: _export(cast(Comet, comet), pictures, out, report))
        return out / "comet"

    def usage(self, folder: str | Path) -> str:
        name = self.settings["model"]["encoder"]
        return f"To decompose pictures, in Python:\n  composable_energy.get('encoder', {name!r}, weights={str(folder)!r}).decompose(x)"

    @property
    def _stages(self) -> list[str]:
        return [name for name in _STAGES if name in self.settings]

    def _stage(self, name: str, pictures: Pictures, out: Path, before: Comet | None, ranks: Ranks, progress: bool) -> Comet:
        table, training = dict(self.settings[name]), self.settings["training"]
        steps, batch_size, rate = (table.pop(key) for key in ("steps", "batch_size", "rate"))
        error, share = _ERRORS[table.pop("reconstruction")], table.pop("slow", 1.0)
        objective = Decomposition(**{key: table.pop(key) for key in _OBJECTIVE if key in table}, reconstruction=error)
        comet = self._model(name, pictures, table)
        known, encoder = ("encoder.find.", comet.encoder.find) if isinstance(comet.encoder, GlimpseEncoder) else ("encoder.", comet.encoder)
        if before is not None:
            encoder.load_state_dict(before.encoder.state_dict())
        train_network(
            out / "stages" / name,
            comet.to(torch.device(training["device"] or ranks.device)),
            objective,
            pictures,
            steps=steps,
            batch_size=batch_size,
            seed=training["seed"],
            store={"every": training["checkpoint_every"], "keep": 2},
            callbacks=[Monitor(None), CSVLog()],  # the limits of the monitor are for energy gaps, which this objective does not have
            progress=progress,
            rate=rate,
            weight_decay=0.0,
            slow=() if before is None or share == 1 else ((known, share),),
            **{key: training[key] for key in ("decay", "clip", "ema", "precision")},
        )
        ranks.call_on_first(lambda: save_comet(comet, out / name))
        return comet

    def _model(self, name: str, pictures: Pictures, energy: Mapping[str, Any]) -> Comet:
        model, seed = dict(self.settings["model"]), self.settings["training"]["seed"]
        channels, size, _ = pictures.event_shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            options = {"size": size, "channels": channels, **model}
            encoder = options.pop("encoder")
            if "window" not in self.settings:
                comet = cast(Comet, ce.get("encoder", encoder, head=name, **options, **energy))
            elif name == "window":
                comet = cast(Comet, ce.get("encoder", encoder, **options, **energy))
            else:
                find = cast(GlimpseEncoder, cast(Comet, ce.get("encoder", encoder, **options)).encoder).find
                comet = Comet(find, QuadraticEnergy(energy["pixels"], channels, find.latent, filters=energy["filters"]))
        some = torch.linspace(0, len(pictures) - 1, min(len(pictures), _MEDIAN_OF)).long()
        comet.energy.set_image(F.adaptive_avg_pool2d(pictures.images(some), comet.energy.size))
        return comet


_RECIPES = Path(__file__).parent / "recipes"

comet_recipe = partial(CometRecipe.read, _RECIPES / "comet.toml")
comet_global_recipe = partial(CometRecipe.read, _RECIPES / "comet-global.toml")
comet_window_recipe = partial(CometRecipe.read, _RECIPES / "comet-window.toml")
comet_paper_recipe = partial(CometRecipe.read, _RECIPES / "comet-paper.toml")


def _export(comet: Comet, pictures: Pictures, out: Path, report: Mapping[str, Any]) -> None:
    save_comet(comet, out / "comet")
    saved = load_comet(out / "comet")
    x = pictures.images(torch.arange(min(8, len(pictures)))).float()
    write_sheet(saved, x, out / "decomposition.png")
    error = float((saved.decode(saved.encode(x)) - x).square().mean())
    replace_file(out / "report.json", f"{json.dumps({'stages': report, 'error_of_8': error}, indent=1)}\n".encode())
