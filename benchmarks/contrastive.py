"""Long runs of contrastive divergence on drawn faces of 32 pixels: do they stay upright, and do the pictures get better?

    python benchmarks/contrastive.py RUN --out FOLDER --minutes 60

RUN is `monitored`, plain contrastive divergence; `improved`, Improved CD; or `careless-monitored` and `careless-unmonitored`, the plain one
without spectral norms and penalty at thirty times the rate, with the monitor and without. Each goes on where it was; `--minutes` counts
processor time, that of all calls together. Every 500 steps the judge of the faces (an image network that is no part of any run) looks at
1,000 chains of the replay buffer: the Frechet distance of its features to those of drawn faces, and the variety of the chains. With
`--write` the curve goes to `benchmarks/results/contrastive.json`, and the chains to a picture beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import composable_energy as ce
from composable_energy.grids import write_grid
from composable_energy_faces.draw import draw
from composable_energy_faces.judge import features, frechet_distance
from composable_energy_image.data import Pictures, Preparation
from composable_energy_training import (
    Augmentation,
    Callback,
    ContrastiveDivergence,
    ImprovedContrastiveDivergence,
    Monitor,
    Optimizer,
    Trainer,
)

RESULTS = Path(__file__).parent / "results" / "contrastive.json"
SIZE, FACES, JUDGED = 32, 20_000, 1_000
STEP, NOISE, K = 100.0, 0.005, 20  # x - STEP * gradient + NOISE * normal numbers, K times
AUGMENTATION = Augmentation(crop=(0.7, 1.0), jitter=0.1, blur=0.0)


def energy(run: str) -> ce.Energy:
    """IGEBM's net for MNIST, in color; its halving convolutions are half as wide as theirs."""
    torch.manual_seed(0)
    model = ce.get_energy("igebm-mnist", size=SIZE, channels=3, width=32, activation="swish", spectral_norm=careful(run))
    return model.to(memory_format=torch.channels_last)


def careful(run: str) -> bool:
    return not run.startswith("careless")


def objective(run: str) -> ContrastiveDivergence | ImprovedContrastiveDivergence:
    options = {"step_size": 2 * STEP, "temperature": NOISE**2 / (2 * STEP), "clamp": (0.0, 1.0)}
    if run == "improved":  # with the few fresh starts of its paper, and a milder augmentation for 20 steps of small drawings
        return ImprovedContrastiveDivergence(steps=K, options=options, buffer=10_000, fresh=0.001, augment=AUGMENTATION)
    return ContrastiveDivergence(steps=K, sampler="langevin", options=options, buffer=10_000, fresh=0.05, l2=float(careful(run)))


def shown(images: Tensor) -> Tensor:
    """Pictures at the size that the judge knows."""
    return F.interpolate(images, size=64, mode="bilinear", align_corners=False)


class Curve(Callback):
    """Judges the chains at checkpoints."""

    def __init__(self, run: str, path: Path, reference: Tensor) -> None:
        self.run, self.path, self.reference = run, path, reference
        self.rows: list[dict[str, float]] = json.loads(path.read_text()) if path.exists() else []
        self.sums: dict[str, float] = {}
        self.steps = 0
        self.before, self.began = self.seconds, time.process_time()

    @property
    def seconds(self) -> float:
        """Processor seconds of all calls before this one."""
        return self.rows[-1]["seconds"] if self.rows else 0.0

    def on_start(self, trainer: Trainer) -> None:
        self.rows = [row for row in self.rows if row["step"] <= trainer.step]
        self.before, self.began = self.seconds, time.process_time()

    def on_step(self, trainer: Trainer, scalars) -> None:
        self.steps += 1
        for name in ("gap", "magnitude", "loss"):
            self.sums[name] = self.sums.get(name, 0.0) + scalars[name]

    def on_checkpoint(self, trainer: Trainer, path: Path | None) -> None:
        seconds = self.before + time.process_time() - self.began
        if self.rows and self.rows[-1]["step"] >= trainer.step:
            return
        chains = trainer.objective.state()["slots"]
        some = chains[torch.linspace(0, len(chains) - 1, JUDGED).long()].float()
        row = {
            "step": trainer.step,
            "seconds": round(seconds, 1),
            "frechet": frechet_distance(features(shown(some)), self.reference),
            "variety": float(some.std(0).mean()),
            "rate": trainer.rate,
            "attempt": trainer.attempt,
            **{name: total / self.steps for name, total in self.sums.items() if self.steps},
        }
        self.sums, self.steps = {}, 0
        self.rows.append(row)
        self.path.write_text(json.dumps(self.rows, indent=1))
        write_grid(self.path.parent / "chains.png", some[:: JUDGED // 64][:64], (0, 1), {"step": trainer.step})
        self.began += time.process_time() - self.began - (seconds - self.before)  # judging is no part of training


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", choices=("monitored", "improved", "careless-monitored", "careless-unmonitored"))
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--write", action="store_true", help=f"put the curve into {RESULTS.name}")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder = asked.out / asked.run
    folder.mkdir(parents=True, exist_ok=True)
    pictures = asked.out / "faces.npy"
    if not pictures.exists():
        faces = torch.cat([draw(2_000, seed=11, start=start, size=SIZE).images for start in range(0, FACES, 2_000)])
        torch.save(faces.mul(255).round().byte(), pictures)
    data = Pictures.from_tensors(torch.load(pictures, weights_only=True))
    reference = features(shown(draw(2 * JUDGED, seed=12, size=SIZE).images))
    other = features(shown(draw(JUDGED, seed=13, size=SIZE).images))
    curve = Curve(asked.run, folder / "curve.json", reference)
    every = 500 if careful(asked.run) else 100
    model, done = energy(asked.run), False
    while not done:
        done = curve.seconds >= 60 * asked.minutes  # then only the weights are read
        steps = (int(curve.rows[-1]["step"]) if curve.rows else 0) + (0 if done else every)
        trainer = Trainer(
            model,
            objective(asked.run),
            data,
            steps=steps,
            batch_size=64,
            out=folder,
            optimizer=Optimizer(rate=3e-4 if careful(asked.run) else 1e-2, betas=(0.0, 0.999)),
            ema=0.999,
            precision="bfloat16",
            checkpoint_every=every,
            preparation=Preparation(dequantize="uniform"),
            monitor=None if asked.run == "careless-unmonitored" else Monitor(),
            callbacks=[curve],
        )
        trainer.fit()
        row = curve.rows[-1]
        print(
            f"{asked.run}: step {row['step']:,}, {row['seconds'] / 60:.1f} min, Frechet {row['frechet']:.3f}, gap {row['gap']:.4f}",
            flush=True,
        )
    model.recommended = ce.Recommendation("langevin", {"step_size": 2 * STEP, "temperature": NOISE**2 / (2 * STEP), "clamp": (0.0, 1.0)})
    model.save(folder / "energy")
    if asked.write:
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        about = {"real against real": frechet_distance(other, reference), "torch": torch.__version__, "threads": 1}
        if careful(asked.run):
            shutil.copy(folder / "chains.png", RESULTS.with_name(f"contrastive-{asked.run}.png"))
        RESULTS.write_text(json.dumps({**results, "about": about, asked.run: curve.rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
