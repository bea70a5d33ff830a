r"""The classifier that evaluates recombined pictures: the shape and the color of an object at a place, or that there is none.

It is a network of 15 x 15 crops, trained for 60 s on renders of seed 4, with blur and noise; sprites are also rotated and mirrored, but not
tetris, where a rotated piece is another piece. Solids of 64 pixels have crops of 31 x 31, which are mirrored only, because solids stand
upright; after 60 s with rotations it reads .74 of their shapes in renders, after 150 s without them .99.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import composable_energy as ce
from benchmarks.papers.comet_2021.training import Budget, fit
from benchmarks.papers.comet_2021.worlds import WORLDS, average_pixels, folder_of, majority_labels
from composable_energy_image.data import render_to

PICTURES, SEED = 5_000, 4
HALF = 7
BLURRED = 0.5


@dataclass(frozen=True)
class LabelledScenes:
    """Pictures with masks and labels of up to $M$ objects."""

    images: Tensor  # pictures in [0, 1], with shape $(N, 3, S, S)$
    masks: Tensor
    shape: Tensor  # shapes of the objects, with shape $(N, M)$; -1 for no object
    color: Tensor  # their colors
    labels: Mapping[str, np.ndarray]  # all labels of the world, by field


def render_labelled(name: str, n: int, seed: int, data: Path) -> LabelledScenes:
    """Renders pictures of a world with masks and labels, or reads them; hidden objects have the label -1."""
    world, options, shrink = WORLDS[name]
    scenes = render_to(data / f"{folder_of(name)}-labelled-{seed}-{n}", ce.get("world", world, **options), n, seed, masks=True)
    masks = majority_labels(torch.from_numpy(np.array(scenes.masks)).long(), shrink)
    images = average_pixels(torch.from_numpy(np.array(scenes.images)).float() / 255, shrink)
    shape, color = (torch.from_numpy(np.array(scenes.labels[field])).long() for field in ("shape", "color"))
    visible = torch.stack([(masks == i + 1).flatten(1).any(1) for i in range(shape.shape[1])], 1)
    return LabelledScenes(images, masks, shape.where(visible, -1), color.where(visible, -1), scenes.labels)


class CropClassifier(nn.Module):
    """A network that classifies crops by shape and color; the last class of shapes is "nothing"."""

    def __init__(self, shapes: int, colors: int, margin: int = HALF) -> None:
        super().__init__()
        self.shapes, self.colors, self.margin = shapes, colors, margin
        self.net = nn.Sequential(
            *(
                nn.Conv2d(3, 32, 3, 1 if margin == HALF else 2, 1),
                nn.SiLU(),
                nn.Conv2d(32, 48, 3, 2, 1),
                nn.SiLU(),
                nn.Conv2d(48, 64, 3, 2, 1),
                nn.SiLU(),
            ),
            *(nn.Flatten(), nn.Linear(64 * 16, 128), nn.SiLU(), nn.Linear(128, shapes + 1 + colors)),
        )

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits of shapes and of colors for crops with shape $(B, 3, 2 h + 1, 2 h + 1)$."""
        outputs = self.net(crops * 2 - 1)
        return outputs[:, : self.shapes + 1], outputs[:, self.shapes + 1 :]


def crop(images: Tensor, rows: Tensor, places: Tensor, half: int = HALF) -> Tensor:
    """Returns squares around places of pictures, with shape $(P, 3, 2 h + 1, 2 h + 1)$."""
    around = torch.arange(2 * half + 1)
    down, right = places[:, :1] + around, places[:, 1:] + around
    return images[rows[:, None, None], :, down[:, :, None], right[:, None]].permute(0, 3, 1, 2)


def pad(images: Tensor, half: int = HALF) -> Tensor:
    """Returns pictures with repeated borders, so that there are crops around each pixel."""
    return F.pad(images, (half,) * 4, mode="replicate")


def centers(masks: Tensor) -> Tensor:
    """Returns the rounded centers of nonempty masks, with shape $(P, 2)$."""
    line, weight = torch.arange(masks.shape[-1]).float(), masks.float()
    total = weight.sum((1, 2))
    return torch.stack([weight.sum(2) @ line / total, weight.sum(1) @ line / total], 1).round().long()


