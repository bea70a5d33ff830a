"""The trainings of a base and its attributes, one after another in one folder; each goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy_image.attributes import count_values
from composable_energy_image.autoencoder import Autoencoder
from composable_energy_image.code_energy import CodeEnergy
from composable_energy_image.cost_log import CostLog, read_costs
from composable_energy_image.data import Labels, Pictures, Preparation
from composable_energy_image.heads import CodeHeads
from composable_energy_image.label_columns import count_columns
from composable_energy_image.reconstruction import AutoencoderWithLabels, DecoderOnly, Reconstruction
from composable_energy_training import AttributeHeads, DenoisingScoreMatching, Monitor, Objective, Optimizer, Ranks, Trainer, join

__all__ = ["AttributePipeline"]

_CHUNK = 500
_CLIP, _WARM_UP = 1.0, 200


@dataclass(frozen=True)
class AttributePipeline:
    """Several trainings.

    Args:
        settings: Those of a recipe: a table for each stage, and `data`, `model` and `training`.
        folder: Where each has a folder of its own.
        device: Where to train.
        ranks: The processes.
        progress: Whether to show bars.
    """

    settings: Mapping[str, Mapping[str, Any]]
    folder: Path
    device: torch.device
    ranks: Ranks
    progress: bool

    @classmethod
    def begin(cls, settings: Mapping[str, Mapping[str, Any]], out: Path, progress: bool) -> AttributePipeline:
        """Joins the processes of a run; the device is this one's unless the settings say another."""
        ranks, device = join(), settings["training"]["device"]
        return cls(settings, out / "stages", torch.device(device or ranks.device), ranks, progress and ranks.first)

    def split(self, pictures: Pictures) -> tuple[Pictures, Pictures]:
        """Returns pictures to learn from, and those that nothing is trained on."""
        share = self.settings["data"]["held_out"]
        if not share:
            return pictures, pictures.take(slice(0))
        held, learnt = pictures.split(share, self.settings["training"]["seed"])
        return learnt, held

    @contextmanager
    def seeded(self, what: str) -> Iterator[None]:
        """A context in which initial weights depend on the seed of the run and a name alone."""
        with torch.random.fork_rng(devices=[]):
            key = f"{self.settings['training']['seed']} {what}".encode()
            torch.manual_seed(int.from_bytes(blake2b(key, digest_size=8).digest(), "little"))
            yield

    def autoencoder(self, coder: Autoencoder, pictures: Pictures, labels: Mapping[str, Labels]) -> None:
        """Trains an autoencoder, then its decoder alone; the attributes help to find codes that tell them."""
        table, variables = self.settings["autoencoder"], count_values(labels)
        weights = {name: table[name] for name in ("noise", "decorrelation", "naming")}
        with self.seeded("labels"):
            whole = AutoencoderWithLabels(coder, count_columns(variables))
        self._fit("autoencoder", whole, Reconstruction(coder.code, variables, **weights), pictures)
        self._standardize(coder, pictures)
        painting = Reconstruction(coder.code, {}, noise=self.settings["decoder"]["noise"])
        self._fit("decoder", DecoderOnly(coder), painting, pictures)

    @torch.no_grad()
    def encoded(self, coder: Autoencoder, pictures: Pictures, *, mirrored: bool = False) -> Tensor:
        """Returns the codes of pictures, with shape $(N, D)$; with `mirrored`, those of their mirror images after them."""
        codes = [coder.encode(images) for images in self._parts(pictures)]
        if mirrored:
            codes += [coder.encode(images.flip(-1)) for images in self._parts(pictures)]
        return torch.cat(codes)

    def base(self, energy: CodeEnergy, codes: Tensor) -> None:
        """Trains a base on codes, with shape $(N, D)$."""
        self._fit("base", energy.net, DenoisingScoreMatching(energy.sigma_min, energy.sigma_max), codes)

    def heads(self, energy: CodeEnergy, codes: Tensor, labels: Mapping[str, Labels]) -> CodeHeads:
        """Returns heads over a base, trained on what is known of codes.

        Args:
            energy: The base.
            codes: Those of pictures, and perhaps of their mirror images, with shape $(N, D)$ or $(2 N, D)$.
            labels: The attributes of the pictures.
        """
        variables, model = count_values(labels), self.settings["model"]
        with self.seeded("heads"):
            options = {"code": codes.shape[1], "width": model["heads_width"], "blocks": model["heads_blocks"]}
            heads = ce.get_encoder("code-heads", outputs=count_columns(variables), sigma_min=energy.sigma_min, **options)
        known = torch.stack([some.known for some in labels.values()]).any(0)
        times = len(codes) // len(known)
        told = {name: some.values[known].repeat(times) for name, some in labels.items()}
        data = codes[known.repeat(times).to(codes.device)], told
        self._fit("heads", heads, AttributeHeads(variables, energy.sigma_min, energy.sigma_max), data)
        return cast(CodeHeads, heads)

    def told(self) -> dict[str, dict[str, float]]:
        """Returns for each stage what its `CostLog` says."""
        found = {name: read_costs(self.folder / name) for name in ("autoencoder", "decoder", "base", "heads")}
        return {name: told for name, told in found.items() if told}

    def _fit(self, name: str, model: nn.Module, objective: Objective, data: Any) -> None:
        table, training = self.settings[name], self.settings["training"]
        pictures = isinstance(data, Pictures)
        Trainer(
            model,
            objective,
            data,
            steps=table["steps"],
            batch_size=table["batch_size"],
            out=self.folder / name,
            seed=training["seed"],
            optimizer=Optimizer(
                rate=table["rate"],
                betas=(0.9, 0.999),
                weight_decay=table["weight_decay"],
                warm_up=min(_WARM_UP, table["steps"] // 10),
                decay=table["decay"],
                clip=_CLIP,
            ),
            ema=table["ema"],
            precision=training["precision"] if pictures else "float32",
            checkpoint_every=training["checkpoint_every"],
            keep=2,
            preparation=Preparation(flip=True) if pictures and self.settings["data"]["flip"] else None,
            monitor=Monitor(gap=None, magnitude=None, acceptance=None),  # these energies are of codes, and large
            callbacks=[CostLog()],
            progress=self.progress,
            device=self.device,
        ).fit()

    @torch.no_grad()
    def _standardize(self, coder: Autoencoder, pictures: Pictures) -> None:
        """Sets the mean and variance of codes to those over all pictures: while training they trailed behind the weights."""
        raw = torch.cat([coder.encode_raw(images) for images in self._parts(pictures)])
        coder.standardize.running_mean.copy_(raw.mean(0))  # pyright: ignore[reportOptionalMemberAccess]
        coder.standardize.running_var.copy_(raw.var(0))  # pyright: ignore[reportOptionalMemberAccess]

    def _parts(self, pictures: Pictures) -> Iterator[Tensor]:
        for rows in torch.arange(len(pictures), device=self.device).split(_CHUNK):
            yield pictures.images(rows)
