"""Negation and exclusive or of five densities on the plane: `python -m benchmarks.negation --write`.

For each ordered pair, `A & ~B` by the mode `level` is drawn with the default sampler. The figure is the share of draws in the region that
holds 95 % of B, beside the truth by quadrature of the stated formula on a grid, and beside the truths by `level` with the temperature .25
(`soft`), by `power`, and by `contrast` (relative to a wide Gaussian). For each pair, `A ^ B` is calibrated and drawn with tempering; the
figure is the share of draws in exactly one of the two regions. Deviations are in binomial standard errors of the draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import RESULTS, argument_parser, environment, write_json

PATH = RESULTS / "negation.json"
F64 = torch.float64
AXIS = torch.linspace(-7, 7, 561, dtype=F64)
GRID = torch.cartesian_prod(AXIS, AXIS)


def ring(x: Tensor) -> Tensor:
    return 8 * (x.square().sum(1).add(1e-9).sqrt() - 2).square()


def right(x: Tensor) -> Tensor:
    return ((x[:, 0] - 2).square() + x[:, 1].square()) / 2


def banana(x: Tensor) -> Tensor:
    return x[:, 0].square() / 2 + 2 * (x[:, 1] - x[:, 0].square() / 2 + 1).square()


def pair(x: Tensor) -> Tensor:
    centres = torch.tensor([[-1.2, 1.2], [1.2, -1.2]], dtype=x.dtype)
    return -torch.logsumexp(-(x[:, None] - centres).square().sum(2) / 0.72, 1)


def square(x: Tensor) -> Tensor:
    return (x / 1.5).pow(8).sum(1)


DENSITIES: tuple[Callable[[Tensor], Tensor], ...] = (ring, right, banana, pair, square)


def energies() -> dict[str, ce.Energy]:
    """Returns the five densities by name."""
    return {f.__name__: ce.as_energy(f, name=f.__name__, event_shape=(2,)) for f in DENSITIES}


def probabilities(energy: ce.Energy) -> Tensor:
    """Returns the probabilities of the points of the grid."""
    with torch.no_grad():
        return torch.softmax(-energy(GRID), 0)


def region(energy: ce.Energy, quantile: float = 0.95) -> float:
    """Returns the energy below which a share of the density lies, by quadrature."""
    weights, order = probabilities(energy), energy(GRID).sort()
    return order.values[int((weights[order.indices].cumsum(0) < quantile).sum())].item()


def modes(a: ce.Energy, b: ce.Energy) -> dict[str, ce.Energy]:
    """Returns `A & ~B` by each mode."""
    wide = ce.as_energy(torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), 9 * torch.eye(2, dtype=F64)), name="wide")
    soft = a & ce.negate(b, "level", temperature=0.25)
    return {"level": a & ~b, "soft": soft, "power": a & ce.negate(b, "power"), "contrast": a & ~b.relative_to(wide)}


def measure_not(chains: int, seed: int) -> list[dict[str, Any]]:
    found = energies()
    levels, rows = {name: region(energy) for name, energy in found.items()}, []
    for a, b in itertools.permutations(found, 2):
        truths = {
            mode: probabilities(energy)[found[b](GRID) <= levels[b]].sum().item() for mode, energy in modes(found[a], found[b]).items()
        }
        points = modes(found[a], found[b])["level"].sample((chains, 2), seed=seed, dtype=F64)
        share = (found[b](points) <= levels[b]).double().mean().item()
        rows.append(_row(f"{a} & ~{b}", chains, share, truths.pop("level"), **truths))
    return rows


def measure_xor(chains: int, seed: int) -> list[dict[str, Any]]:
    found = energies()
    levels, rows = {name: region(energy) for name, energy in found.items()}, []
    for a, b in itertools.combinations(found, 2):
        energy = ce.calibrate(found[a] ^ found[b], seed=seed, event_shape=(2,), dtype=F64)
        points = energy.sample((chains, 2), sampler="tempering", seed=seed, dtype=F64)
        right, truth = ((found[a](x) <= levels[a]) ^ (found[b](x) <= levels[b]) for x in (points, GRID))
        rows.append(_row(f"{a} ^ {b}", chains, right.double().mean().item(), probabilities(energy)[truth].sum().item()))
    return rows


def _row(name: str, chains: int, share: float, truth: float, **others: float) -> dict[str, Any]:
    error = math.sqrt(max(truth * (1 - truth), 1e-9) / chains)
    figures = {"share": share, "truth": truth, "deviation": (share - truth) / error, **others}
    figures = {key: float(f"{value:.3g}") for key, value in figures.items()}
    print(f"{name:20}" + "".join(f"{key:>12} {value:<8g}" for key, value in figures.items()), flush=True)
    return {"expression": name, "chains": chains, **figures}


def main() -> None:
    parser = argument_parser(__doc__, PATH)
    parser.add_argument("--chains", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {"not": measure_not(args.chains, args.seed), "xor": measure_xor(args.chains, args.seed)}
    if args.write:
        write_json(PATH, {**environment(chains=args.chains, seed=args.seed), "command": "python -m benchmarks.negation --write", **rows})


if __name__ == "__main__":
    main()
