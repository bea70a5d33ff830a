"""The recipe `base-and-attributes`: labelled pictures to energies that stand in expressions, in minutes of one core."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import composable_energy as ce
from composable_energy_image.attributes import accuracies, chosen, energies
from composable_energy_image.autoencoder import check_picture
from composable_energy_image.code_energy import CodeEnergy
from composable_energy_image.data import Pictures, open_pictures
from composable_energy_image.export import export_run
from composable_energy_image.pipeline import AttributePipeline
from composable_energy_training import Recipe

__all__ = ["BaseAndAttributes", "base_and_attributes"]

_STAGES = ("autoencoder", "decoder", "base", "heads")


@dataclass(frozen=True)
class BaseAndAttributes(Recipe):
    """Trains an autoencoder of pictures, a base energy of its codes, and heads that name the attributes of codes.

    The folder of a run has `base`, a folder for each attribute (`male`; `hair=red` and so on where there are other values than no and
    yes), the sheet `samples.png`, and `report.json`: steps, processor seconds and losses, and how often heads are right about pictures
    that nothing was trained on. Pictures without labels give the base alone.

    With several processes, batch statistics of the autoencoder's codes are those of each process; all else is as with one.
    """

    def with_steps(self, steps: int) -> BaseAndAttributes:
        """Returns the recipe with so many steps in all, of which each stage has its share."""
        now = {name: self.settings[name]["steps"] for name in _STAGES}
        return self.settled({f"{name}.steps": max(1, round(steps * own / sum(now.values()))) for name, own in now.items()})

    def run(self, data: str | Path, out: str | Path, *, progress: bool = False) -> Path:
        check_picture(self.settings["data"]["size"], self.settings["data"]["channels"])  # before many are read
        out = Path(out).expanduser()
        stages = AttributePipeline.begin(self.settings, out, progress)
        options = {name: self.settings["data"][name] for name in ("size", "channels", "labels", "part", "limit", "strict", "cache")}
        return self._run(open_pictures(data, progress=stages.progress, **options), stages, out)

    def train(self, pictures: Pictures, out: str | Path, *, progress: bool = False) -> Path:
        """Trains on pictures that are open; else as `run`.

        Args:
            pictures: The data, whose attributes are all learnt if the settings name none.
            out: Where checkpoints and energies go.
            progress: Whether to show bars.

        Raises:
            OptionError: The folder holds another run, or a setting does not fit the pictures.
        """
        out = Path(out).expanduser()
        return self._run(pictures, AttributePipeline.begin(self.settings, out, progress), out)

    def _run(self, pictures: Pictures, stages: AttributePipeline, out: Path) -> Path:
        data, model = self.settings["data"], self.settings["model"]
        learnt, held = stages.split(pictures)
        labels = chosen(learnt, data["attributes"])
        with stages.seeded("base"):
            channels, size, _ = pictures.event_shape
            options = {name: model[name] for name in ("code", "width", "blocks", "sigma_min", "sigma_max")}
            base = cast(CodeEnergy, ce.get_energy("code-base", size=size, channels=channels, **options)).to(stages.device)
        stages.ranks.agreed(lambda: self.claim(out))
        coder = base.autoencoder
        stages.autoencoder(coder, learnt, labels)
        codes = stages.encoded(coder, learnt, mirrored=data["flip"])
        stages.base(base, codes)
        found, right = [], {}
        if labels:
            heads = stages.heads(base, codes, labels)
            found = list(energies(base, heads, labels))
            right = accuracies(heads, stages.encoded(coder, held), held.labels, labels)
        base.eval()
        stages.ranks.agreed(lambda: export_run(out, [base, *found], stages.told(), right))
        return out


def base_and_attributes() -> BaseAndAttributes:
    """Returns the recipe with the settings that are recommended."""
    return BaseAndAttributes.read(Path(__file__).parent / "recipes" / "base-and-attributes.toml")
