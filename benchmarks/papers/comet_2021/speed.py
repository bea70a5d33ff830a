r"""How fast components are trained and found, and how much memory that takes, in one thread; K = 4, 32 pixels, batches of 16, 32 filters.

    pip install -e . -e plugins/comet -c constraints.txt
    python benchmarks/papers/comet_2021/speed.py [--write] [--turns 9]

- **A training step** is encoder, inner descent, loss, gradients and Adam. One random iterate is drawn uniformly from N, so its time is the
  mean over all N. It stands beside all iterates with components evaluated together, and beside a loop written by hand as the released code
  of the paper has it: all iterates, and for each a Python loop over k in which the energy sees one component; once with this package's
  SiLU, whose second derivative is one formula, and once with torch's.
- **Finding**: `decompose` gives energies of 16 pictures, `decode` pictures of them again, `masks` the masks.
- **Memory**: what the largest resident memory of a process of its own grows by in three steps of training with N inner steps, the last
  iterate drawn, which costs most; beside all iterates, and beside a gradient through all N steps.

Times are seconds of one processor, medians over turns that take each way once, so that all see the same machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest import mock

import torch
from comet_common import RESULTS, about, show, write
from torch import Tensor
from torch.nn import functional as F

from composable_energy.sampling import Noise
from composable_energy_comet import Comet, Decomposition, squared_error
from composable_energy_comet import comet as untrained
from composable_energy_comet.descent import SPREAD
from composable_energy_training import Batch

__all__ = ["by_hand", "finding", "memory", "training"]

SIZE, COMPONENTS, ROWS, FILTERS = 32, 4, 16, 32
STEPS = (3, 5)
DEPTHS = (1, 2, 4, 8, 16)
WAYS: Mapping[str, Callable[[int], Decomposition]] = {
    "one random iterate": Decomposition,
    "all iterates": lambda n: Decomposition(n, iterates="all"),
    "through all steps": lambda n: Decomposition(n, iterates="last", truncate=n),
}


def model() -> tuple[Comet, Tensor]:
    """Returns a model that learnt nothing, and pictures."""
    torch.manual_seed(0)
    return untrained(SIZE, components=COMPONENTS, head="conv", filters=FILTERS), torch.rand(ROWS, 3, SIZE, SIZE)


def by_hand(comet: Comet, x: Tensor, noise: Noise, iterations: int) -> Tensor:
    """Returns the loss of all iterates by plain loops over steps and components."""
    energy, z = comet.energy, comet.encoder(x)
    reached, losses = energy.begun(x, noise.child("start"), SPREAD), []
    for _ in range(iterations):
        reached = reached.detach().requires_grad_()
        total = torch.zeros(())
        for k in range(z.shape[1]):
            total = total + energy(reached, z=z[:, k]).sum()
        moved = reached - torch.autograd.grad(total, reached, create_graph=True)[0]
        losses.append(squared_error(moved, x).mean())
        reached = moved.clamp(0, 1)
    return torch.stack(losses).mean()


def last_of(iterations: int) -> dict[int, int]:
    """Returns for each iterate a step of training in which it is the one drawn."""
    found: dict[int, int] = {}
    for step in range(10_000):
        noise = Noise(0, range(1), step).child("iterate")
        found.setdefault(1 + min(int(noise.uniform(torch.zeros(1)).item() * iterations), iterations - 1), step)
        if len(found) == iterations:
            break
    return found


def training(iterations: int, turns: int) -> dict[str, float]:
    """Returns the seconds of a training step by each way, and how many times the random iterate is as fast as the others."""
    comet, x = model()
    adam = torch.optim.Adam(comet.parameters(), 1e-5, foreach=True)

    def step(loss: Callable[[Noise], Tensor], noise: Noise) -> float:
        started = time.process_time()
        adam.zero_grad(set_to_none=True)
        loss(noise).backward()
        adam.step()
        return time.process_time() - started

    def ours(objective: Decomposition) -> Callable[[Noise], Tensor]:
        return lambda noise: objective.loss(comet, Batch(x, {}, noise)).value

    def hand(noise: Noise) -> Tensor:
        return by_hand(comet, x, noise, iterations)

    drawn = last_of(iterations)
    spent: dict[str, list[float]] = {name: [] for name in ("all, together", "loop by hand", "loop by hand, torch's SiLU")}
    each: dict[int, list[float]] = {end: [] for end in drawn}
    for turn in range(turns + 1):
        for end, number in drawn.items():
            each[end].append(step(ours(Decomposition(iterations)), Noise(0, range(ROWS), number)))
        noise = Noise(0, range(ROWS), turn)
        spent["all, together"].append(step(ours(Decomposition(iterations, iterates="all")), noise))
        spent["loop by hand"].append(step(hand, noise))
        with mock.patch("composable_energy_comet.conv.silu", F.silu):
            spent["loop by hand, torch's SiLU"].append(step(hand, noise))
    own = statistics.mean(statistics.median(times[1:]) for times in each.values())  # the first turn warms up
    others = {name: statistics.median(times[1:]) for name, times in spent.items()}
    return {"N": iterations, "one random": own, **others, **{f"{name}: times": seconds / own for name, seconds in others.items()}}


def agreement(iterations: int) -> float:
    """Returns how far the gradient of the loss by hand is from that of the package, relative to it, in double precision."""
    comet, x = model()
    comet, x, noise = comet.double(), x.double(), Noise(0, range(ROWS), 1)
    weights = list(comet.parameters())
    losses = Decomposition(iterations, iterates="all").loss(comet, Batch(x, {}, noise)).value, by_hand(comet, x, noise, iterations)
    own, other = (torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights, materialize_grads=True)]) for loss in losses)
    return float((own - other).norm() / own.norm())


def finding(turns: int) -> dict[str, float]:
    """Returns the seconds that 16 pictures take."""
    comet, x = model()
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
    """Returns by how many MB three steps of training raise the largest resident memory of this process, on Linux."""
    comet, x = model()
    adam, number = torch.optim.Adam(comet.parameters(), 1e-5), last_of(iterations)[iterations]
    before = _largest()
    for _ in range(3):
        adam.zero_grad(set_to_none=True)
        WAYS[way](iterations).loss(comet, Batch(x, {}, Noise(0, range(ROWS), number))).value.backward()
        adam.step()
    return _largest() - before


def _largest() -> float:
    """Returns the largest resident memory so far in MB; `getrusage` would count that of the process that started this one."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(told["VmHWM"].split()[0]) / 1024


def _memory_of_its_own(way: str, iterations: int) -> float:
    command = [sys.executable, __file__, "--memory", way, str(iterations)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=9, help="of which medians are taken")
    parser.add_argument("--write", action="store_true", help="write the figures into the repository")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if asked.memory:
        print(json.dumps(memory(asked.memory[0], int(asked.memory[1]))))
        return
    steps = [training(n, asked.turns) for n in STEPS]
    show("Seconds of a training step", steps)
    off = max(agreement(n) for n in STEPS)
    print(f"The gradient of the loop by hand is that of all iterates, to {off:.0e} of it.")
    found = finding(asked.turns)
    show("Seconds for 16 pictures", [found])
    used = [{"inner steps": n, **{way: _memory_of_its_own(way, n) for way in WAYS}} for n in DEPTHS]
    show("MB of training", used)
    if asked.write:
        told = about(size=SIZE, components=COMPONENTS, batch=ROWS, filters=FILTERS, turns=asked.turns)
        write(RESULTS / "speed.json", {"about": told, "steps": steps, "agreement": off, "16 pictures": found, "MB": used})


if __name__ == "__main__":
    main()
