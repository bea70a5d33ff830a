"""What the driver of `sample` costs beside the gradient: `python -m benchmarks.sampling`.

Each row has the processor time of one bare `autograd.grad` of an energy, of a Langevin step in a plain loop (gradient, `randn_like`, two
additions; no checks, and draws that depend on the batch), and of a step of `sample`. The least of several rounds counts, on one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.energies import Convolutions, Mixture, Perceptron
from composable_energy.noise import Noise
from composable_energy.sampling import sample
from composable_energy_mcmc import Langevin


def seconds(work: Callable[[], object], times: int) -> float:
    """Returns the time of one repetition."""
    begin = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - begin) / times


def measure(energy: ce.Energy, shape: tuple[int, ...], steps: int, rounds: int, step_size: float, **options: Any) -> list[float]:
    """Returns the times of a bare gradient, of a step of a plain loop and of a step of `sample`."""
    for parameter in energy.parameters():
        parameter.requires_grad_(False)
    sampler = Langevin(step_size)
    point = sample(energy, shape, sampler=sampler, steps=steps, seed=0)  # points of the density: far points can be slower or faster

    def gradient(x: Tensor = point) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(energy.forward(x).sum(), x)[0]

    def plain_loop() -> None:
        x = torch.randn(shape)
        for _ in range(steps):
            x = x - step_size / 2 * gradient(x) + math.sqrt(step_size) * torch.randn_like(x)

    def run() -> None:
        sample(energy, shape, sampler=sampler, steps=steps, seed=0, **options)

    best = [float("inf")] * 3
    for _ in range(rounds):
        times = seconds(gradient, steps), seconds(plain_loop, 1) / steps, seconds(run, 1) / (steps + 1)  # the start takes a gradient too
        best = [min(pair) for pair in zip(best, times, strict=True)]
    return best


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases: list[tuple[str, ce.Energy, tuple[int, ...], int, dict[str, Any]]] = [
        ("mixture, 4096 points on a plane", Mixture(), (4096, 2), 100, {}),
        ("mixture, 64 points on a plane", Mixture(), (64, 2), 500, {}),
        ("convolutions, 16 images 3x32x32", Convolutions(), (16, 3, 32, 32), 15, {}),
        ("convolutions, 1 image 3x64x64", Convolutions(), (1, 3, 64, 64), 30, {}),
        ("perceptron, 64 latents of 64", Perceptron(), (64, 64), 300, {}),
        ("perceptron, 64 latents of 64, trace", Perceptron(), (64, 64), 300, {"trace": True}),
        ("perceptron, 64 latents of 64, philox", Perceptron(), (64, 64), 300, {"noise": "philox"}),
    ]
    print(f"{'Langevin':42}{'gradient':>12}{'plain loop':>12}{'sample':>12}{'/ gradient':>12}{'/ loop':>12}")
    for name, energy, shape, steps, options in cases:
        bare, hand, step = measure(energy, shape, steps, 9, 0.01, **options)
        print(f"{name:42}{bare * 1e6:9.0f} us{hand * 1e6:9.0f} us{step * 1e6:9.0f} us{step / bare:12.2f}{step / hand:12.2f}")
    print(f"\n{'noise, over torch.randn':42}{'blocks':>12}{'philox':>12}")
    for shape in ((4096, 2), (64, 64), (16, 3, 32, 32), (64, 3, 64, 64)):
        points, times = torch.zeros(shape), 5 if len(shape) > 2 else 100
        plain = min(seconds(lambda shape=shape: torch.randn(shape), times) for _ in range(5))
        costs = []
        for kind in ("blocks", "philox"):
            noise = Noise(0, range(shape[0]), kind=kind)
            costs.append(min(seconds(lambda noise=noise, points=points: noise.at(1).normal(points), times) for _ in range(5)))
        print(f"{shape!s:42}{costs[0] / plain:12.2f}{costs[1] / plain:12.2f}")


if __name__ == "__main__":
    main()
