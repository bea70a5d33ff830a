"""The bias of samplers along noise levels at 10 to 160 evaluations, on a Gaussian mixture: `python -m benchmarks.noise_levels --write`.

Three Gaussians on the plane with weights .5, .3 and .2 and a standard deviation of .25, at distance 1.2 from the middle, and their exact
gradients with noise. `share`: the largest error of the shares of the three. `spread`: the relative error of the standard deviation around
the nearest mean. `levels` of each sampler are as many as the evaluations allow; other options are the defaults. The standard error of a
share is .0016, that of a spread .0022 (100,000 draws).

Then expressions over a model of three Gaussian classes, whose densities are Gaussians with known means and variances; the samplers follow
sums of noised gradients, which are not those of the noised density. The standard errors of the means are at most .01 (20,000 draws).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import RESULTS, environment, run_benchmark
from composable_energy.sampling import Sampler
from composable_energy_diffusion import ODE, SDE, DiffusionEnergy, VarianceExploding
from composable_energy_mcmc import Annealed

PATH = RESULTS / "noise_levels.json"
F64 = torch.float64
BUDGETS = (10, 20, 40, 80, 160)
CHAINS = 100_000
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
ANGLES = torch.arange(3, dtype=F64) * 2 * math.pi / 3
MEANS = 1.2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
SD = 0.25


def noised(x: Tensor, sigma: Tensor) -> Tensor:
    """Returns the energies of points with noise, with shape $(B,)$."""
    variance = SD**2 + sigma[:, None].square()
    return -torch.logsumexp(WEIGHTS.log() - torch.cdist(x, MEANS).square() / (2 * variance) - variance.log(), 1)


SAMPLERS: dict[str, Any] = {
    "`ode`": lambda n: ODE(levels=n // 2),
    "`sde`": lambda n: SDE(levels=n),
    "`sde`, `eta=0`": lambda n: SDE(levels=n, eta=0.0),
    "`sde`, `order=1`": lambda n: SDE(levels=n, order=1),
    "`annealed`": lambda n: Annealed(levels=max(2, n // 4)),
    "`annealed`, `corrector_steps=0`": lambda n: Annealed(levels=n, corrector_steps=0),
}


EXACT = {"A": (1.0, 1.0), "A & B": (2 / 3, 2 / 3), "(A & not B).sharpened(2)": (4.0, 2.0)}  # the first coordinate: mean and variance
FOLLOWERS: dict[str, Sampler] = {
    "`ode`": ODE(),
    "`sde`": SDE(),
    "`annealed`": Annealed(),
    "`annealed`, `corrector_steps=20, sigma_max=20`": Annealed(corrector_steps=20, sigma_max=20.0),
}


def classes(x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
    """Returns the expected clean points of N((1, 0), 1), N((0, 1), 1) and, without a class, N(0, 2)."""
    mean = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=F64)[y]
    variance = torch.tensor([1.0, 1.0, 2.0], dtype=F64)[y][:, None]
    return mean + variance / (variance + sigma[:, None] ** 2) * (x - mean)


def measure_expressions(sampler: Sampler) -> dict[str, dict[str, float]]:
    """Returns the mean and the variance of the first coordinate of each expression."""
    E = DiffusionEnergy(classes, VarianceExploding(), "x0", unconditional={"y": 2}, event_shape=(2,))
    a, b = E.concept(y=0), E.concept(y=1)
    negative = (a & ce.negate(b, mode="power", weight=1.0)).sharpened(2)
    found = {}
    for name, expression in zip(EXACT, (a, a & b, negative), strict=True):
        x = expression.sample(20_000, sampler=sampler, seed=0, dtype=F64)[:, 0]
        found[name] = {"mean": round(x.mean().item(), 3), "variance": round(x.var().item(), 3)}
    return found


def measure(sampler: Sampler) -> dict[str, float]:
    """Returns the errors of the shares and of the spread."""
    x = ce.as_energy(noised, event_shape=(2,)).sample(CHAINS, sampler=sampler, seed=0, dtype=F64)
    distances, nearest = torch.cdist(x, MEANS).min(1)
    shares = torch.bincount(nearest, minlength=3) / CHAINS
    spread = distances.square().mean().div(2).sqrt().item() / SD - 1
    return {"share": round((shares - WEIGHTS).abs().max().item(), 4), "spread": round(spread, 4)}


def run(args: Any) -> Iterator[dict[str, Any]]:
    rows = [{"sampler": name, "evaluations": n, **measure(build(n))} for name, build in SAMPLERS.items() for n in BUDGETS]
    expressions = [{"sampler": name, "expressions": measure_expressions(sampler)} for name, sampler in FOLLOWERS.items()]
    print(*rows, *expressions, sep="\n")
    yield {**environment(chains=CHAINS, seed=0), "exact": EXACT, "rows": rows, "expressions": expressions}


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run)
