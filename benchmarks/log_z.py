"""How accurate `log_z` and `calibrate` are: `python -m benchmarks.log_z --write`.

Each row repeats an estimate with other seeds, and with other draws where it uses some, and compares it with the truth: the root mean
square error, the mean of the reported standard errors, the largest error in units of its own standard error, and the gradients of one
estimate with its pilot run. The last row shows the shares of two Gaussians of different width, with weights .7 and .3, after `calibrate`.
Double precision, one thread.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

import composable_energy as ce
from benchmarks.energies import CountingEnergy
from benchmarks.harness import RESULTS, argument_parser, environment, write_json

REPEATS = 20
PATH = RESULTS / "log_z.json"


class Mixture(ce.Energy):
    """Four Gaussians of width .3 on a circle of radius 3, with weights .4, .3, .2 and .1."""

    def __init__(self) -> None:
        super().__init__()
        self.event_shape = torch.Size([2])
        self.means = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]], dtype=torch.float64)
        self.shares = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(self.shares.log() - (x[:, None] - self.means).square().sum(2) / 0.18, 1)

    def log_z(self) -> float:
        return math.log(2 * math.pi * 0.09)

    def draw(self, n: int) -> Tensor:
        return self.means[torch.multinomial(self.shares, n, True)] + 0.3 * torch.randn(n, 2, dtype=torch.float64)


class Correlated(ce.Energy):
    """A Gaussian on 32 coordinates with variances from .1 to 10 along rotated axes."""

    def __init__(self) -> None:
        super().__init__()
        self.event_shape = torch.Size([32])
        generator = torch.Generator().manual_seed(0)
        self.axes = torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=torch.float64))[0]
        self.variances = torch.logspace(-1, 1, 32, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ self.axes).square() / self.variances).sum(1) / 2

    def log_z(self) -> float:
        return 16 * math.log(2 * math.pi) + self.variances.log().sum().item() / 2

    def draw(self, n: int) -> Tensor:
        return (torch.randn(n, 32, dtype=torch.float64) * self.variances.sqrt()) @ self.axes.T


def measure(energy: Mixture | Correlated, draws: int, **options: Any) -> dict[str, float]:
    """Returns the figures of a row."""
    errors, reported, effective, spent = [], [], [], []
    begin = time.process_time()
    for seed in range(REPEATS):
        torch.manual_seed(seed)
        counting = CountingEnergy(energy, (energy.event_shape or (0,))[0])
        points = energy.draw(draws) if draws else None
        found = ce.log_z(counting, draws=points, seed=seed, dtype=torch.float64, **options)
        errors.append(found.value - energy.log_z())
        reported.append(found.standard_error)
        effective.append(found.effective)
        spent.append(counting.take_count())
    return {
        "rmse": math.sqrt(statistics.fmean(error * error for error in errors)),
        "bias": statistics.fmean(errors),
        "standard_error": statistics.fmean(reported),
        "worst_in_standard_errors": max(abs(e) / c for e, c in zip(errors, reported, strict=True)),
        "effective": statistics.fmean(effective),
        "gradients": statistics.fmean(spent),
        "seconds": (time.process_time() - begin) / REPEATS,
    }


def share(draw: Callable[[ce.Energy, int], Tensor], seed: int) -> float:
    """Returns the share of the narrow one of two overlapping Gaussians with widths .5 and 2 and weights .7 and .3."""
    narrow, wide = (ce.as_energy(lambda x, s=s: (x / s).square().sum(1) / 2, name=f"width {s}", event_shape=(2,)) for s in (0.5, 2.0))
    mixture = ce.calibrate(ce.any_of(narrow, wide, weights=[0.7, 0.3]), seed=seed)
    first = mixture.explain(draw(mixture, seed)).terms[0].share
    assert first is not None
    return first.mean().item()


def by_hmc(mixture: ce.Energy, seed: int) -> Tensor:
    return mixture.sample(16384, sampler="hmc", steps=200, seed=seed)


def main() -> None:
    args = argument_parser(__doc__, PATH).parse_args()
    torch.set_num_threads(1)
    wide = Normal(torch.zeros(2, dtype=torch.float64), torch.full((2,), 3.0, dtype=torch.float64))
    unit = Normal(torch.zeros(32, dtype=torch.float64), torch.ones(32, dtype=torch.float64))
    mixture, correlated = Mixture(), Correlated()
    rows = {
        "mixture, wide base, as it is": (mixture, 0, {"base": wide}),
        "mixture, wide base, 2048 x 100": (mixture, 0, {"base": wide, "particles": 2048, "levels": 100}),
        "mixture, wide base, 1024 draws, 100 levels": (mixture, 1024, {"base": wide, "levels": 100}),
        "mixture, 1024 draws": (mixture, 1024, {}),
        "32 axes, as it is": (correlated, 0, {}),
        "32 axes, 1024 draws": (correlated, 1024, {}),
        "32 axes, unit base, as it is": (correlated, 0, {"base": unit}),
        "32 axes, unit base, 2048 x 200": (correlated, 0, {"base": unit, "particles": 2048, "levels": 200}),
        "32 axes, unit base, 1024 draws, 100 levels": (correlated, 1024, {"base": unit, "levels": 100}),
    }
    table: dict[str, Any] = {}
    print(f"{'':44}{'rmse':>8}{'bias':>9}{'reported':>9}{'worst':>7}{'effective':>10}{'gradients':>11}{'seconds':>9}")
    for name, (energy, draws, options) in rows.items():
        row = table[name] = measure(energy, draws, **options)
        print(
            f"{name:44}{row['rmse']:8.4f}{row['bias']:+9.4f}{row['standard_error']:9.4f}{row['worst_in_standard_errors']:7.2f}"
            f"{row['effective']:10.2f}{row['gradients'] / 1e6:10.2f}M{row['seconds']:9.2f}",
            flush=True,
        )
    shares = [share(by_hmc, seed) for seed in range(REPEATS)]
    table["share of .7 after calibrate"] = {"mean": statistics.fmean(shares), "worst": max(abs(s - 0.7) for s in shares)}
    print(f"share of .7 after calibrate: {statistics.fmean(shares):.4f} on average, off by {max(abs(s - 0.7) for s in shares):.4f} at most")
    if args.write:
        write_json(PATH, {**environment(), "repeats": REPEATS, "rows": table})


if __name__ == "__main__":
    main()
