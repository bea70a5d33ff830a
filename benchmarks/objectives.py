r"""The objectives beside each other on digits and on drawn faces, at equal time: `python -m benchmarks.objectives [--write]`.

scikit-learn's digits of 8 x 8 pixels, and grey drawn faces of the same size: 1,397 to train and 400 to test, scaled to [-1, 1], with noise
of deviation .15 added. All objectives train the same network, a perceptron plus the energy of the Gaussian that fits the data, for the same
processor time, with what comes before the first step. `smc` draws, and gives $\log Z$ and so the log likelihood of the noisy test pictures;
draws are denoised by $x - \sigma^2 \nabla E(x)$. Objectives with noise levels have .15 as their lowest; they are also drawn by `annealed`.
`buffer` evaluates the chains of training, which papers show. The Frechet distance is that of the features of a classifier, of ten digits or
of eight kinds of faces, between 500 draws and the 400 test pictures. Settings were chosen on the digits of the seed 100.
"""

import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

import composable_energy as ce
from benchmarks.handwritten import Judge, LabelledPixels, load_digits, train_judge
from benchmarks.harness import RESULTS, chosen, environment, read_json, run_benchmark
from composable_energy.errors import ComposableEnergyError
from composable_energy.sampling.noise import Noise
from composable_energy_faces import ATTRIBUTES, draw
from composable_energy_image.metrics import frechet_distance
from composable_energy_training import (
    Callback,
    Checkpoints,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    DiffusionRecoveryLikelihood,
    EnergyDiscrepancy,
    EnergyMatching,
    FlowNoise,
    GaussianNoise,
    ImprovedContrastiveDivergence,
    Monitor,
    NoiseContrastive,
    Objective,
    Optimizer,
    Prepared,
    Trainer,
)

PATH = RESULTS / "objectives.json"
SEEDS, SECONDS, DRAWS = (0, 1), 15.0, 500
TRAINING, TEST = 1397, 400
KINDS = ("male", "hat", "old")
NOISE, HIGHEST = 0.15, 3.0  # a grey value is .125 wide
WITH_LEVELS = ("denoising score matching", "diffusion recovery likelihood")
LANGEVIN = {"step_size": 0.01, "clamp": (-1.5, 1.5)}


class Network(ce.Energy):
    """A perceptron of points and their noise level, plus the energy of the Gaussian that fits the data at this level."""

    mean: Tensor
    axes: Tensor
    variances: Tensor

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        size = clean.shape[1]
        self.event_shape = torch.Size([size])
        self.recommended = ce.Recommendation("annealed", {"sigma_min": NOISE, "sigma_max": HIGHEST, "levels": 60})
        self.net = nn.Sequential(nn.Linear(size + 1, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 1))
        variances, axes = torch.linalg.eigh(torch.cov(clean.T))
        for name, value in (("mean", clean.mean(0)), ("axes", axes), ("variances", variances.clamp_min(0))):
            self.register_buffer(name, value)

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        level = torch.as_tensor(NOISE if sigma is None else sigma, dtype=x.dtype).expand(len(x))[:, None]
        scaled = torch.cat([x / (0.5 + level.square()).sqrt(), level.log()], 1)
        variances = self.variances + level.square()
        gaussian = (((x - self.mean) @ self.axes).square() / variances + (2 * math.pi * variances).log()).sum(1) / 2
        return self.net(scaled)[:, 0] + gaussian


