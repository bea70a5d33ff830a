"""The recipe `base-and-attributes`: from labelled pictures to energies for expressions, in minutes of one core."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

import composable_energy as ce
from composable_energy.errors import ShapeError
from composable_energy.files import expanded, replace_file
from composable_energy_image.attributes import AttributeReader, attribute_energies, draw_events, select_attributes
from composable_energy_image.autoencoder import check_picture_shape
from composable_energy_image.code_energy import CodeEnergy
from composable_energy_image.data import Pictures, open_pictures
from composable_energy_image.label_columns import find_combinations, find_joint_labels
from composable_energy_image.pipeline import STAGES, AttributePipeline
from composable_energy_training import Recipe
from composable_energy_viz.files import write_grid

_LOG = logging.getLogger("composable_energy_training")
_ROWS, _COLUMNS = 16, 8
DRAWS = 64  # of each energy, for the report
_LARGEST, _SAMPLE = 64, 32

AUTOMATIC = {
    "code": (64, 20),
    "width": (256, 192),
    "blocks": (4, 3),
    "heads_width": (256, 128),
    "corrector_steps": (3, 8),
    "components": (256, 0),
    "features": (64, 64),  # 32 for 16 pixels and 48 up to 32, whatever the number of pictures
    "details": (8, 8),  # 0 up to 32 pixels, whose blocks are small
}
"""Settings of the table `model` that may be `"auto"`, with their values for many pictures and for a small set."""

WEIGHTS = {
    "autoencoder": {"naming": (0.05, 0.4, 2.0, 2.0)},
    "decoder": {"reading": (0.05, 0.3, 0.3, 1.5), "adversarial": (0.06, 0.06, 0.06, 0.4)},
}
"""Weights that may be `"auto"`: where a combination of attributes has fewer than 10 pictures on average; where it has 10, in a small set,
with networks, and with a mixture. With the later values codes and pictures of combinations lie further apart, and draws show what was
asked. With few pictures, and with the last values where a mixture does not describe the codes, draws would look worse."""
_PICTURES = 10

_SHORT = {1: {"features": 32, "details": 0}, 2: {"features": 48, "details": 0}}  # by the side in blocks of 16 pixels


@dataclass(frozen=True)
class BaseAndAttributes(Recipe):
    """Trains an autoencoder of pictures, a base energy of its codes, heads that classify the attributes of codes, and last its decoder.

    Where attributes have at most 4,096 combinations, base and heads are one mixture of codes, else networks.

    The run folder holds `base`, a folder for each attribute (`male`; `hair=red` and so on for attributes that are not binary), the contact
    sheet `samples.png`, and `report.json` with steps, processor seconds, losses, the accuracy of heads on held-out pictures and on their
    reconstructions, and the probability of each attribute given its draws, as codes and as pictures. A warning in the log names an
    attribute that the decoder loses. Pictures without labels give the base alone.

    With several processes, batch statistics of the autoencoder's codes are computed per process; everything else is as with one.
    """

    def setting_types(self, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        sizes = dict.fromkeys(("data.size", "data.channels", *(f"model.{name}" for name in AUTOMATIC)), int | Literal["auto"])
        weights = {f"{table}.{name}": float | Literal["auto"] for table, own in WEIGHTS.items() for name in own}
        return {**super().setting_types(changes), **sizes, **weights}

    def with_steps(self, steps: int) -> BaseAndAttributes:
        now = {name: self.settings[name]["steps"] for name in STAGES}
        return self.with_changes({f"{name}.steps": max(1, round(steps * own / sum(now.values()))) for name, own in now.items()})

    def run(self, data: str | Path, out: str | Path, *, progress: bool = False) -> Path:
        own = self.settings["data"]
        size, channels = (None if own[name] == "auto" else own[name] for name in ("size", "channels"))
        check_picture_shape(size or _LARGEST, channels or 3)  # before reading the pictures
        out = expanded(out)
        pipeline = AttributePipeline.open(self.settings, out, progress)
        options = {name: own[name] for name in ("labels", "part", "limit", "strict", "cache")}
        size = automatic_size(data, **options) if size is None else size
        return self._run(open_pictures(data, size=size, channels=channels, progress=pipeline.progress, **options), pipeline, out)

    def train(self, pictures: Pictures, out: str | Path, *, progress: bool = False) -> Path:
        """Trains on pictures that are already open; otherwise as `run`.

        Args:
            pictures: The data. All attributes are learnt if the settings name none.
            out: Folder for checkpoints and energies.
            progress: Whether to show progress bars.

        Raises:
            OptionError: The folder holds another run, or a setting does not fit the pictures.
        """
        out = expanded(out)
        return self._run(pictures, AttributePipeline.open(self.settings, out, progress), out)

    def _run(self, pictures: Pictures, pipeline: AttributePipeline, out: Path) -> Path:
        data, model = self.settings["data"], self.settings["model"]
        train, test = pipeline.split(pictures)
        if not (labels := select_attributes(train, data["attributes"])):
            _LOG.warning("The pictures have no attributes, so a base alone is trained; data.labels=FILE.csv names a table of attributes.")
        pipeline = pipeline.for_pictures(train)
        sizes = resolve_sizes(model, pictures.event_shape[1], small=pipeline.small)
        common = find_combinations(labels)
        pipeline = replace(pipeline, settings=resolve_weights(self.settings, common, 1 if pipeline.small else 2))
        options = {name: sizes[name] for name in ("code", "width", "blocks", "features", "details", "corrector_steps")}
        options |= {name: model[name] for name in ("sigma_min", "sigma_max", "balanced")}
        channels, size, _ = pictures.event_shape

        def new_base(**mixture: int) -> CodeEnergy:
            return cast(CodeEnergy, ce.get("energy", "code-base", size=size, channels=channels, **options, **mixture)).to(pipeline.device)

        with pipeline.seeded("base"):
            base = new_base()
        pipeline.ranks.call_on_first(lambda: self.save(out))
        coder = base.autoencoder
        pipeline.train_autoencoder(coder, train, labels)
        codes, changes = pipeline.encode_training(coder, train)
        heads, joint = None, find_joint_labels(labels) if labels else None
        if common is not None and sizes["components"]:
            plain = codes if changes is None else codes[(changes == 0).all(1)]
            held_out = None if model["components"] != "auto" else pipeline.encode(coder, test) if len(test) else plain
            heads = pipeline.fit_mixture(base, plain, *common, sizes["components"], held_out)
        if heads is not None and common is not None:
            joint, pipeline = common[0], replace(pipeline, settings=resolve_weights(self.settings, common, 3))
            base = new_base(components=len(heads.mixture.log_weights), frames=len(heads.mixture.variances))
            base.net, base.decoder = heads.mixture, coder
        else:
            pipeline.train_base(base, codes, changes)
            if labels:
                heads = pipeline.train_heads(base, codes, labels, joint, sizes["heads_width"])
        base.eval()
        reader = None if heads is None else AttributeReader(coder, heads.eval(), labels, joint)
        pipeline.train_decoder(base, train, reader)
        base.eval()
        energies, measured = [], {}
        if heads is not None and reader is not None:
            energies = list(attribute_energies(base, heads, labels, joint))
            measured = reader.measure(pipeline.encode(coder, test), test.labels)
        pipeline.ranks.call_on_first(lambda: export_run(out, [base, *energies], pipeline.costs(), measured))
        return out


def base_and_attributes() -> BaseAndAttributes:
    """Returns the recipe with its recommended settings."""
    return BaseAndAttributes.read(Path(__file__).parent / "recipes" / "base-and-attributes.toml")


def automatic_size(data: str | Path, **options: Any) -> int:
    """Returns the size for pictures: their shorter side, from 16 to 64, if all of a sample have the same size; else 64."""
    try:
        sample = open_pictures(data, **{**options, "limit": _SAMPLE, "cache": None})
    except ShapeError:  # of different sizes
        return _LARGEST
    return min(max(16, min(sample.event_shape[1:])), _LARGEST)


def resolve_sizes(model: Mapping[str, Any], side: int, *, small: bool) -> dict[str, int]:
    """Returns the values of all settings in `AUTOMATIC`; those that are `"auto"` follow the pictures and their number. The decoder has
    fewer features for pictures with a short side, so that the cost follows the size."""
    automatic = {name: values[small] for name, values in AUTOMATIC.items()} | _SHORT.get(math.ceil(side / 16), {})
    return {name: value if model[name] == "auto" else model[name] for name, value in automatic.items()}


def resolve_weights(settings: Mapping[str, Mapping[str, Any]], common: Any, place: int) -> dict[str, dict[str, Any]]:
    """Returns settings with values of all weights in `WEIGHTS`, those at a place where combinations have 10 pictures. `common` is what
    `find_combinations` returned."""
    separate = common is not None and _PICTURES * len(common[1].unique()) <= len(common[1])
    found = {table: dict(values) for table, values in settings.items()}
    for table, weights in WEIGHTS.items():
        found[table] |= {name: values[place * separate] for name, values in weights.items() if settings[table][name] == "auto"}
    return found


def export_run(out: Path, energies: Sequence[ce.Energy], stages: Mapping[str, Mapping[str, float]], measured: Mapping[str, Any]) -> None:
    """Writes a folder for each energy, a contact sheet with a row of samples for each of the first 16, and the report of a run."""
    for energy in energies:
        energy.save(out / energy.name)
    pictures, draws = draw_events(energies, DRAWS)
    write_grid(out / "samples.png", torch.cat([some[:_COLUMNS] for some in pictures[:_ROWS]]), (0.0, 1.0), {}, columns=_COLUMNS)
    names, seconds = [energy.name for energy in energies], sum(stage["cpu_seconds"] for stage in stages.values())
    report = {"energies": names, "stages": stages, "cpu_seconds": seconds, **measured, "draws": draws}
    replace_file(out / "report.json", f"{json.dumps(report, indent=1)}\n".encode())
