r"""How fast components are trained and found, and the memory of the training: one thread, K = 4, 32 pixels, batches of 16, 32 filters.

    python -m benchmarks.papers.comet_2021.speed [--write] [--turns 9]

- **A training step** is encoder, inner descent, loss, gradients and Adam. One random iterate is drawn uniformly from N, so its time is the
  mean over all N. Baselines are all iterates with the components evaluated together, and a plain loop like the released code of the paper:
  all iterates, and for each a Python loop over k in which the energy evaluates one component, with torch's own second derivatives.
- **Finding**: `decompose` returns energies of 16 pictures, `decode` pictures from them, `masks` the masks.
- **Memory**: the growth of the largest resident memory of a new process in three steps of training with N inner steps and the last iterate,
  which costs most; beside all iterates, and beside a gradient through all N steps.

Times are processor seconds, medians over turns with each variant once, so that a slow minute of the machine is slow for all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.harness import peak_memory
from benchmarks.papers.comet_2021.options import experiment_parser
from benchmarks.papers.experiment import COMET, print_table
from composable_energy.sampling import Noise
from composable_energy_comet import Comet, Decomposition, squared_error
from composable_energy_comet import comet as create_comet
from composable_energy_comet.descent import SPREAD
from composable_energy_training import Batch

SIZE, COMPONENTS, ROWS, FILTERS = 32, 4, 16, 32
STEPS = (3, 5)
DEPTHS = (1, 2, 4, 8, 16)
WAYS: Mapping[str, Callable[[int], Decomposition]] = {
    "one random iterate": Decomposition,
    "all iterates": lambda n: Decomposition(n, iterates="all"),
    "through all steps": lambda n: Decomposition(n, iterates="last", truncate=n),
}


def untrained_model() -> tuple[Comet, Tensor]:
    """Returns an untrained model, and pictures."""
    torch.manual_seed(0)
    return create_comet(SIZE, components=COMPONENTS, head="conv", filters=FILTERS), torch.rand(ROWS, 3, SIZE, SIZE)


def plain_loop_loss(comet: Comet, x: Tensor, noise: Noise, iterations: int) -> Tensor:
    """Returns the loss of all iterates by plain loops over steps and components."""
    energy, z = comet.energy, comet.encoder(x)
    reached, losses = energy.draw_start(x, noise.child("start"), SPREAD), []
    for _ in range(iterations):
        reached = reached.detach().requires_grad_()
        total = torch.zeros(())
        for k in range(z.shape[1]):
            total = total + energy(reached, z=z[:, k]).sum()
        moved = reached - torch.autograd.grad(total, reached, create_graph=True)[0]
        losses.append(squared_error(moved, x).mean())
        reached = moved.clamp(0, 1)
    return torch.stack(losses).mean()


def steps_by_iterate(iterations: int) -> dict[int, int]:
    """Returns for each iterate a training step that draws it."""
    found: dict[int, int] = {}
    for step in range(10_000):
        noise = Noise(0, range(1), step).child("iterate")
        found.setdefault(1 + min(int(noise.uniform(torch.zeros(1)).item() * iterations), iterations - 1), step)
        if len(found) == iterations:
            break
    return found


def training(iterations: int, turns: int) -> dict[str, float]:
    """Returns the seconds of a training step by each variant, and the speed of the random iterate relative to the others."""
    comet, x = untrained_model()
    adam = torch.optim.Adam(comet.parameters(), 1e-5, foreach=True)

    def step(loss: Callable[[Noise], Tensor], noise: Noise) -> float:
        started = time.process_time()
        adam.zero_grad(set_to_none=True)
        loss(noise).backward()
        adam.step()
        return time.process_time() - started

    def ours(objective: Decomposition) -> Callable[[Noise], Tensor]:
        return lambda noise: objective.loss(comet, Batch(x, {}, noise)).value

    def plain(noise: Noise) -> Tensor:
        return plain_loop_loss(comet, x, noise, iterations)

    drawn = steps_by_iterate(iterations)
    spent: dict[str, list[float]] = {name: [] for name in ("all, together", "plain loop")}
    each: dict[int, list[float]] = {end: [] for end in drawn}
    for turn in range(turns + 1):
        for end, number in drawn.items():
            each[end].append(step(ours(Decomposition(iterations)), Noise(0, range(ROWS), number)))
        noise = Noise(0, range(ROWS), turn)
        spent["all, together"].append(step(ours(Decomposition(iterations, iterates="all")), noise))
        spent["plain loop"].append(step(plain, noise))
    own = statistics.mean(statistics.median(times[1:]) for times in each.values())  # the first turn warms up
    others = {name: statistics.median(times[1:]) for name, times in spent.items()}
    return {"N": iterations, "one random": own, **others, **{f"{name}: times": seconds / own for name, seconds in others.items()}}


def agreement(iterations: int) -> float:
    """Returns the relative difference between the gradients of the plain loop and of the package, in double precision."""
    comet, x = untrained_model()
    comet, x, noise = comet.double(), x.double(), Noise(0, range(ROWS), 1)
    weights = list(comet.parameters())
    losses = Decomposition(iterations, iterates="all").loss(comet, Batch(x, {}, noise)).value, plain_loop_loss(comet, x, noise, iterations)
    own, other = (torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights, materialize_grads=True)]) for loss in losses)
    return float((own - other).norm() / own.norm())


def finding(turns: int) -> dict[str, float]:
    """Returns the seconds for 16 pictures."""
    comet, x = untrained_model()
    ways: Mapping[str, Callable[[], object]] = {
        "decompose": lambda: comet.decompose(x),
        "decompose and decode": lambda: comet.recombine(comet.decompose(x)),
        "masks": lambda: comet.masks(x),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            spent[name].append(time.process_time() - started)
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


def memory(way: str, iterations: int) -> float:
    """Returns the MB by which three training steps raise the largest resident memory of this process, on Linux."""
    comet, x = untrained_model()
    adam, number = torch.optim.Adam(comet.parameters(), 1e-5), steps_by_iterate(iterations)[iterations]
    before = peak_memory()
    for _ in range(3):
        adam.zero_grad(set_to_none=True)
        WAYS[way](iterations).loss(comet, Batch(x, {}, Noise(0, range(ROWS), number))).value.backward()
        adam.step()
    return peak_memory() - before


def _memory_of_process(way: str, iterations: int) -> float:
    command = [sys.executable, "-m", "benchmarks.papers.comet_2021.speed", "--memory", way, str(iterations)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = experiment_parser("speed", __doc__)
    parser.add_argument("--turns", type=int, default=9, help="turns of the medians")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.memory:
        print(json.dumps(memory(args.memory[0], int(args.memory[1]))))
        return
    steps = [training(n, args.turns) for n in STEPS]
    print_table("Seconds of a training step", steps)
    off = max(agreement(n) for n in STEPS)
    print(f"The gradient of the plain loop differs from that of all iterates by {off:.0e} of it.")
    found = finding(args.turns)
    print_table("Seconds for 16 pictures", [found])
    used = [{"inner steps": n, **{way: _memory_of_process(way, n) for way in WAYS}} for n in DEPTHS]
    print_table("MB of training", used)
    if args.write:
        figures = {"steps": steps, "agreement": off, "16 pictures": found, "MB": used}
        COMET.write("speed", figures, size=SIZE, components=COMPONENTS, batch=ROWS, filters=FILTERS, turns=args.turns)


if __name__ == "__main__":
    main()
