"""The recipe `attribute`: adds attributes to a trained base, in less than a minute of one core."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.files import expanded
from composable_energy_image.attributes import AttributeReader, attribute_energies, select_attributes
from composable_energy_image.base_and_attributes import export_run
from composable_energy_image.code_energy import CodeEnergy
from composable_energy_image.data import open_pictures
from composable_energy_image.label_columns import find_joint_labels
from composable_energy_image.pipeline import AttributePipeline
from composable_energy_training import Recipe


@dataclass(frozen=True)
class Attribute(Recipe):
    """Trains heads for new attributes over the base of another run, or a base that comes with the library, such as `faces`.

    The base encodes the pictures and stays frozen. The run folder holds a folder for each attribute, `samples.png` and `report.json`, as
    for `base-and-attributes`. Energies of both runs share the base, so `male & new` counts it once.
    """

    def with_steps(self, steps: int) -> Attribute:
        return self.with_changes({"heads.steps": steps})

    def run(self, data: str | Path, out: str | Path, *, progress: bool = False) -> Path:
        out = expanded(out)
        pipeline, table = AttributePipeline.open(self.settings, out, progress), self.settings["data"]
        base = self._base().to(pipeline.device)
        coder = base.autoencoder
        options = {name: table[name] for name in ("labels", "part", "limit", "strict", "cache")}
        pictures = open_pictures(data, size=coder.size, channels=coder.channels, progress=pipeline.progress, **options)
        if not pictures.labels:
            raise OptionError(f"{pictures} have no attribute to learn: add a CSV to their folder, or name one by data.labels (--labels).")
        train, test = pipeline.split(pictures)
        labels = select_attributes(train, table["attributes"])
        joint = find_joint_labels(labels)
        pipeline.ranks.call_on_first(lambda: self.save(out))
        codes = pipeline.encode(coder, train, mirrored=table["flip"])
        heads = pipeline.train_heads(base, codes, labels, joint, self.settings["model"]["heads_width"])
        energies = list(attribute_energies(base, heads, labels, joint))
        measured = AttributeReader(coder, heads, labels, joint).measure(pipeline.encode(coder, test), test.labels)
        pipeline.ranks.call_on_first(lambda: export_run(out, energies, pipeline.costs(), measured))
        return out

    def _base(self) -> CodeEnergy:
        if (name := self.settings["model"]["base"]) is None:
            raise OptionError("No base is named: set model.base=RUN/base, where RUN is the folder of a run of base-and-attributes.")
        loaded = ce.load(name)
        energy = loaded.get("base") if isinstance(loaded, dict) else loaded  # of a whole run
        base = energy.bases[0].energy if energy is not None and energy.bases else energy
        if not isinstance(base, CodeEnergy):
            raise OptionError(f"model.base must be a base of base-and-attributes, or an attribute over one; {name} is neither.")
        return base


def attribute() -> Attribute:
    """Returns the recipe with its recommended settings."""
    return Attribute.read(Path(__file__).parent / "recipes" / "attribute.toml")
