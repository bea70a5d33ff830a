"""The training stages of a base and its attributes in one folder; each stage resumes where it stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.options import check_number
from composable_energy.sampling import Noise
from composable_energy_image.adversarial import AdversarialDecoder, AdversarialReconstruction, PictureReader
from composable_energy_image.attributes import AttributeReader, count_values
from composable_energy_image.autoencoder import Autoencoder
from composable_energy_image.code_energy import CodeEnergy, CodeHeads, CodeNetwork
from composable_energy_image.code_mixture import MixtureHeads
from composable_energy_image.data import Labels, Pictures, Preparation
from composable_energy_image.data.preparation import Distortion
from composable_energy_image.label_columns import JointHeads, JointLabels, count_columns
from composable_energy_image.mixture_fitting import STEPS, describes, fit_mixture
from composable_energy_image.network_training import read_costs, seeded, set_standardization, train_network, write_costs
from composable_energy_image.reconstruction import AutoencoderWithLabels, DecoderOnly, Reconstruction
from composable_energy_training import AttributeHeads, DenoisingScoreMatching, Monitor, Objective, Prepared, Ranks, join

STAGES = ("autoencoder", "base", "heads", "reader", "decoder")
"""The stages, in order. The decoder comes last, because it learns from draws of the base, and from what a reader reads of pictures."""

_CHUNK = 500
_AMOUNTS = ("noise", "decorrelation", "naming", "adversarial", "reading", "passes", "batch", "copies", "components")
_LEAST = {"batch_size": 2, **dict.fromkeys(_AMOUNTS, 0)}  # of settings; the statistics of codes need two rows
_SHORT = 32  # the longest side of pictures of which an autoencoder needs half of the steps
_READER_NOISE = 0.02, 0.1  # of pictures that the reader learns from
_LOG = logging.getLogger("composable_energy_training")


@dataclass(frozen=True)
class AttributePipeline:
    """The stages in `STAGES`, trained in turn in folders of their names. Settings are theirs, and `data`, `model` and `training`."""

    settings: Mapping[str, Mapping[str, Any]]
    folder: Path
    device: torch.device
    ranks: Ranks
    progress: bool
    small: bool = False

    @classmethod
    def open(cls, settings: Mapping[str, Mapping[str, Any]], out: Path, progress: bool) -> AttributePipeline:
        """Joins the processes of a run. The device is that of the settings, or that of this process; OptionError: one is out of range."""
        for key, value in ((f"{table}.{name}", own[name]) for table, own in settings.items() for name in own.keys() & _LEAST.keys()):
            if value != "auto":
                check_number(key, value, least=_LEAST[key.partition(".")[2]])
        ranks, device = join(), settings["training"]["device"]
        return cls(settings, out / "stages", torch.device(device or ranks.device), ranks, progress and ranks.is_first)

    def for_pictures(self, pictures: Pictures) -> AttributePipeline:
        """Returns the pipeline for a set of training pictures, which is small if the settings say so."""
        return replace(self, small=len(pictures) < self.settings["small"]["below"])

    def split(self, pictures: Pictures) -> tuple[Pictures, Pictures]:
        """Returns the training pictures and the held-out pictures, without copies of training pictures."""
        if not (share := self.settings["data"]["held_out"]):
            return pictures, pictures.take(slice(0))
        try:
            test, train = pictures.split(share, self.settings["training"]["seed"])
        except OptionError as error:
            raise OptionError(f"data.held_out: {error} Set it to 0 to hold out none.") from None
        learnt, held = ([hash(x.numpy().tobytes()) for some in self._chunks(part) for x in some.cpu()] for part in (train, test))
        if (copies := torch.isin(torch.tensor(held), torch.tensor(learnt))).any():
            _LOG.warning(f"{int(copies.sum())} of {len(test)} held-out pictures are copies of training pictures, and are left out.")
        return train, test.take(~copies)

    def seeded(self, part: str) -> AbstractContextManager[None]:
        """Seeds initial weights by the seed of the run and the name of a part, and restores the random state on exit."""
        return seeded(self.settings["training"]["seed"], part)

    def train_autoencoder(self, coder: Autoencoder, pictures: Pictures, labels: Mapping[str, Labels]) -> None:
        """Trains an autoencoder. The attributes are an auxiliary task, which keeps them readable from codes."""
        table, variables = self.settings["autoencoder"], count_values(labels)
        weights = {name: table[name] for name in ("noise", "decorrelation", "naming")}
        with self.seeded("labels"):
            model = AutoencoderWithLabels(coder, count_columns(variables))
        steps = table["steps"] if coder.size > _SHORT else max(1, table["steps"] // 2)
        self._fit("autoencoder", model, Reconstruction(coder.code, variables, **weights), pictures, steps=steps)
        with torch.no_grad():
            raw = torch.cat([coder.encode_raw(images) for images in self._chunks(pictures)])
        set_standardization(coder.standardize, raw)

    def train_decoder(self, energy: CodeEnergy, pictures: Pictures, codes: AttributeReader | None) -> None:
        """Trains the decoder alone: adversarially, on reconstructions and on draws of the energy, or on reconstructions only.

        What `codes` reads of drawn codes, and the labels of pictures, are read of decoded pictures by a classifier, which is trained first.

        A discriminator that sees few pictures often knows them: beyond `passes` through them, half of the steps are left out.
        """
        coder, table = energy.autoencoder, self.settings["decoder"]
        if not table["adversarial"]:
            self._fit("decoder", DecoderOnly(coder), Reconstruction(coder.code, {}, noise=table["noise"]), pictures)
            return
        draws = energy.latents.sample(table["draws"], seed=self.settings["training"]["seed"])
        variables, reader = {} if codes is None else count_values(codes.labels), None
        if codes is not None and table["reading"]:
            with self.seeded("reader"):
                reader = PictureReader(coder, count_columns(variables))
            self._fit("reader", reader, AttributeHeads(variables, *_READER_NOISE), pictures)
        with self.seeded("discriminator"):
            model = AdversarialDecoder(coder, draws, reader, {} if codes is None else codes.read(draws))
        weights = {"weight": table["adversarial"], "reading": table["reading"]}
        objective = AdversarialReconstruction(variables, noise=table["noise"], **weights)
        steps = min(table["steps"], max(1, table["steps"] // 2, 2 * table["passes"] * len(pictures) // table["batch_size"]))
        self._fit("decoder", model, objective, pictures, steps=steps, betas=(0.5, 0.99), warm_up=min(50, steps // 10))

    @torch.no_grad()
    def encode(self, coder: Autoencoder, pictures: Pictures, *, mirrored: bool = False) -> Tensor:
        """Returns the codes of pictures, with shape $(N, D)$; with `mirrored`, followed by the codes of their mirror images."""
        codes = [coder.encode(images) for images in self._chunks(pictures)]
        if mirrored:
            codes += [coder.encode(images.flip(-1)) for images in self._chunks(pictures)]
        return torch.cat(codes)

    @torch.no_grad()
    def encode_training(self, coder: Autoencoder, pictures: Pictures) -> tuple[Tensor, Tensor | None]:
        """Returns the codes that the energies learn from, with shape $(K N, D)$: `encode`, and for a small set also changed pictures. The
        second result is the changes with shape $(K N, C)$, which are 0 for pictures as they are; None if no picture is changed."""
        flip = self.settings["data"]["flip"]
        codes, prepare = [self.encode(coder, pictures, mirrored=flip)], self._preparation()
        changes = [codes[0].new_zeros(len(codes[0]), Distortion.NUMBERS)]
        if prepare is None or not prepare.distortion or not self.settings["small"]["copies"]:
            return codes[0], None
        mirror, distortion = Preparation(flip=flip), prepare.distortion
        noise = Noise(self.settings["training"]["seed"], range(len(pictures))).child("codes")
        for copy in range(self.settings["small"]["copies"]):
            for images, rows in zip(self._chunks(pictures), torch.arange(len(pictures)).split(_CHUNK), strict=True):
                keys = noise.at(copy).for_chains(rows.tolist())
                changes.append(distortion.draw(images, keys))
                codes.append(coder.encode(distortion.apply(mirror(images, keys), changes[-1])))
        return torch.cat(codes), torch.cat(changes)

    def _preparation(self) -> Preparation | None:
        """Returns the random changes of training pictures; None if there are none."""
        changes = {name: self.settings["small"][name] for name in ("rotation", "zoom", "shift", "bend")} if self.small else {}
        prepare = Preparation(flip=self.settings["data"]["flip"], **changes)
        return prepare if prepare.flip or prepare.distortion else None

    def train_base(self, energy: CodeEnergy, codes: Tensor, changes: Tensor | None = None) -> None:
        """Trains a base on codes with shape $(N, D)$ of pictures, some of them with changes with shape $(N, C)$.

        Half of the rows are pictures as they are. Without the changes as a condition, draws would be changed pictures. Trained on both
        together, the energy learns from both, and without a change it is the density of unchanged pictures alone.

        References:
            Distribution augmentation for generative modeling (Jun et al., 2020).
            Elucidating the design space of diffusion-based generative models (Karras et al., 2022), https://arxiv.org/abs/2206.00364
        """
        net = cast(CodeNetwork, energy.net)
        options: dict[str, Any] = {"sigma_min": energy.sigma_min, "sigma_max": energy.sigma_max, "scale": 1.0 if net.balanced else None}
        if changes is None:
            self._fit("base", net, DenoisingScoreMatching(**options), codes)
            return
        as_they_are = (changes == 0).all(1)
        times = max(1, round(int((~as_they_are).sum()) / int(as_they_are.sum())))
        data = [torch.cat([part[as_they_are].repeat(times, 1), part[~as_they_are]]) for part in (codes, changes)]
        with self.seeded("augmented base"):
            sizes = {"width": net.net.read.out_features, "blocks": len(net.net.inner)}
            model = CodeNetwork(codes.shape[1], conditions=changes.shape[1], balanced=net.balanced, **sizes).to(codes.device)
        self._fit("base", model, DenoisingScoreMatching(**options, condition="changes"), (data[0], {"changes": data[1]}))
        model.write_unconditioned(net)

    def fit_mixture(
        self, energy: CodeEnergy, codes: Tensor, joint: JointLabels, rows: Tensor, total: int, held_out: Tensor | None
    ) -> MixtureHeads | None:
        """Fits a mixture of about `total` modes to codes, and those of mirror images behind them; returns its heads, or None if it does not
        describe the held-out codes. `rows` are the combinations of attributes in the pictures, with shape $(N,)$, -1 if one is unknown."""
        began = time.process_time()
        rows = rows.repeat(len(codes) // len(rows)).to(codes.device)
        mixture = fit_mixture(codes, rows, joint.table, total, self.settings["training"]["seed"])
        if held_out is not None and not describes(mixture, codes, held_out):
            _LOG.info("A mixture does not describe the codes, so base and heads are networks.")
            return None
        loss = torch.cat([mixture(some, sigma=energy.sigma_min) for some in codes.split(_CHUNK)]).mean()
        sizes = {"components": len(mixture.log_weights), "frames": len(mixture.variances)}
        options = {"outputs": len(joint), "code": codes.shape[1], "sigma_min": energy.sigma_min, **sizes}
        heads = cast(MixtureHeads, ce.get("encoder", "code-mixture-heads", **options))
        heads.mixture = mixture
        self.ranks.call_on_first(lambda: write_costs(self.folder / "base", STEPS, time.process_time() - began, float(loss)))
        return heads

    def train_heads(
        self, energy: CodeEnergy, codes: Tensor, labels: Mapping[str, Labels], joint: JointLabels | None, width: int
    ) -> CodeHeads:
        """Returns heads over a base, trained on codes of pictures and of mirror images with a known attribute; `joint`: combinations."""
        variables, model = count_values(labels), self.settings["model"]
        outputs = count_columns(variables) if joint is None else len(joint)
        objective = AttributeHeads if joint is None else JointHeads
        with self.seeded("heads"):
            options = {"code": codes.shape[1], "width": width, "blocks": model["heads_blocks"]}
            heads = ce.get("encoder", "code-heads", outputs=outputs, sigma_min=energy.sigma_min, **options)
        known = torch.stack([some.known for some in labels.values()]).any(0)
        times = len(codes) // len(known)
        values = {name: some.values[known].repeat(times) for name, some in labels.items()}
        data = codes[known.repeat(times).to(codes.device)], values
        self._fit("heads", heads, objective(variables, energy.sigma_min, energy.sigma_max), data)
        return cast(CodeHeads, heads)

    def costs(self) -> dict[str, dict[str, float]]:
        """Returns the steps, processor seconds and loss of each finished stage."""
        return {name: costs for name in STAGES if (costs := read_costs(self.folder / name))}

    def _fit(self, name: str, model: nn.Module, objective: Objective, data: Any, **options: Any) -> None:
        table, training = self.settings[name], self.settings["training"]
        pictures = isinstance(data, Pictures)
        batch = table["batch_size"] * (self.settings["small"]["batch"] if self.small else 1)
        train_network(
            self.folder / name,
            model.to(self.device),
            objective,
            Prepared(data, self._preparation()) if pictures else data,
            steps=options.pop("steps", table["steps"]),
            batch_size=max(2, round(batch)),
            seed=training["seed"],
            store={"every": training["checkpoint_every"], "keep": 2},
            callbacks=[Monitor(gap=None, magnitude=None, acceptance=None)],  # these energies are of codes, and large
            progress=self.progress,
            precision=training["precision"] if pictures else "float32",
            **{option: table[option] for option in ("rate", "weight_decay", "decay", "ema")},
            **options,
        )

    def _chunks(self, pictures: Pictures) -> Iterator[Tensor]:
        for rows in torch.arange(len(pictures), device=self.device).split(_CHUNK):
            yield pictures.images(rows)
