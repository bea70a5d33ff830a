"""Speed of a training step, beside the trainers of ebmkit and torchebm.

    .venv/peers/bin/python -m benchmarks.training_speed [--write]

All have the same network: convolutions with spectral norms and swish, 32 channels, for pictures of 32 and 64 pixels, batch 32, one thread.
*Contrastive divergence*: 20 Langevin steps on the chains of a replay buffer of 10,000, a penalty on squares, Adam. *Denoising*: score
matching, the gradient of a gradient; torchebm has one noise level, the others many. Turns are the outer loop: each implementation takes a
step, then each the next one, and ratios are medians over turns.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.harness import RESULTS, environment, run_benchmark

PATH = RESULTS / "training_speed.json"
BATCH, K, BUFFER, STEP, NOISE = 32, 20, 10_000, 10.0, 0.005
OURS, WHO = "composable-energy", ("composable-energy", "ebmkit", "torchebm")
TASKS = [(task, size) for task in ("contrastive divergence", "denoising") for size in (32, 64)]


class Net(nn.Module):
    """An energy in plain torch."""

    def __init__(self, size: int, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = [3, width, width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            kernel, stride = (4, 2) if i else (3, 1)
            layers += [spectral_norm(nn.Conv2d(before, after, kernel, stride, 1)), nn.SiLU()]
        side = size // 8
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * side * side, 1))

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        return self.layers(x).squeeze(1)


class Leveled(nn.Module):
    """A network that ignores the noise level."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.net(x)


def ours(task: str, size: int, steps: int, between: Callable[[], None]) -> list[float]:
    import composable_energy as ce
    from composable_energy_training import Callback, ContrastiveDivergence, DenoisingScoreMatching, Monitor, Optimizer, Trainer

    class Clock(Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_start(self, trainer: Trainer) -> None:
            self.began = time.process_time()

        def on_step(self, trainer: Trainer, scalars: Any) -> None:
            self.seconds.append(time.process_time() - self.began)
            between()
            self.began = time.process_time()

    if task == "denoising":
        energy, objective = ce.as_energy(Leveled(Net(size))), DenoisingScoreMatching(0.05, 1.0)
    else:
        energy = ce.as_energy(Net(size))
        options = {"step_size": 2 * STEP, "temperature": NOISE**2 / (2 * STEP), "clamp": (0.0, 1.0)}
        objective = ContrastiveDivergence(steps=K, sampler="langevin", options=options, buffer=BUFFER, l2=1.0)
    clock = Clock()
    data = torch.rand(2_000, 3, size, size)
    settings = {"optimizer": Optimizer(rate=1e-4), "callbacks": [clock, Monitor(None)]}  # the others monitor nothing
    Trainer(energy, objective, data, steps=steps, batch_size=BATCH, **settings).fit()
    return clock.seconds


def ebmkit(task: str, size: int) -> Callable[[], Any]:
    """Returns a step of the trainer of ebmkit."""
    from ebm.buffer import ReplayBuffer
    from ebm.losses import ContrastiveDivergence, MultiSigmaDenoisingScoreMatching
    from ebm.samplers import LangevinDynamics
    from ebm.training import Trainer

    if task == "denoising":
        loss = MultiSigmaDenoisingScoreMatching(torch.logspace(0, -1.3, 10))
    else:
        buffer = ReplayBuffer(BUFFER, (3, size, size), init_fn=torch.rand)
        sampler = LangevinDynamics(STEP, K, noise_scale=NOISE, clamp=(0, 1))
        loss = ContrastiveDivergence(sampler, buffer, energy_reg=1.0)
    trainer, data = Trainer(Net(size), loss, lr=1e-4), torch.rand(2_000, 3, size, size)
    return lambda: trainer.fit(data, 1, BATCH, verbose=False)


def torchebm(task: str, size: int) -> Callable[[], Any]:
    """Returns a step of the trainer of torchebm."""
    from torchebm.core import BaseModel
    from torchebm.core.base_trainer import BaseTrainer
    from torchebm.losses import ContrastiveDivergence, DenoisingScoreMatching
    from torchebm.samplers import LangevinDynamics

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(size)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    data = torch.rand(2_000, 3, size, size)
    if task == "denoising":
        trainer = BaseTrainer(model, optimizer, DenoisingScoreMatching(model, noise_scale=0.3))
    else:
        sampler = LangevinDynamics(model, step_size=STEP, noise_scale=NOISE / (2 * STEP) ** 0.5, clamp=(0.0, 1.0))
        loss = ContrastiveDivergence(
            model, sampler, k_steps=K, persistent=True, buffer_size=BUFFER, init_steps=0, new_sample_ratio=0.05, energy_reg_weight=1.0
        )
        trainer = BaseTrainer(model, optimizer, lambda x, **_: loss(x)[0])  # the trainer of 0.8.9 for this loss raises a TypeError
    model.train()
    return lambda: trainer.train_step(data[torch.randint(len(data), (BATCH,))])


def speed(turns: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for task, size in TASKS:
        others = {"ebmkit": ebmkit(task, size), "torchebm": torchebm(task, size)}
        seconds: dict[str, list[float]] = {name: [] for name in others}

        def between(others: Any = others, seconds: Any = seconds) -> None:
            for name, step in others.items():
                began = time.process_time()
                step()
                seconds[name].append(time.process_time() - began)

        seconds[OURS] = ours(task, size, turns + 2, between)
        warm = {name: found[2:] for name, found in seconds.items()}
        row = {name: {"images_per_second": BATCH / median(warm[name])} for name in WHO}
        for name in others:
            row[name]["ours_is_faster_by"] = median(a / b for a, b in zip(warm[name], warm[OURS], strict=True))
        result[f"{task}, {size} pixels"] = row
        print(f"{task}, {size} pixels:", row, flush=True)
    return result


def run(args: Any) -> Iterator[dict[str, Any]]:
    yield {"about": environment("ebmkit", "torchebm", turns=args.turns, batch=BATCH, K=K), **speed(args.turns)}


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run, turns=15)