class Plain(Network):
    """The network without noise levels."""

    def __init__(self, clean: Tensor) -> None:
        super().__init__(clean)
        self.recommended = None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def objectives(train: Tensor, seed: int) -> dict[str, Callable[[], Objective]]:
    """Returns functions that build the objectives; the time of a flow's training counts."""
    chains: dict[str, Any] = {"steps": 20, "options": LANGEVIN, "buffer": 2000, "start": uniform, "l2": 0.01}
    return {
        "diffusion recovery likelihood": lambda: DiffusionRecoveryLikelihood(NOISE, HIGHEST),
        "energy discrepancy": lambda: EnergyDiscrepancy(0.1, particles=16),
        "energy matching": lambda: EnergyMatching(temperature=0.05, warm_up=300, weight=20.0, steps=40, step_size=0.04),
        "noise contrast, Gaussian": lambda: NoiseContrastive(GaussianNoise.fit(train), ratio=4),
        "noise contrast, flow": lambda: NoiseContrastive(FlowNoise.fit(train, layers=6, steps=200, seed=seed), ratio=4),
        "contrastive divergence": lambda: ContrastiveDivergence(**chains),
        "denoising score matching": lambda: DenoisingScoreMatching(NOISE, HIGHEST),
        "improved contrastive divergence": lambda: ImprovedContrastiveDivergence(**chains),
    }


def uniform(like: Tensor, noise: Noise) -> Tensor:
    """Draws starts in [-1, 1]."""
    return 2 * torch.special.ndtr(noise.normal(like)) - 1


def add_noise(x: Tensor, noise: Noise) -> Tensor:
    """Returns points with noise of the lowest level."""
    return x + NOISE * noise.normal(x)


class Clock(Callback):
    """Ends a training when its processor time is over."""

    def __init__(self, seconds: float) -> None:
        self.end = time.process_time() + seconds

    def on_step(self, trainer: Trainer, scalars: Any) -> None:
        if time.process_time() > self.end:
            trainer.steps = trainer.step


def load_faces(seed: int) -> LabelledPixels:
    """Returns grey drawn faces of 8 x 8 pixels; their eight kinds are the values of three attributes."""
    faces = draw(TRAINING + TEST, size=16, seed=1000 + seed)
    pixels = avg_pool2d(faces.images.mean(1), 2).flatten(1)
    kinds = faces.attributes[:, [ATTRIBUTES.index(name) for name in KINDS]].long() @ torch.tensor([4, 2, 1])
    return LabelledPixels(pixels[:TRAINING], kinds[:TRAINING], pixels[TRAINING:], kinds[TRAINING:], 1 / 255)


SETS: Mapping[str, Callable[[int], LabelledPixels]] = {"digits": load_digits, "faces": load_faces}
"""Functions of a seed that return the pictures."""


def measure(name: str, pictures: LabelledPixels, seed: int, seconds: float) -> dict[str, float]:
    """Trains with an objective and returns its figures."""
    clean, test = 2 * pictures.train - 1, add_noise(2 * pictures.test - 1, Noise(seed, range(len(pictures.test))))
    torch.manual_seed(seed)
    levels = name in WITH_LEVELS
    model, clock = Network(clean) if levels else Plain(clean), Clock(seconds)
    objective = objectives(add_noise(clean, Noise(seed, range(len(clean)))), seed)[name]()
    optimizer = Optimizer(rate=1e-3, betas=(0.9, 0.99), clip=10.0, ema=0.99)
    data, callbacks = Prepared(clean, None if levels else add_noise), [clock, Monitor(None), Checkpoints(every=10**7)]
    report = Trainer(model, objective, data, steps=10**6, seed=seed, optimizer=optimizer, callbacks=callbacks).fit()
    figures: dict[str, float] = {"steps": report.steps}
    judge, energy = train_judge(pictures.train, pictures.train_labels), model.at(NOISE) if levels else model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            draws, trace = energy.sample(DRAWS, sampler="smc", leapfrogs=4, seed=seed, trace=True)
            log_z = float(trace.scalars["log_z"][-1])
            with torch.no_grad():
                figures["log likelihood"] = float(-energy(test).mean() - log_z)
            figures["frechet"] = distance(judge, denoised(energy, draws), pictures)
            if isinstance(objective, EnergyMatching):
                step, start = 2 * objective.step_size * objective.temperature, torch.randn(DRAWS, pictures.size)
                chains = energy.sample(DRAWS, sampler="langevin", seed=seed, step_size=step, steps=50, init=start)
                figures["frechet of its chains"] = distance(judge, denoised(energy, chains), pictures)
            if levels:
                figures["frechet of annealed"] = distance(judge, model.sample(DRAWS, seed=seed), pictures)
        except ComposableEnergyError as failure:
            print(f"{name}: {failure}", flush=True)
    chains = objective.state().get("slots")
    if chains is not None:
        figures["frechet of the buffer"] = distance(judge, denoised(energy, chains[:DRAWS]), pictures)
    return figures