def load_classifier(world: str, seconds: float, parts: Path, data: Path) -> CropClassifier:
    """Returns the classifier of a world; trains it if it does not exist."""
    path = parts / f"classifier-{world}.pt"
    if not path.exists():
        upright = world.startswith(("solids", "objects", "toys"))
        budget = Budget(seconds, batch=64, rate=2e-3, cosine=True) if upright else Budget(seconds, batch=64)
        turned, mirrored = world.startswith("sprites"), not world.startswith("tetris")
        classifier = train_classifier(render_labelled(world, PICTURES, SEED, data), budget, turned, mirrored)
        write_classifier(classifier, path)
    return read_classifier(path)


def write_classifier(classifier: CropClassifier, path: Path) -> None:
    """Writes a classifier into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = {name: getattr(classifier, name) for name in ("shapes", "colors", "margin")}
    torch.save({**sizes, "weights": classifier.state_dict()}, path)


def read_classifier(path: Path) -> CropClassifier:
    """Returns a classifier from its file."""
    found = torch.load(path)
    classifier = CropClassifier(found["shapes"], found["colors"], found.get("margin", HALF))
    classifier.load_state_dict(found["weights"])
    return classifier.eval()


def train_classifier(scenes: LabelledScenes, budget: Budget, turned: bool, mirrored: bool) -> CropClassifier:
    """Returns a classifier that is trained on crops, three at objects for one at an empty place."""
    rows, which = (scenes.shape >= 0).nonzero(as_tuple=True)
    places = centers(scenes.masks[rows] == which[:, None, None] + 1)
    shapes, colors = int(scenes.shape.max()) + 1, int(scenes.color.max()) + 1
    empty = torch.randint(scenes.masks.shape[-1], (len(rows), 2), generator=torch.Generator().manual_seed(0))
    near = F.max_pool2d((scenes.masks > 0).float()[:, None], 5, 1, 2)[:, 0] > 0
    free = ~near[rows, empty[:, 0], empty[:, 1]]
    torch.manual_seed(0)
    half = HALF if scenes.images.shape[-1] <= 32 else 2 * HALF + 1
    classifier, images = CropClassifier(shapes, colors, half), pad(scenes.images, half)

    def loss(batch: Tensor, step: int) -> Tensor:
        here = batch[: len(batch) * 3 // 4]
        moved = (places[here] + torch.randint(-1, 2, (len(here), 2))).clamp(0, scenes.masks.shape[-1] - 1)
        nothing = batch[len(here) :][free[batch[len(here) :]]]
        x = crop(images, torch.cat([rows[here], rows[nothing]]), torch.cat([moved, empty[nothing]]), half)
        shape, color = classifier(_augment(x, turned, mirrored))
        truth = torch.cat([scenes.shape[rows[here], which[here]], torch.full((len(nothing),), shapes)])
        return F.cross_entropy(shape, truth) + F.cross_entropy(color[: len(here)], scenes.color[rows[here], which[here]])

    fit(loss, classifier.parameters(), len(rows), budget, 0)
    return classifier.eval()


def _augment(x: Tensor, turned: bool, mirrored: bool) -> Tensor:
    """Returns crops with noise, half of them blurred; optionally all rotated by quarter turns, and half mirrored."""
    x = torch.rot90(x, int(torch.randint(4, ())), (2, 3)) if turned else x
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x) if mirrored else x
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(3, 1, 3, 3)
    soft = F.conv2d(F.pad(x, (1,) * 4, mode="replicate"), kernel, groups=3)
    x = torch.where(torch.rand(len(x), 1, 1, 1) < BLURRED, soft, x)
    return x + 0.05 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)


@torch.no_grad()
def classify(classifier: CropClassifier, images: Tensor, rows: Tensor, places: Tensor, shape: Tensor, color: Tensor) -> dict[str, float]:
    """Returns how often the classifier finds shapes, colors and both at places of pictures."""
    shapes, colors = classifier(crop(pad(images, classifier.margin), rows, places, classifier.margin))
    right, tone = shapes.argmax(1) == shape, (colors.argmax(1) == color) & (shapes.argmax(1) < classifier.shapes)
    return {name: float(found.float().mean()) for name, found in (("shape", right), ("color", tone), ("both", right & tone))}
