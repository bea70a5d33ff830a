"""Expressions of scores drawn by `feynman-kac`, beside quadrature: `python -m benchmarks.score_expressions --write`.

The leaves are closed-form mixtures of Gaussians of which the sampler sees the scores alone. On the plane, ten expressions over a base and
seven concepts: the shares of the quadrants with weights, and without, which is the sum of scores of composed diffusion, beside quadrature;
and those of `annealed`, which gets the values of the leaves as well. Then three expressions in 2 to 64 dimensions, whose true shares come
from products of Gaussians, and from weights below 1 of exact draws. Errors are the largest of the four quadrants, of the mean over seeds.
Double precision, one thread.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import RESULTS, environment, run_benchmark
from composable_energy.errors import MixtureWarning
from composable_energy.sampling import Sampler
from composable_energy_mcmc import Annealed, FeynmanKac

F64 = torch.float64


@dataclass(frozen=True)
class Mixture:
    r"""An isotropic mixture of Gaussians, with noise of level $\sigma$: variances $s_k^2 + \sigma^2$."""

    means: Tensor  # with shape $(K, d)$
    widths: Tensor  # $s_k$, with shape $(K,)$
    shares: Tensor  # with shape $(K,)$

    @classmethod
    def of(cls, means: Sequence[Sequence[float]], width: float | Sequence[float], shares: Sequence[float] | None = None) -> Mixture:
        count = len(means)
        widths = list(width) if isinstance(width, Sequence) else [width] * count
        return cls(*(torch.tensor(values, dtype=F64) for values in (means, widths, shares or [1 / count] * count)))

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns log densities, with shape $(B,)$."""
        return torch.logsumexp(self._parts(x, sigma)[0], 1)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns scores, with shape $(B, d)$."""
        logs, variances = self._parts(x, sigma)
        pulls = torch.softmax(logs, 1) / variances
        return torch.einsum("bk,bkd->bd", pulls, self.means - x[:, None])

    def energy(self, name: str, *, values: bool) -> ce.Energy:
        """Returns the energy with noise levels; without values it is known by its score alone."""
        shape = self.means.shape[1:]
        if values:
            return ce.as_energy(lambda x, sigma: -self.log_density(x, sigma), name=name, event_shape=shape)
        return ce.ScoreEnergy(self.score, name=name, event_shape=shape)

    def _parts(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variances = self.widths.square() + sigma[:, None].square()
        squares = (x[:, None] - self.means).square().sum(2)
        return self.shares.log() - squares / (2 * variances) - x.shape[1] / 2 * (2 * math.pi * variances).log(), variances


LEAVES: Mapping[str, Mixture] = {
    "base": Mixture.of([[0.0, 0.0]], 2.0),
    "A": Mixture.of([[1.5, 0.0], [-1.5, 0.0]], 0.6),
    "B": Mixture.of([[1.5, 1.0], [0.0, -2.0]], 0.7),
    "C": Mixture.of([[-1.5, 0.5]], 0.8),
    "D": Mixture.of([[0.5, 1.5], [-1.0, -1.0]], [0.5, 0.9], [0.3, 0.7]),
    "G": Mixture.of([[0.0, 0.8]], 1.2),
    "H": Mixture.of([[-2.0, -0.5], [2.0, -0.5]], 0.5, [0.8, 0.2]),
    "K": Mixture.of([[1.0, -1.2], [1.0, 1.2], [-1.2, 0.0]], 0.6),
}

EXPRESSIONS: Mapping[str, Callable[..., ce.Energy]] = {
    "A & B": lambda A, B, **_: A & B,
    "A & ~B": lambda A, B, **_: A & ~B,
    "A | B": lambda A, B, **_: A | B,
    "A ^ G": lambda A, G, **_: A ^ G,
    "A.sharpened(.3)": lambda A, **_: A.sharpened(0.3),
    "G.sharpened(2) & ~C": lambda G, C, **_: G.sharpened(2) & ~C,
    "(A & B) | (C & ~B)": lambda A, B, C, **_: (A & B) | (C & ~B),
    "(A | D) & (G | ~H)": lambda A, D, G, H, **_: (A | D) & (G | ~H),
    "~(A & ~(B | C)) & K": lambda A, B, C, K, **_: ~(A & ~(B | C)) & K,
    "((A & ~B) | (D & G)) & ~(H & K)": lambda A, B, D, G, H, K, **_: ((A & ~B) | (D & G)) & ~(H & K),
}


def expressions(*, values: bool) -> dict[str, ce.Energy]:
    """Returns the expressions over leaves relative to the base, by their names."""
    leaves = {name: leaf.energy(name, values=values) for name, leaf in LEAVES.items()}
    base = leaves.pop("base")
    concepts = {name: leaf.relative_to(base) for name, leaf in leaves.items()}
    return {name: build(**concepts) for name, build in EXPRESSIONS.items()}


def quadrants(x: Tensor) -> Tensor:
    """Returns the shares of points in the four quadrants of the first two coordinates."""
    return torch.bincount(2 * (x[:, 0] > 0) + (x[:, 1] > 0), minlength=4).double() / len(x)


def quadrant_shares(energy: ce.Energy, half_width: float = 8.0, count: int = 800) -> tuple[Tensor, float]:
    r"""Returns the shares of the quadrants, and $\log Z$, by quadrature without noise."""
    side = (torch.arange(count, dtype=F64) + 0.5) * (2 * half_width / count) - half_width
    grid = torch.cartesian_prod(side, side)
    log_density = -energy(grid, sigma=0.0)
    where = 2 * (grid[:, 0] > 0) + (grid[:, 1] > 0)
    shares = torch.zeros(4, dtype=F64).index_add_(0, where.long(), torch.softmax(log_density, 0))
    return shares, log_density.logsumexp(0).item() + 2 * math.log(2 * half_width / count)


PATH = RESULTS / "score_expressions.json"
SEEDS, CHAINS = range(3), 4000
DIMENSIONS = (2, 4, 8, 16, 32, 64)
VARIANTS = {"weighted": FeynmanKac(), "unweighted": FeynmanKac(weighted=False)}


def draw(energy: ce.Energy, dimensions: int, sampler: Sampler, truth: Tensor, chains: int = CHAINS) -> dict[str, Any]:
    """Returns shares and their errors over the seeds, the lowest effective share of chains, and seconds a run."""
    shares, effective, begin = [], [], time.process_time()
    for seed in SEEDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ce.SamplingWarning)
            warnings.simplefilter("ignore", MixtureWarning)  # the energies are minus log densities
            x, trace = energy.sample((chains, dimensions), sampler=sampler, seed=seed, dtype=F64, trace=True)
        shares.append(quadrants(x))
        effective.append(min(trace.scalars.get("ess", [chains])) / chains)
    found = torch.stack(shares).mean(0)
    figures = {"shares": found.tolist(), "error": (found - truth).abs().max().item(), "lowest_ess": min(effective)}
    return {**figures, "seconds": (time.process_time() - begin) / len(SEEDS)}


def on_the_plane() -> dict[str, Any]:
    rows: dict[str, Any] = {}
    with_values = expressions(values=True)
    for name, energy in expressions(values=False).items():
        truth, log_z = quadrant_shares(with_values[name])
        rows[name] = {"truth": truth.tolist(), "log_z": log_z}
        for variant in ("weighted", "unweighted"):
            rows[name][variant] = row = draw(energy, 2, VARIANTS[variant], truth)
            print(f"{name:34}{variant:12}{_written(row)}", flush=True)
        rows[name]["annealed"] = row = draw(with_values[name], 2, Annealed(), truth)
        print(f"{name:34}{'annealed':12}{_written(row)}", flush=True)
    return rows


def leaves(dimensions: int) -> dict[str, Mixture]:
    """Returns a base and three concepts that differ in place along two axes, and in width along all."""

    def mixture(means: Sequence[tuple[float, float]], width: float) -> Mixture:
        return Mixture.of([[*mean, *[0.0] * (dimensions - 2)] for mean in means], width)

    return {
        "base": mixture([(0, 0)], 1.3),
        "A": mixture([(1.5, 0), (-1.5, 0)], 1.0),
        "B": mixture([(1.5, 1.0), (0, -2)], 1.0),
        "C": mixture([(-1.5, 0.5)], 1.1),
    }


def product(found: dict[str, Mixture], a: str, b: str) -> tuple[Tensor, float]:
    r"""Returns the shares of the quadrants of $p_a p_b / p_0$ and its $\log Z$, from products of Gaussians."""
    base, one, two = found["base"], found[a], found[b]
    logs, shares = [], []
    normal = torch.distributions.Normal(0.0, 1.0)
    for m, s, v in zip(one.means, one.shares, one.widths, strict=True):
        for n, t, w in zip(two.means, two.shares, two.widths, strict=True):
            precision = 1 / v**2 + 1 / w**2 - 1 / base.widths[0] ** 2
            centre = (m / v**2 + n / w**2) / precision
            exponent = m.square().sum() / v**2 + n.square().sum() / w**2 - precision * centre.square().sum()
            size = len(m) / 2 * torch.log(base.widths[0] ** 2 / (v**2 * w**2 * precision))
            logs.append(s.log() + t.log() + size - exponent / 2)
            right, up = normal.cdf(centre[:2] * precision.sqrt())
            shares.append(torch.stack([(1 - right) * (1 - up), (1 - right) * up, right * (1 - up), right * up]))
    logs = torch.stack(logs)
    return (torch.softmax(logs, 0)[:, None] * torch.stack(shares)).sum(0), logs.logsumexp(0).item()


def without(found: dict[str, Mixture], a: str, b: str, count: int = 400_000) -> tuple[Tensor, float]:
    r"""Returns the shares of the quadrants of $p_a p_0 / (p_0 + p_b)$ and its $\log Z$, by exact draws of $a$."""
    generator, leaf, none = torch.Generator().manual_seed(0), found[a], torch.zeros(1, dtype=F64)
    weights, sums = torch.zeros(4, dtype=F64), 0
    for _ in range(10):
        rows = torch.multinomial(leaf.shares, count // 10, True, generator=generator)
        x = leaf.means[rows] + leaf.widths[rows, None] * torch.randn(len(rows), leaf.means.shape[1], dtype=F64, generator=generator)
        kept = torch.sigmoid(found["base"].log_density(x, none) - found[b].log_density(x, none))
        weights.index_add_(0, (2 * (x[:, 0] > 0) + (x[:, 1] > 0)).long(), kept)
        sums += len(x)
    return weights / weights.sum(), math.log(weights.sum().item() / sums)


def over_dimensions() -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for dimensions in DIMENSIONS:
        found = leaves(dimensions)
        energies = {name: leaf.energy(name, values=False) for name, leaf in found.items()}
        A, B, C = (energies[name].relative_to(energies["base"]) for name in "ABC")
        both, log_both = product(found, "A", "B")
        only, log_only = without(found, "C", "B")
        parts = torch.softmax(torch.tensor([log_both, log_only], dtype=F64), 0)
        targets = {
            "A & B": (A & B, both),
            "A & ~B": (A & ~B, without(found, "A", "B")[0]),
            "(A & B) | (C & ~B)": ((A & B) | (C & ~B), parts[0] * both + parts[1] * only),
        }
        for name, (energy, truth) in targets.items():
            row: dict[str, Any] = {"truth": truth.tolist()}
            rows.setdefault(name, {})[str(dimensions)] = row
            for variant, sampler in VARIANTS.items():
                row[variant] = draw(energy, dimensions, sampler, truth, CHAINS // 2)
                print(f"{name:20}{dimensions:4}  {variant:28}{_written(row[variant])}", flush=True)
    return rows


def _written(row: dict[str, Any]) -> str:
    return f"error {row['error']:.3f}, ess {row['lowest_ess']:.2f}, {row['seconds']:.1f} s"


def run(args: Any) -> Iterator[dict[str, Any]]:
    yield {**environment(), "chains": CHAINS, "seeds": len(SEEDS), "plane": on_the_plane(), "dimensions": over_dimensions()}


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run)
