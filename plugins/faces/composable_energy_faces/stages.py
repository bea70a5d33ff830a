"""The stages of training, in order; each leaves files from which the next one, or a second attempt, goes on."""

from __future__ import annotations

__all__ = ["STAGES", "Run"]

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from . import weights
from .data import SEEDS, FaceFiles, draw_to
from .fitting import Effort, fit
from .networks import CODE, Autoencoder, Base, Heads, Judge
from .objectives import autoencoder_loss, base_loss, decoder_loss, heads_loss, judge_loss

TRAINING_FACES, JUDGE_FACES = 120_000, 24_000

EFFORTS = {
    "judge": Effort(steps=3_000, rate=3e-3, weight_decay=1e-3),
    "autoencoder": Effort(steps=5_500, decay=0.6),
    "decoder": Effort(steps=6_000, rate=1e-3),
    "base": Effort(steps=20_000, average=0.999),
    "heads": Effort(steps=12_000, weight_decay=1e-2),
    "conditional": Effort(steps=20_000, average=0.999),
}
"""How long each network is trained at effort 1."""


@dataclass(frozen=True)
class Run:
    """One training run: where its files are, and how long it trains.

    Attributes:
        folder: Everything that is drawn, and every checkpoint.
        effort: Multiplies the steps of every stage.
    """

    folder: Path
    effort: float = 1.0

    def train(self, name: str, build: Callable[[], nn.Module], objective: Callable[[nn.Module], Callable[[int], Tensor]]) -> nn.Module:
        """Trains a network, or only loads it if that is done; initial weights depend on its name alone."""
        torch.manual_seed(sum(name.encode()))
        network = build()
        settings = EFFORTS[name]
        steps = max(20, round(settings.steps * self.effort))
        effort = Effort(steps, settings.rate, settings.decay, settings.weight_decay, settings.average)
        report = fit(network, objective(network), effort, checkpoint=self.folder / f"{name}.pt")
        self.note(name, report)
        return network

    def note(self, name: str, report: dict[str, float]) -> None:
        """Keeps a report for the model card."""
        path = self.folder / "reports.json"
        reports = self.reports()
        reports[name] = report
        path.write_text(json.dumps(reports, indent=1))

    def reports(self) -> dict[str, dict[str, float]]:
        """Returns the reports of the networks that are trained so far."""
        path = self.folder / "reports.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def trained(self) -> Path:
        """Where finished weights lie."""
        return self.folder / "weights"

    def codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the codes, attributes and hair colors of the training faces."""
        stored = load_file(self.folder / "codes.safetensors")
        return stored["codes"], stored["attributes"], stored["hair"]


def drawn(run: Run, who: str) -> FaceFiles:
    count = TRAINING_FACES if who == "train" else JUDGE_FACES
    return draw_to(run.folder / f"drawn-{who}", max(1, round(count * min(1.0, run.effort))), SEEDS[who])


def draw_faces(run: Run) -> None:
    drawn(run, "judge")
    drawn(run, "train")


def train_judge(run: Run) -> None:
    faces = drawn(run, "judge")
    weights.write(run.train("judge", Judge, lambda net: judge_loss(net, faces)), "judge", run.trained)  # pyright: ignore[reportArgumentType]


def train_autoencoder(run: Run) -> None:
    faces = drawn(run, "train")
    both = run.train(
        "autoencoder",
        lambda: nn.ModuleDict({"model": Autoencoder(), "labels": nn.Linear(CODE, 9)}),
        lambda net: autoencoder_loss(net["model"], net["labels"], faces),  # pyright: ignore[reportIndexIssue]
    )
    model = both["model"]  # pyright: ignore[reportIndexIssue]
    standardize_over(model, faces)
    weights.write(model, "autoencoder", run.trained)


@torch.no_grad()
def standardize_over(model: Autoencoder, faces: FaceFiles, count: int = 20_000) -> None:
    """Sets the code's mean and variance to those over many faces: while training they trailed behind the weights."""
    index = torch.arange(min(count, len(faces)))
    raw = torch.cat([model.encoder(faces.images(part) * 2 - 1) for part in index.split(500)])
    model.standardize.running_mean.copy_(raw.mean(0))  # pyright: ignore[reportOptionalMemberAccess]
    model.standardize.running_var.copy_(raw.var(0))  # pyright: ignore[reportOptionalMemberAccess]


@torch.no_grad()
def encode_faces(run: Run, *, from_package: bool = False) -> None:
    """Encodes the training faces, by the autoencoder of the run or by that which comes with the package."""
    target = run.folder / "codes.safetensors"
    if target.exists():
        return
    faces = drawn(run, "train")
    model = weights.read(Autoencoder(), "autoencoder", weights.FOLDER if from_package else run.trained)
    parts = tqdm(torch.arange(len(faces)).split(500), desc="codes")
    codes = torch.cat([model.encode(faces.images(part)) for part in parts])
    half = target.with_suffix(".half")
    save_file({"codes": codes, "attributes": faces.attributes, "hair": faces.hair}, half)
    half.replace(target)


def train_decoder(run: Run) -> None:
    """Sharpens the decoder for the codes that the encoder gives; the encoder, and so the codes, stay as they are."""
    faces = drawn(run, "train")
    codes, _, _ = run.codes()
    model = run.train(
        "decoder",
        lambda: weights.read(Autoencoder(), "autoencoder", run.trained).requires_grad_(True),
        lambda net: decoder_loss(net, faces, codes),  # pyright: ignore[reportArgumentType]
    )
    weights.write(model, "autoencoder", run.trained)


def train_base(run: Run) -> None:
    codes, _, _ = run.codes()
    weights.write(run.train("base", Base, lambda net: base_loss(net, codes)), "base", run.trained)  # pyright: ignore[reportArgumentType]


def train_heads(run: Run) -> None:
    codes, attributes, hair = run.codes()
    heads = run.train("heads", Heads, lambda net: heads_loss(net, codes, attributes, hair))  # pyright: ignore[reportArgumentType]
    weights.write(heads, "heads", run.trained)


def train_conditional(run: Run) -> Base:
    """Trains the conditional energy E(x | c) of the comparison with earlier work; it is no part of the package's weights."""
    codes, attributes, hair = run.codes()
    conditions = torch.cat([attributes * 2 - 1, nn.functional.one_hot(hair, 4).float()], 1)
    return run.train("conditional", lambda: Base(conditions=9), lambda net: base_loss(net, codes, conditions))  # pyright: ignore


STAGES: dict[str, Callable[[Run], object]] = {
    "draw": draw_faces,
    "judge": train_judge,
    "autoencoder": train_autoencoder,
    "codes": encode_faces,
    "decoder": train_decoder,
    "base": train_base,
    "heads": train_heads,
}
"""What makes the weights, in this order."""
