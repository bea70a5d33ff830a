"""The recipe `attribute`: new attributes join a base that is there, in less than a minute of one core."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_image.attributes import accuracies, chosen, energies
from composable_energy_image.code_energy import CodeEnergy
from composable_energy_image.data import open_pictures
from composable_energy_image.export import export_run
from composable_energy_image.pipeline import AttributePipeline
from composable_energy_training import Recipe

__all__ = ["Attribute", "attribute"]


@dataclass(frozen=True)
class Attribute(Recipe):
    """Trains heads for new attributes over the base of another run, or one that comes with the library such as `faces`.

    Pictures are encoded by the base, which stays as it is. The folder of a run has a folder for each attribute, `samples.png` and
    `report.json`, as with `base-and-attributes`. Energies of both runs share the base, so `male & new` counts it once.
    """

    def with_steps(self, steps: int) -> Attribute:
        return self.settled({"heads.steps": steps})

    def run(self, data: str | Path, out: str | Path, *, progress: bool = False) -> Path:
        out = Path(out).expanduser()
        stages, table = AttributePipeline.begin(self.settings, out, progress), self.settings["data"]
        base = self._base().to(stages.device)
        coder = base.autoencoder
        options = {name: table[name] for name in ("labels", "part", "limit", "strict", "cache")}
        pictures = open_pictures(data, size=coder.size, channels=coder.channels, progress=stages.progress, **options)
        if not pictures.labels:
            raise OptionError(
                f"There is no attribute to learn: {pictures}. Lay a CSV of attributes beside the pictures, or name one by data.labels."
            )
        learnt, held = stages.split(pictures)
        labels = chosen(learnt, table["attributes"])
        stages.ranks.agreed(lambda: self.claim(out))
        heads = stages.heads(base, stages.encoded(coder, learnt, mirrored=table["flip"]), labels)
        found = list(energies(base, heads, labels))
        right = accuracies(heads, stages.encoded(coder, held), held.labels, labels)
        stages.ranks.agreed(lambda: export_run(out, found, stages.told(), right))
        return out

    def _base(self) -> CodeEnergy:
        name = self.settings["model"]["base"]
        if name is None:
            raise OptionError("Say over which base: model.base=RUN/base, where RUN is the folder of a run of base-and-attributes.")
        energy = ce.load(name)
        base = energy.bases[0].energy if energy.bases else energy
        if not isinstance(base, CodeEnergy):
            raise OptionError(f"model.base is a base of base-and-attributes, or an attribute over one; {name} is of another kind.")
        return base


def attribute() -> Attribute:
    """Returns the recipe with the settings that are recommended."""
    return Attribute.read(Path(__file__).parent / "recipes" / "attribute.toml")
