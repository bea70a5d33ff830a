r"""Whether draws of face expressions have the shares that the expressions say, for weak and strong evidence and terms without noise levels.

    python -m benchmarks.faces_shares [--samples 500] [--seeds 10 11 12] [--rows NAME ...] [--write]

The exact share of a row is an importance estimate: codes of drawn faces are draws of the base, and their weights are
$e^{-\text{evidence}}$ at the lowest noise level. The judge, which no sampler sees, says which pictures have an attribute. Settings were
chosen at the seeds 0 and 1.

- **default**: the sampler that a call without `sampler=` takes;
- **annealed**: correctors and ancestral steps, without weights;
- **feynman-kac**: weights until they collapse;
- **correctors**: the steps of `feynman-kac` without weights.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

import composable_energy as ce
from benchmarks.harness import RESULTS, chosen, environment, replace_rows, run_benchmark
from composable_energy_faces.draw import ATTRIBUTES, draw
from composable_energy_faces.judge import judge
from composable_energy_faces.networks import SIGMA_MIN, SIZE

PATH = RESULTS / "faces_shares.json"
SHAPE = (3, SIZE, SIZE)
SAMPLERS: dict[str, dict[str, Any]] = {
    "default": {},
    "annealed": {"sampler": "annealed"},
    "feynman-kac": {"sampler": "feynman-kac"},
    "correctors": {"sampler": "feynman-kac", "weighted": False},
}


class PixelHat(nn.Module):
    """A user's own network: the log odds of a hat in a picture, by random filters and a linear readout fitted to 600 pictures."""

    def __init__(self, scale: float = 2.4, count: int = 600) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 16, 3, 2, 1), nn.Tanh(), nn.Flatten())
        weight, bias = self.features[1].parameters()
        faces = draw(count, seed=21)
        with torch.no_grad():
            weight.copy_(0.8 * torch.randn(weight.shape, generator=generator))
            bias.copy_(0.3 * torch.randn(bias.shape, generator=generator) - weight.sum((1, 2, 3)) / 2)
            seen = self.features(faces.images)
            self.mean = seen.mean(0)
            seen = seen - self.mean
            labels = 2 * faces.attributes[:, ATTRIBUTES.index("hat")] - 1
            self.readout = scale * torch.linalg.solve(seen.T @ seen + 3 * torch.eye(seen.shape[1]), seen.T @ labels)
        self.requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Returns log odds with shape $(B, 1)$."""
        return ((self.features(pictures) - self.mean) @ self.readout)[:, None]


class Row(NamedTuple):
    """An expression, the number that is measured of pictures, and the attributes of the faces that weigh in its exact value."""

    energy: ce.Energy
    measure: Callable[[Tensor], Tensor]
    given: dict[str, int]


def having(*names: str) -> Callable[[Tensor], Tensor]:
    """Returns whether pictures have all attributes, according to the judge."""
    return lambda pictures: torch.stack([judge(pictures)[name] for name in names]).all(0).double()


def one_of_hat_and_glasses(pictures: Tensor) -> Tensor:
    """Returns whether pictures have exactly one of hat and glasses."""
    found = judge(pictures)
    return (found["hat"] ^ found["glasses"]).double()


def rows() -> dict[str, Row]:
    male, glasses, smiling = (ce.get("energy", f"faces/{name}") for name in ("male", "glasses", "smiling"))
    network = PixelHat()
    pixel = ce.as_energy(lambda pictures: softplus(-network(pictures)[:, 0]), event_shape=SHAPE, name="pixel hat")
    event = ce.ClassifierEnergy(network, 1, name="pixel hat event")
    event.event_shape = SHAPE
    dark = ce.as_energy(lambda pictures: 4000 * (pictures.mean((1, 2, 3)) - 0.55).square(), event_shape=SHAPE, name="dark")
    return {
        "male.sharpened(.3)": Row(male.sharpened(0.3), having("male"), {}),
        "(male & glasses).sharpened(.3)": Row((male & glasses).sharpened(0.3), having("male", "glasses"), {}),
        ".5 * male & smiling": Row(0.5 * male & smiling, having("male", "smiling"), {}),
        "male & ~smiling & pixel hat": Row(male & ~smiling & pixel, having("hat"), {"male": 1, "smiling": 0}),
        "male & ~smiling & dark": Row(male & ~smiling & dark, lambda x: x.mean((1, 2, 3)).double(), {"male": 1, "smiling": 0}),
        "male.sharpened(3)": Row(male.sharpened(3), having("male"), {}),
        "male & ~pixel event": Row(male & ~event, lambda x: 1 - having("hat")(x), {}),
        "glasses ^ pixel event": Row(glasses ^ event, one_of_hat_and_glasses, {}),
    }


@torch.no_grad()
def exact(row: Row, count: int = 6000) -> tuple[float, float]:
    """Returns the exact value of a row, and its standard error."""
    coder: Any = ce.get("energy", "faces").decoder
    weights, values = [], []
    for start in range(0, count, 500):
        codes = coder.encode(draw(500, seed=31, start=start, given=row.given).images)
        weights.append(-row.energy.evidence(codes, sigma=codes.new_full((len(codes),), SIGMA_MIN)).double())
        values.append(row.measure(coder(codes)))
    shares, found = torch.softmax(torch.cat(weights), 0), torch.cat(values)
    mean = (shares * found).sum()
    return float(mean), float((shares * (found - mean)).square().sum().sqrt())


def drawn(row: Row, options: dict[str, Any], samples: int, seed: int) -> dict[str, Any]:
    """Draws a row once; returns what was measured."""
    began = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampler = {} if not options else {**OPTIONS, **options}
        pictures, trace = row.energy.sample(samples, seed=seed, trace=True, **sampler)
    seconds = time.process_time() - began
    return {
        "value": float(row.measure(pictures).mean()),
        "sampler": type(trace.sampler).__name__,
        "ess": min((ess for ess in trace.scalars.get("ess", []) if not math.isnan(ess)), default=None),
        "warnings": sorted({str(one.message).partition(":")[0] for one in caught}),
        "milliseconds": 1000 * seconds / samples,
    }


OPTIONS: dict[str, Any] = {"levels": 25, "sigma_max": 4.0, "sigma_min": 0.05, "corrector_steps": 3, "delta": 0.25}
"""What the faces recommend."""


def measure(name: str, row: Row, samples: int, seeds: list[int], only: list[str]) -> dict[str, Any]:
    """Prints and returns the figures of a row."""
    truth, error = exact(row)
    print(f"\n{name}: exact {truth:.3f} +- {error:.3f}", flush=True)
    found: dict[str, Any] = {"row": name, "exact": truth, "standard error": error}
    for sampler in only:
        same = sampler == "annealed" and "default" in found and found["default"]["runs"][0]["sampler"] == "Annealed"
        runs = found["default"]["runs"] if same else [drawn(row, SAMPLERS[sampler], samples, seed) for seed in seeds]
        mean = sum(run["value"] for run in runs) / len(runs)
        found[sampler] = {"mean": mean, "runs": runs}
        print(f"  {sampler:12s} {mean:.3f}, off by {mean - truth:+.3f}", *runs, sep="\n    ", flush=True)
    return found


def run(args: Any) -> Iterator[dict[str, Any]]:
    known = rows()
    for name, row in chosen(known, args.rows or ()).items():
        found = replace_rows(PATH, [measure(name, row, args.samples, args.seeds, args.samplers)], ["row"])
        ordered = sorted(found, key=lambda row: list(known).index(row["row"]))
        yield {**environment(samples=args.samples, seeds=args.seeds), "rows": ordered}


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run, samples=500, seeds=[10, 11, 12], rows=(), samplers=list(SAMPLERS))
