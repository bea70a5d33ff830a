"""Handwritten digits as rows of pixels, scikit-learn's or MNIST's from IDX files, and a classifier that judges them.

`benchmarks.digits` is the benchmark of the recipe on digits; `benchmarks.papers.implicit_2019.training` has sets of other pictures.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composable_energy_image.data import open_pictures


@dataclass(frozen=True)
class LabelledPixels:
    """Small pictures and their labels, in two parts."""

    train: Tensor  # pixels in [0, 1], with shape $(N, D)$
    train_labels: Tensor  # with shape $(N,)$
    test: Tensor  # other pictures
    test_labels: Tensor  # their labels
    step: float  # distance of two grey values

    @property
    def size(self) -> int:
        """The number of pixels."""
        return self.train.shape[1]


def load_digits(seed: int, test: int = 400) -> LabelledPixels:
    """Returns scikit-learn's 1,797 digits of 8 x 8 pixels with 17 grey values, divided by a seed."""
    from sklearn.datasets import load_digits as load

    pixels, targets = load(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(targets)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return LabelledPixels(x[order[test:]], y[order[test:]], x[order[:test]], y[order[:test]], 1 / 16)


def load_idx(folder: Path) -> LabelledPixels:
    """Returns the digits of a folder with MNIST's four IDX files, plain or compressed."""
    parts = {part: open_pictures(folder, part=part) for part in ("train", "test")}
    pixels = {name: torch.from_numpy(part.pixels.copy()).flatten(1).float() / 255 for name, part in parts.items()}
    labels = {name: part.labels["class"].values for name, part in parts.items()}
    return LabelledPixels(pixels["train"], labels["train"], pixels["test"], labels["test"], 1 / 255)


class Judge(nn.Module):
    """A small classifier; its features are those of its last hidden layer."""

    def __init__(self, size: int, hidden: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(size, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def train_judge(x: Tensor, labels: Tensor, seed: int = 0, steps: int = 1500) -> Judge:
    """Trains a classifier on pictures with noise of a tenth of the range, which no other training sees."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(x.shape[1])
        optimizer = torch.optim.Adam(judge.parameters(), 2e-3, weight_decay=1e-5)
        for _ in range(steps):
            rows = torch.randint(len(x), (128,))
            optimizer.zero_grad()
            F.cross_entropy(judge(x[rows] + 0.1 * torch.randn(128, x.shape[1])), labels[rows]).backward()
            optimizer.step()
    return judge.eval().requires_grad_(False)
