r"""Concepts that are added one after the other (section 4.3 and table 2 of the paper).

    python benchmarks/papers/compositional_2020/continual.py [--write] [--weights FOLDER]

Three sets of pictures come one after the other, and each brings one label: magenta cubes and where they are; magenta solids and their
shapes; solids and their colors. Size, lamp and floor are random in all, and so are earlier attributes, untold. After each set the concepts
so far are asked for together.

- **ours**: a head for each concept over one base; what is trained once stays as it is, which digests of the weights show. Position and
  shape must hold for colors that their sets lack, so a small network that sees outlines alone, no colors, is trained on the set, and
  the head learns what it says of pictures that the base has seen. Colors are learnt from their set itself.
- **one network**: a conditional energy over the same codes, told position, shape and color, goes on from set to set.

Both stand on the package's autoencoder and base, which saw pictures of everything without labels; the paper's energies saw their sets
alone. Trained in 4 CPU-minutes when first run, and kept in `.cache/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import Options, asked, drawn, near, share
from reporting import grid, main, show
from torch import Tensor, nn

import composable_energy as ce
from composable_energy_image import CodeHeads
from composable_energy_scenes import COLORS, KINDS, OneObject, Verdict
from composable_energy_scenes.concepts import SIGMAS
from composable_energy_scenes.conditional import ConditionalEnergy
from composable_energy_scenes.network_trainer import NetworkTrainer, encode_images
from composable_energy_training import Batch, Loss, Objective, Optimizer, Trainer

CONCEPTS = ("position", "shape", "color")
SEEDS = {"position": 51, "shape": 52, "color": 53}  # of the sets
POOL_SEED, POOL = 1, 24_000  # the first of the pictures that the autoencoder and the base were trained on
SETS = {"position": 6_000, "shape": 6_000, "color": 16_000}  # pictures
FIXED = {
    "position": {"shape": KINDS.index("box"), "color": COLORS.index("magenta")},
    "shape": {"color": COLORS.index("magenta")},
    "color": {},
}
PAPER = {"ours": ((0.901,), (0.813, 0.743), (0.781, 0.703, 0.521)), "one network": ((0.941,), (0.111, 0.977), (0.117, 0.476, 0.984))}
WEIGHTS = {"position": 6.0, "shape": 16.0, "color": 6.0}  # of the evidence; chosen with LEVELS on conditions of seeds 101 and 102
LEVELS = 320  # of noise, twice as many as elsewhere: three heads pull at once, and that of shapes hard
STEPS = {"outlines": 700, "head": 3000, "one network": 400}
CACHE = Path(__file__).parents[3] / ".cache" / "compositional-2020" / "continual"


def labels_of(concept: str, n: int | None = None) -> dict[str, np.ndarray]:
    """Returns all labels of the set of a concept."""
    labels = OneObject().labels(SETS[concept] if n is None else n, SEEDS[concept])
    for name, value in FIXED[concept].items():
        labels[name][:] = value
    return labels


def pictures(concept: str) -> tuple[np.ndarray, Tensor]:
    """Returns the set of a concept: bytes with shape $(N, 3, 64, 64)$ and its one label."""
    labels = labels_of(concept)
    return OneObject().render(labels).images, torch.from_numpy(labels[concept])


def outlines(images: np.ndarray) -> Tensor:
    """Returns how far pixels are from the median color, cut off early, with shape $(N, 1, 64, 64)$: shapes without their colors."""
    parts = (torch.from_numpy(images[first : first + 500]).float() / 255 for first in range(0, len(images), 500))
    return torch.cat([_outlines(part) for part in parts])


class Onlooker(nn.Module):
    """A network that reads a concept from outlines."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        pairs = ((1, 16), (16, 32), (32, 48), (48, 48))
        layers = [layer for a, b in pairs for layer in (nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.SiLU())]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 16, 64), nn.SiLU(), nn.Linear(64, outputs))

    def forward(self, outlines: Tensor) -> Tensor:
        return self.net(outlines * 2 - 1)


class Telling(Objective):
    """Least squares for numbers, cross entropy for classes."""

    def __init__(self, name: str) -> None:
        self.name = name

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        told, label = model(batch.x), batch.labels[self.name]
        return Loss((told - label).square().mean() if label.is_floating_point() else F.cross_entropy(told, label))