def denoised(energy: ce.Energy, x: Tensor) -> Tensor:
    """Returns the expected points without noise (Tweedie's formula)."""
    return x - NOISE**2 * energy.with_gradient(x)[1]


def distance(judge: Judge, x: Tensor, pictures: LabelledPixels) -> float:
    """Returns the Frechet distance of points in [-1, 1] to the test pictures."""
    return frechet_distance(judge.body((x.clamp(-1, 1) + 1) / 2), judge.body(pictures.test))


def references(pictures: LabelledPixels) -> dict[str, float]:
    """Returns the distance of training pictures, and of draws of the Gaussian and of uniform noise, to the test pictures."""
    judge, noise = train_judge(pictures.train, pictures.train_labels), Noise(0, range(DRAWS))
    features, gaussian = judge.body(pictures.test), GaussianNoise.fit(pictures.train)
    sets = {
        "training pictures": pictures.train[:DRAWS],
        "Gaussian": gaussian.draw(pictures.train[:DRAWS], noise)[0].clamp(0, 1),
        "uniform noise": torch.special.ndtr(noise.normal(pictures.train[:DRAWS])),
    }
    return {name: frechet_distance(judge.body(x), features) for name, x in sets.items()}


def gaussian_likelihood(pictures: LabelledPixels, seed: int) -> float:
    """Returns the log likelihood of the noisy test pictures under the Gaussian of the noisy training pictures."""
    train, test = (add_noise(2 * part - 1, Noise(seed, range(len(part)))) for part in (pictures.train, pictures.test))
    return float(GaussianNoise.fit(train).log_prob(test).mean())


def summary(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Returns means and deviations over seeds of each figure that any of them has."""
    names = list(dict.fromkeys(name for run in runs for name in run))
    values = {name: [run[name] for run in runs if name in run] for name in names}
    spread = {name: {"mean": statistics.fmean(v), "deviation": statistics.pstdev(v)} for name, v in values.items()}
    return {"figures": spread, "runs": list(runs)}


def run(args: Any) -> Iterator[dict[str, Any]]:
    names = chosen(objectives(torch.randn(100, 2), 0), args.only or ())
    sets: dict[str, dict[str, Any]] = read_json(PATH)["sets"] if args.only and args.write else {name: {"objectives": {}} for name in SETS}
    about = environment(seeds=list(args.seeds), seconds=args.seconds, draws=DRAWS)
    for kind, load in SETS.items():
        sets[kind]["references"] = references(load(args.seeds[0]))
        sets[kind]["log likelihood of the Gaussian"] = statistics.fmean(gaussian_likelihood(load(seed), seed) for seed in args.seeds)
        print(kind, {key: round(value, 3) for key, value in sets[kind]["references"].items()}, flush=True)
    for name, kind in itertools.product(names, SETS):
        runs = [measure(name, SETS[kind](seed), seed, args.seconds) for seed in args.seeds]
        row = sets[kind]["objectives"][name] = summary(runs)
        print(kind, name, {key: f"{v['mean']:.3g} +- {v['deviation']:.2g}" for key, v in row["figures"].items()}, flush=True)
        yield {"about": about | {"cpu_seconds": time.process_time()}, "sets": sets}


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run, seeds=SEEDS, seconds=SECONDS, only=())
