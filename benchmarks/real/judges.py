"""Independent judges: a convolutional classifier for each set, trained on pictures that no recipe sees, and kept in `.real-data/judges`."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from operator import and_, or_, xor

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import kept
from benchmarks.real.data import Attributes, Marks, Part, RealSet
from benchmarks.real.fetch import REAL
from composable_energy_image.metrics import features_of

EPOCHS = {"fashion": 4, "digits": 14, "few-digits": 14, "type": 14}
OPERATORS = {ast.BitAnd: and_, ast.BitOr: or_, ast.BitXor: xor, ast.RShift: lambda left, right: ~left | right}


class Judge(nn.Module):
    """A classifier of the marks of grey pictures with shape $(B, 1, S, S)$; its features have shape $(B, 96)$.

    Args:
        side: S.
        sizes: The number of values of each mark.
    """

    def __init__(self, side: int, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.sizes = sizes
        channels, layers = 1, []
        for width in (24, 48, 96) if side < 64 else (16, 32, 64, 96):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            channels, side = width, side // 2
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, 96), nn.ReLU())
        self.output = nn.Linear(96, sum(sizes.values()))

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits of all marks, beside each other."""
        return self.output(self.features(images))

    def marks(self, images: Tensor) -> Marks:
        """Returns the most probable value of each mark, with shape $(N,)$."""
        logits = features_of(self, images).split(list(self.sizes.values()), 1)
        return {name: some.argmax(1) for name, some in zip(self.sizes, logits, strict=True)}


def load_judge(real: RealSet) -> Judge:
    """Returns the judge of a set; trains it once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = Judge(real.judge.pixels.shape[-1], real.sizes)
    return kept(REAL / "judges" / f"{real.name}.pt", judge, lambda judge: train(judge, real.judge, EPOCHS[real.name]))


def train(judge: Judge, part: Part, epochs: int, batch: int = 100, rate: float = 4e-3) -> None:
    """Trains a judge on changed pictures of a part."""
    generator, steps = torch.Generator().manual_seed(0), len(part.pixels) // batch
    optimizer = torch.optim.AdamW(judge.parameters(), rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps)
    for _ in range(epochs):
        order = torch.randperm(len(part.pixels), generator=generator)
        for rows in order[: steps * batch].split(batch):
            some = part.take(rows)
            logits = judge(changed(some.images, generator)).split(list(judge.sizes.values()), 1)
            loss = sum(F.cross_entropy(logits, some.marks[name]) for name, logits in zip(judge.sizes, logits, strict=True))
            optimizer.zero_grad()
            torch.as_tensor(loss).backward()
            optimizer.step()
            schedule.step()


def changed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns pictures that are shifted by two pixels or less and have noise, some batches blurred too, as draws may be."""
    side = images.shape[-1]
    down, right = torch.randint(5, (2,), generator=generator).tolist()
    images = F.pad(images, (2, 2, 2, 2), mode="replicate")[..., down : down + side, right : right + side]
    if torch.rand((), generator=generator) < 0.4:
        images = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    return images + 0.03 * torch.randn(images.shape, generator=generator)


def fulfils(text: str, truths: Attributes) -> Tensor:
    """Returns whether each picture fulfils an expression of attributes, with shape $(N,)$, by Python's own reading of it."""
    named = {name.replace("=", "_"): values for name, values in truths.items()}

    def value(node: ast.expr) -> Tensor:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        return ~value(node.operand) if isinstance(node, ast.UnaryOp) else named[ast.unparse(node)]

    return value(ast.parse(text.replace("=", "_"), mode="eval").body)
