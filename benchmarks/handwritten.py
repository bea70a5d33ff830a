"""Small pictures as rows of pixels, scikit-learn's digits or the sets of `make real-data`, and a classifier that judges them.

`benchmarks.real` is the benchmark of the recipe on them; `benchmarks.papers.implicit_2019.training` has sets of other pictures.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.real.data import Part, open_set


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


def load_real(name: str, seed: int) -> LabelledPixels:
    """Returns the rows of one of the sets of `make real-data`; what is held out from the recipe and its judge is the test."""
    real = open_set(name, seed=seed)
    pixels, labels = (torch.cat(some) for some in zip(*map(_rows, (real.library, real.judge)), strict=True))
    return LabelledPixels(pixels, labels, *_rows(real.held_out), 1 / 255)


def _rows(part: Part) -> tuple[Tensor, Tensor]:
    return part.images.flatten(1), next(iter(part.marks.values()))


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