@dataclass(frozen=True)
class Learner:
    """What is trained on the three sets, over the codes of one base.

    Attributes:
        options: Whose weights they stand on.
        folder: Where trainings are kept.
    """

    options: Options
    folder: Path = CACHE

    @cached_property
    def base(self) -> Any:
        return self.options.concepts.base

    @cached_property
    def pool(self) -> tuple[Tensor, Tensor]:
        """Codes and outlines of pictures without labels."""
        images = OneObject().draw(POOL, POOL_SEED).images
        return encode_images(self.base.autoencoder, images), outlines(images)

    @cached_property
    def sets(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Codes of each set, and its label."""
        drawn_ = {concept: pictures(concept) for concept in CONCEPTS}
        return {concept: (encode_images(self.base.autoencoder, images), label) for concept, (images, label) in drawn_.items()}

    def head(self, concept: str) -> CodeHeads:
        """Returns the head of a concept, trained on its set."""
        codes, label = self.sets[concept] if concept == "color" else (self.pool[0], self._opinions(concept))
        trainer = NetworkTrainer(self.folder)
        if concept == "position":
            return trainer.train_regressor(self.base, codes, label, concept, STEPS["head"])
        return trainer.train_classifier(self.base, codes, label, len(KINDS if concept == "shape" else COLORS), concept, STEPS["head"])

    def one_network(self, stage: int) -> ConditionalEnergy:
        """Returns the baseline after some of the sets."""
        energy = ConditionalEnergy(self.base, dims=2 + len(KINDS) + len(COLORS))
        for number, concept in enumerate(CONCEPTS[: stage + 1]):
            codes, label = self.sets[concept]
            energy.net.requires_grad_(True)
            NetworkTrainer(self.folder).train_conditional(
                energy, codes, told({concept: label}), f"{number}-{concept}", SIGMAS, STEPS["one network"]
            )
        return energy

    def _opinions(self, concept: str) -> Tensor:
        """Returns what an onlooker that was trained on the set says of the pool."""
        images, label = pictures(concept)
        with NetworkTrainer(self.folder).seeded("onlooker"):
            onlooker = Onlooker(2 if concept == "position" else len(KINDS))
        optimizer = Optimizer(rate=2e-3, betas=(0.9, 0.999), weight_decay=1e-2, warm_up=50, decay=0.7, clip=1.0)
        options = {"out": self.folder / f"onlooker-{concept}", "optimizer": optimizer, "ema": 0.99, "keep": 1, "monitor": None}
        data = outlines(images), {concept: label}
        Trainer(onlooker, Telling(concept), data, steps=STEPS["outlines"], batch_size=64, **options).fit()
        with torch.no_grad():
            said = torch.cat([onlooker.eval()(part) for part in self.pool[1].split(500)])
        return said if concept == "position" else said.argmax(1)


def told(labels: dict[str, Tensor]) -> Tensor:
    """Returns what the one network is told, with shape $(B, 13)$: position, then shapes and colors as 0 and 1; 0 where nothing is told."""
    n = len(next(iter(labels.values())))
    position = labels.get("position", torch.zeros(n, 2))
    classes = [
        F.one_hot(labels[name], len(values)).float() if name in labels else torch.zeros(n, len(values))
        for name, values in (("shape", KINDS), ("color", COLORS))
    ]
    return torch.cat([position, *classes], 1)


def digest(module: nn.Module) -> str:
    """Returns a digest of a module's weights and buffers, to the bit."""
    found = blake2b(digest_size=6)
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def concept_energy(concept: str, head: CodeHeads, base: Any, value: Tensor) -> ce.Energy:
    """Returns the evidence of a concept: that it has a value, one for each chain."""
    if concept == "position":
        return ce.GaussianHead(head, base, dims=2, name=concept)(value)
    return ce.ClassifierEnergy(head, None, base, labels=len(KINDS if concept == "shape" else COLORS), name=concept).given(y=value)


def scores(seen: Verdict, wanted: dict[str, Tensor], concepts: Sequence[str]) -> dict[str, float]:
    """Returns the share of pictures that have each concept, and all of them."""
    right = {
        "position": near(seen.position, wanted["position"]),
        "shape": seen.shape == wanted["shape"],
        "color": seen.color == wanted["color"],
    }
    return {name: share(right[name]) for name in concepts} | {"joint": share(torch.stack([right[name] for name in concepts]).all(0))}


def run(options: Options) -> dict[str, Any]:
    """Runs the experiment."""
    learner, wanted = Learner(options), asked(options.samples, options.seed)
    heads: dict[str, CodeHeads] = {}
    rows, strips, digests = [], [], []
    for stage, concept in enumerate(CONCEPTS):
        known = CONCEPTS[: stage + 1]
        before = {name: digest(module) for name, module in ({"base": learner.base} | heads).items()}
        heads[concept] = learner.head(concept)
        after = {name: digest(module) for name, module in ({"base": learner.base} | heads).items()}
        if any(after[name] != value for name, value in before.items()):
            raise RuntimeError(f"Adding {concept} changed weights: {before} became {after}.")
        digests.append(after)
        ours = ce.all_of(*(concept_energy(name, heads[name], learner.base, wanted[name]).sharpened(WEIGHTS[name]) for name in known))
        one = learner.one_network(stage).given(y=told({name: wanted[name] for name in known}))
        trials: list[tuple[str, ce.Energy, dict[str, Any]]] = [("ours", ours, {}), ("one network", one, {})]
        if known == CONCEPTS:
            trials.insert(1, ("ours, better of two", ours, {"best_of": 2}))
        for name, energy, changes in trials:
            images = drawn(energy, options.samples, options.seed, levels=LEVELS, **changes)
            found = scores(options.judged(images), wanted, known)
            figures = {column: found.get(column, "-") for column in (*CONCEPTS, "joint")}
            rows.append({"after": concept, "": name} | figures | {"paper": list(PAPER[name][stage]) if name in PAPER else "-"})
            strips.append(images[:16])
    show("Accuracy after each set; the paper's figures are of its energies and of its GAN", rows)
    show("Digests of weights after each set", [{"after": name} | found for name, found in zip(CONCEPTS, digests, strict=True)])
    return {"rows": rows, "digests": digests, "weights": WEIGHTS, "levels": LEVELS, "steps": STEPS, "picture": grid(torch.cat(strips))}


def _outlines(images: Tensor) -> Tensor:
    plain = images.flatten(2).median(2).values[:, :, None, None]
    return ((images - plain).abs().amax(1, keepdim=True) / 0.1).clamp(0, 1)


if __name__ == "__main__":
    main("continual", __doc__, run, samples=500)
