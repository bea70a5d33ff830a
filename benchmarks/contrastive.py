"""Long runs of contrastive divergence on pictures of clothes: their stability, and the quality of the pictures over time.

    make real-data && python -m benchmarks.contrastive RUN --out FOLDER --minutes 25

RUN is `monitored`, plain contrastive divergence; `improved`, Improved CD; `jem`, a classifier as an energy; or `careless-monitored` and
`careless-unmonitored`, the plain one without spectral norms and penalty at thirty times the rate, with the monitor and without. A run
continues from its last checkpoint; `--minutes` counts processor time, of all calls together. At checkpoints 1,000 chains of the replay
buffer are evaluated: the Frechet distance of features of the independent judge to those of 2,000 other pictures. With `--write` the curve
goes to `benchmarks/results/contrastive.json`, and the chains to a picture beside it.
"""

import shutil
import time
from pathlib import Path

import torch

import composable_energy as ce
from benchmarks.harness import RESULTS, argument_parser, environment, read_json, write_json
from benchmarks.real.data import RealSet, open_set
from benchmarks.real.judges import load_judge
from composable_energy_image.data import Pictures, Preparation
from composable_energy_image.metrics import frechet_distance
from composable_energy_training import (
    Augmentation,
    Callback,
    Checkpoints,
    ContrastiveDivergence,
    ImprovedContrastiveDivergence,
    JointEnergyClassifier,
    Monitor,
    Optimizer,
    Prepared,
    Trainer,
)
from composable_energy_viz.files import write_grid

PATH = RESULTS / "contrastive.json"
EVALUATED = 1_000
STEP, NOISE, K = 100.0, 0.005, 20  # x - STEP * gradient + NOISE * normal numbers, K times
AUGMENTATION = Augmentation(crop=(0.7, 1.0), jitter=0.1, blur=0.0)


def energy(run: str) -> ce.Energy:
    """Returns IGEBM's network for MNIST with half the width, or a small one of JEM."""
    torch.manual_seed(0)
    if run == "jem":
        return ce.get("energy", "jem", size=28, channels=1, depth=10, width=1, activation="swish").to(memory_format=torch.channels_last)
    model = ce.get("energy", "igebm-mnist", width=32, activation="swish", spectral_norm=careful(run))
    return model.to(memory_format=torch.channels_last)


def careful(run: str) -> bool:
    """Returns whether a run has spectral norms, a penalty and a small rate."""
    return not run.startswith("careless")


def objective(run: str) -> ContrastiveDivergence:
    step = 1.0 if run == "jem" else STEP
    options = {"step_size": 2 * step, "temperature": NOISE**2 / (2 * step), "clamp": (0.0, 1.0)}
    if run == "jem":
        return JointEnergyClassifier(steps=K, options=options, label="kind", l2=0.01)
    if run == "improved":  # fresh starts as in its paper, with a milder augmentation
        return ImprovedContrastiveDivergence(steps=K, options=options, buffer=10_000, fresh=0.001, augment=AUGMENTATION, l2=1.0)
    return ContrastiveDivergence(steps=K, sampler="langevin", options=options, buffer=10_000, fresh=0.05, l2=float(careful(run)))


class Curve(Callback):
    """Evaluates the chains at checkpoints and records the curve."""

    def __init__(self, path: Path, real: RealSet) -> None:
        self.path, self.real, self.judge = path, real, load_judge(real)
        self.rows: list[dict[str, float]] = read_json(path) if path.exists() else []
        self.before, self.began = self.seconds, time.process_time()

    @property
    def seconds(self) -> float:
        """Processor seconds of all earlier calls."""
        return self.rows[-1]["seconds"] if self.rows else 0.0

    def distance(self, images: torch.Tensor) -> float:
        """Returns the Frechet distance of pictures to those that the judge learnt from."""
        return frechet_distance(images, self.real.judge.take(slice(2 * EVALUATED)).images, self.judge.features)

    def on_start(self, trainer: Trainer) -> None:
        self.rows = [row for row in self.rows if row["step"] <= trainer.step]
        self.before, self.began = self.seconds, time.process_time()

    def on_checkpoint(self, trainer: Trainer, path: Path | None) -> None:
        seconds = self.before + time.process_time() - self.began
        if self.rows and self.rows[-1]["step"] >= trainer.step:
            return
        chains = trainer.objective.state()["slots"]
        some = chains[torch.linspace(0, len(chains) - 1, EVALUATED).long()].float()
        row = {"step": trainer.step, "seconds": round(seconds, 1), "frechet": self.distance(some), "attempt": trainer.attempt}
        self.rows.append(row)
        write_json(self.path, self.rows)
        write_grid(self.path.parent / "chains.png", some[:: EVALUATED // 64][:64], (0, 1), {"step": trainer.step})
        print(f"step {row['step']:,}, {row['seconds'] / 60:.1f} min, Frechet {row['frechet']:.3f}", flush=True)
        self.began += time.process_time() - self.began - (seconds - self.before)  # evaluation does not count as training


def train(run: str, folder: Path, data: Pictures, curve: Curve, minutes: float) -> None:
    """Trains until the minutes are used up."""
    every = 500 if careful(run) else 100
    model, done = energy(run), False
    while not done:
        done = curve.seconds >= 60 * minutes  # then only the weights are read
        steps = (int(curve.rows[-1]["step"]) if curve.rows else 0) + (0 if done else every)
        optimizer = Optimizer(rate=3e-4 if careful(run) else 1e-2, betas=(0.0, 0.999), ema=0.999, precision="bfloat16")
        callbacks = [Checkpoints(folder, every), Monitor(None) if run == "careless-unmonitored" else Monitor(), curve]
        prepared = Prepared(data, Preparation(dequantize="uniform"))
        Trainer(model, objective(run), prepared, steps=steps, batch_size=64, optimizer=optimizer, callbacks=callbacks).fit()


def main() -> None:
    parser = argument_parser(__doc__, PATH)
    parser.add_argument("run", choices=("monitored", "improved", "jem", "careless-monitored", "careless-unmonitored"))
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=25.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.out / args.run
    folder.mkdir(parents=True, exist_ok=True)
    real = open_set("fashion")
    curve = Curve(folder / "curve.json", real)
    train(args.run, folder, Pictures.from_tensors(real.library.pixels, dict(real.library.marks)), curve, args.minutes)
    if args.write:
        results = read_json(PATH) if PATH.exists() else {}
        about = environment(**{"real against real": curve.distance(real.held_out.take(slice(EVALUATED)).images)})
        if careful(args.run):
            shutil.copy(folder / "chains.png", PATH.with_name(f"contrastive-{args.run}.png"))
        write_json(PATH, {**results, "about": about, args.run: curve.rows})


if __name__ == "__main__":
    main()
