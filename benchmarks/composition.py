"""What composition and compilation cost: `python -m benchmarks.composition [TABLE ...]`; writes `results/composition.json`.

Processor time on one thread, the least of several rounds in which all variants take turns, as a ratio to the first variant of each table.

1. Langevin loops with noise, over the bare gradient `autograd.grad(E(x).sum(), x)`: with the value and gradient compiled, with the whole
   step compiled (noise passed in), and by `sample`.
2. Gradients of K terms of one architecture, over a Python loop over their networks.
3. Gradients of a base with four heads on its features, over the base alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

import composable_energy as ce
from benchmarks.energies import Convolutions, Mixture, Perceptron, convolution_layers
from benchmarks.harness import RESULTS, environment, least_seconds, read_json, write_json
from composable_energy.sampling import compiled, energy_and_gradient, sample, twin
from composable_energy_mcmc import Langevin

PATH = RESULTS / "composition.json"
Ways = dict[str, Callable[[], object]]
STEP = 0.01


def bare(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns the gradient by `autograd.grad`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(energy(x).sum(), x)[0]


def ratios(ways: Ways, rounds: int = 40) -> dict[str, float]:
    """Returns the time of each variant over the first one's; the first one's time in microseconds is under `us`."""
    least = least_seconds(ways, rounds, seconds=0.005)
    first = next(iter(least.values()))
    return {"us": round(first * 1e6, 1), **{name: round(value / first, 3) for name, value in least.items()}}


def compiled_twin(energy: ce.Energy) -> ce.Energy:
    """Returns a compiled energy that compares its weights with those of the graph at the first call only."""
    return twin(compiled(energy))


def whole_step(energy: ce.Energy, points: Tensor) -> Callable[[], None]:
    """Returns a function that takes a Langevin step which is one compiled function; noise is drawn outside of it."""
    scale = math.sqrt(STEP)

    def step(x: Tensor, gradient: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x - STEP / 2 * gradient + scale * noise
        return x, *energy_and_gradient(energy, x)

    graph = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(points, points, points)
    options = {"freezing": True, "cpp.enable_loop_tail_vec": False}
    fast = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
    state = [points, bare(energy, points)]

    def run() -> None:
        state[0], _, state[1] = fast(state[0], state[1], torch.randn(points.shape))

    return run


def loops(energy: ce.Energy, shape: tuple[int, ...]) -> dict[str, float]:
    """Returns the times of Langevin steps on one energy over that of a bare gradient."""
    fast, scale = compiled_twin(energy), math.sqrt(STEP)
    points = sample(energy, shape, sampler=Langevin(STEP), steps=20, seed=0)

    def walk(gradient: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        x = points.clone()

        def step() -> None:
            x.add_(gradient(x), alpha=-STEP / 2).add_(torch.randn(shape), alpha=scale)

        return step

    def run(energy: ce.Energy, steps: int) -> Callable[[], object]:
        return lambda: sample(energy, shape, sampler=Langevin(STEP), init=points, steps=steps, seed=0)

    ways: Ways = {
        "gradient": lambda: bare(energy.forward, points),
        "eager loop": walk(lambda x: bare(energy.forward, x)),
        "compiled loop": walk(lambda x: energy_and_gradient(fast, x)[1]),
        "whole step compiled": whole_step(energy, points),
    }
    result = ratios(ways)
    few, many = 10, 10 + max(10, min(400, 2_000_000 // points.numel()))
    for name, which in (("sample", energy), ("sample compiled", compiled(energy))):  # the difference leaves out what a call costs
        ends = ratios({"gradient": ways["gradient"], "few": run(which, few), "many": run(which, many)}, rounds=5)
        result[name] = round((ends["many"] - ends["few"]) / (many - few), 3)
    return result


class Perceptrons(nn.Module):
    """The sum of K perceptrons of one architecture, by batched matrix products."""

    def __init__(self, nets: list[nn.Sequential]) -> None:
        super().__init__()
        self.weights = [torch.stack([net[i].weight.T for net in nets]).detach() for i in (0, 2, 4)]
        self.biases = [torch.stack([net[i].bias[None] for net in nets]).detach() for i in (0, 2, 4)]

    def forward(self, x: Tensor) -> Tensor:
        h = x.expand(len(self.weights[0]), *x.shape)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, F.silu(h) if i else h, weight)
        return h.squeeze(2).sum(0)


class GroupedConvolutions(nn.Module):
    """The sum of K convolutional networks of one architecture, by grouped convolutions."""

    def __init__(self, nets: list[nn.Sequential]) -> None:
        super().__init__()
        self.count = len(nets)
        self.layers = [
            (torch.cat([net[i].weight for net in nets]).detach(), torch.cat([net[i].bias for net in nets]).detach()) for i in (0, 2, 4)
        ]

    def forward(self, x: Tensor) -> Tensor:
        h = x.repeat(1, self.count, 1, 1)
        for weight, bias in self.layers:
            h = F.silu(F.conv2d(h, weight, bias, padding=1, groups=self.count))
        return h.mean((2, 3)).sum(1)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).sum(1)


def perceptron() -> nn.Sequential:
    """Returns a perceptron with layers 2-64-64-1."""
    return nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1), nn.Flatten(0))


def convolutional() -> nn.Sequential:
    """Returns a network of three convolutions."""
    return nn.Sequential(*convolution_layers(32), Mean())


def terms(make: Callable[[], nn.Sequential], group: Callable[[list[nn.Sequential]], nn.Module], count: int, x: Tensor) -> dict[str, float]:
    """Returns the times of several ways to evaluate the sum of K networks of one architecture."""
    nets = [make().eval().requires_grad_(False) for _ in range(count)]
    tree = ce.all_of(*(ce.as_energy(net) for net in nets)).eval()
    stacked, _ = stack_module_state(nets)
    stacked = {name: value.detach() for name, value in stacked.items()}
    grouped = group(nets).eval()

    def loop(x: Tensor) -> Tensor:
        return sum((net(x) for net in nets[1:]), nets[0](x))

    def mapped(x: Tensor) -> Tensor:
        return vmap(lambda state: functional_call(nets[0], state, (x,)))(stacked).sum(0)

    fast, fast_group = compiled_twin(tree), compiled_twin(ce.as_energy(grouped).eval())
    for other in (mapped, grouped):
        torch.testing.assert_close(bare(other, x), bare(loop, x), rtol=1e-3, atol=1e-5)
    for energy in (tree, fast, fast_group):
        torch.testing.assert_close(energy_and_gradient(energy, x)[1], bare(loop, x), rtol=1e-3, atol=1e-5)
    return ratios(
        {
            "loop": lambda: bare(loop, x),
            "tree": lambda: energy_and_gradient(tree, x),
            "vmap": lambda: bare(mapped, x),
            "grouped": lambda: bare(grouped, x),
            "tree compiled": lambda: energy_and_gradient(fast, x),
            "grouped compiled": lambda: energy_and_gradient(fast_group, x),
        },
    )


class OnFeatures(ce.Energy):
    """A base that reads features."""

    def __init__(self, features: nn.Module, out: nn.Module) -> None:
        super().__init__()
        self.features, self.out = features, out

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x)).squeeze(1) + x.square().flatten(1).sum(1) / 2


def heads(features: nn.Module, width: int, x: Tensor) -> dict[str, float]:
    """Returns the times of a base alone and with four heads on its features, shared or not."""

    def build(features: nn.Module) -> tuple[ce.Energy, ce.Energy]:
        base = OnFeatures(features, nn.Linear(width, 1))
        events = [ce.ClassifierEnergy(nn.Sequential(features, nn.Linear(width, 3)), 1, base) for _ in range(4)]
        return base.eval().requires_grad_(False), (events[0] & ~events[1] & (events[2] | events[3])).eval().requires_grad_(False)

    base, tree = build(ce.shared(features))
    _, apart = build(features)
    fast_base, fast = compiled_twin(base), compiled_twin(tree)
    result = ratios(
        {
            "base": lambda: bare(base, x),
            "base and 4 heads": lambda: energy_and_gradient(tree, x),
            "not shared": lambda: energy_and_gradient(apart, x),
        }
    )
    both = ratios({"base": lambda: energy_and_gradient(fast_base, x), "heads": lambda: energy_and_gradient(fast, x)})
    return {**result, "both compiled": both["heads"]}


def write_row(table: str, row: str, values: dict[str, float]) -> None:
    """Prints a row and writes it into the file of results."""
    print(f"{row:34}" + "  ".join(f"{name} {value:g}" for name, value in values.items()), flush=True)
    results = read_json(PATH) if PATH.exists() else {}
    results["about"] = environment()
    results.setdefault(table, {})[row] = values
    write_json(PATH, results)


Rows = Iterator[tuple[str, dict[str, float]]]


def all_loops() -> Rows:
    """Yields the rows of Langevin loops."""
    cases: dict[str, tuple[ce.Energy, tuple[int, ...]]] = {
        "mixture, 4096 points on a plane": (Mixture(), (4096, 2)),
        "mixture, 64 points on a plane": (Mixture(), (64, 2)),
        "convolutions, 16 images 3x32x32": (Convolutions(), (16, 3, 32, 32)),
        "perceptron, 64 latents of 64": (Perceptron(), (64, 64)),
    }
    for name, (energy, shape) in cases.items():
        yield name, loops(energy.eval().requires_grad_(False), shape)


def all_terms() -> Rows:
    """Yields the rows of terms of one architecture."""
    for count in (8, 2, 4):
        for n in (16, 64, 256, 4096):
            yield f"{count} perceptrons, {n} points", terms(perceptron, Perceptrons, count, torch.randn(n, 2))
        yield f"{count} convolutional, 16 images", terms(convolutional, GroupedConvolutions, count, torch.randn(16, 3, 32, 32))


def all_heads() -> Rows:
    """Yields the rows of heads on shared features."""
    wide = nn.Sequential(nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU())
    pooled = nn.Sequential(*convolutional()[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    yield "convolutions, 16 images 3x32x32", heads(pooled, 32, torch.randn(16, 3, 32, 32))
    yield "perceptron, 1024 latents of 64", heads(wide, 256, torch.randn(1024, 64))
    yield "perceptron, 64 latents of 64", heads(wide, 256, torch.randn(64, 64))


TABLES = {
    "loops": ("Langevin loops over the bare gradient", all_loops),
    "heads": ("a base with 4 heads over the base", all_heads),
    "terms": ("terms of one architecture over a loop", all_terms),
}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        for name in sys.argv[1:] or TABLES:
            title, rows = TABLES[name]
            print(f"\n{title}")
            for row, values in rows():
                write_row(name, row, values)


if __name__ == "__main__":
    main()
