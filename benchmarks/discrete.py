"""The samplers of discrete points: their speed beside other libraries, evaluations, and accuracy: `python -m benchmarks.discrete --write`.

- `speed`: effective draws a second of the critical Ising model of 24 x 24 sites, beside THRML and ebmkit where they are installed (`make
  bench-peers`). All start at random spins and take the same burn-in, except ebmkit, which would take hours: it starts at our draws after
  it. The libraries take turns of a part each. Processor time on one thread, by the
  median of the parts: compilation is not counted.
- `evaluations`: points at which a plain function was evaluated for an effective draw of its energy. A gradient counts as two.
- `accuracy`: the largest deviation from enumeration in standard errors, of 20,000 chains, and the one that exact draws exceed once in a
  hundred times.
"""

import importlib.util
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

import composable_energy as ce
from benchmarks.energies import effective
from benchmarks.harness import RESULTS, environment, read_json, run_benchmark
from benchmarks.peers import lattice_samplers
from benchmarks.quality import one_processor
from composable_energy_discrete import BoltzmannMachine, Gibbs, Ising, Mixed, Potts

PATH = RESULTS / "discrete.json"
SIZE, CRITICAL = 24, math.log(1 + math.sqrt(2)) / 2
SWEEPS, EVERY, BURN_IN = 1000, 5, 3  # of a part, between two draws, and parts that are discarded
SLOW = {"sweeps": 1, "draws": 4}  # of a part of ebmkit
GROUPS = 8  # of chains, for the errors of times
DRAWS = 20_000
Row = dict[str, Any]


def ours(chains: int) -> Iterator[lattice_samplers.Part]:
    options, magnet = {"compile": True, "trace": 1}, Ising((SIZE, SIZE), CRITICAL)
    _, trace = magnet.sample(chains, sampler=Gibbs(sweeps=EVERY), steps=1, seed=0, **options)
    while True:
        began = time.process_time()
        _, trace = magnet.sample(chains, steps=SWEEPS // EVERY, resume=trace, **options)
        yield trace.points, time.process_time() - began, SWEEPS


def numbers(points: Tensor) -> Tensor:
    """Returns the energy and |magnetization| of a site, with shape (draws, chains, 2)."""
    magnet, flat = Ising((SIZE, SIZE), CRITICAL), points.flatten(0, 1)
    found = torch.stack([magnet(flat) / SIZE**2, (2 * flat - 1).mean((1, 2)).abs()], 1)
    return found.view(*points.shape[:2], 2).double()


def figures(draws: Tensor, seconds: float, sweeps: float) -> Row:
    """Returns times, and effective draws a second; chains in groups give standard errors."""
    chains, row = draws.shape[1], {"microseconds": 1e6 * seconds / sweeps / draws.shape[1]}
    for number, name in enumerate(("energy", "magnetization")):
        own = draws[..., [number]]
        times = torch.stack([sweeps * some.shape[1] / effective(some)[0] for some in own.chunk(GROUPS, 1)])
        means, size = own.mean((0, 1)), float(effective(own)[0])
        error = own.mean(0).std(0) / math.sqrt(chains)
        row |= {f"{name}_mean": [float(means), float(error)], f"{name}_per_second": size / seconds}
        row |= {f"{name}_sweeps": [sweeps * chains / size, float(times.std(0)) / math.sqrt(GROUPS)]}
    return rounded(row)


def rounded(row: Row) -> Row:
    return {key: [float(f"{v:.4g}") for v in value] if isinstance(value, list) else float(f"{value:.4g}") for key, value in row.items()}


def speed(args: Any) -> list[Row]:
    found: list[Row] = []
    for chains in args.chains:
        runs: dict[str, Iterator[lattice_samplers.Part]] = {"composable-energy": ours(chains)}
        if importlib.util.find_spec("thrml"):
            runs["thrml"] = lattice_samplers.thrml(SIZE, CRITICAL, chains, SWEEPS, EVERY)
        last = [[next(run)[0][-1] for run in runs.values()] for _ in range(BURN_IN)][-1]
        if importlib.util.find_spec("ebm"):
            runs["ebmkit"] = lattice_samplers.ebmkit(CRITICAL, last[0].clone(), **SLOW)
        parts: dict[str, list[Any]] = {name: [] for name in runs}
        for name in args.rounds * list(runs):
            points, seconds, sweeps = next(runs[name])
            parts[name].append((numbers(points), seconds, sweeps))
        for name in ("composable-energy", "thrml", "ebmkit"):
            draws, seconds, sweeps = zip(*parts[name], strict=True) if name in parts else ((), (), ())
            row = figures(torch.cat(draws), len(seconds) * statistics.median(seconds), sum(sweeps)) if draws else {"error": "not installed"}
            found.append({"library": name, "chains": chains, **row})
            print(found[-1], flush=True)
    return found


def counted(energy: ce.Energy) -> tuple[ce.Energy, Tensor]:
    """Returns an energy as a function without known structure, and the number of its evaluations so far."""
    count = torch.zeros((), dtype=torch.int64)

    def function(x: Tensor) -> Tensor:
        count.add_(len(x) * (2 if x.requires_grad else 1))
        return energy(x)

    return ce.as_energy(function, event_shape=tuple(energy.event_shape or ()), support=constraints.boolean), count


def evaluations(_: Any) -> list[Row]:
    found, steps = [], {"gibbs": 400, "gibbs-with-gradients": 10_000, "discrete-langevin": 10_000}
    for coupling, (sampler, count) in itertools.product((0.3, CRITICAL), steps.items()):
        energy, spent = counted(Ising((8, 8), coupling).eval())
        _, trace = energy.sample(64, sampler=sampler, steps=count // 4, seed=0, trace=True)
        before = int(spent)
        _, trace = energy.sample(64, resume=trace, steps=count, trace=True)
        draws = trace.energies.double()[..., None]
        size, groups = float(effective(draws)[0]), [float(effective(some)[0]) for some in draws.chunk(GROUPS, 1)]
        each = [(int(spent) - before) / size, (int(spent) - before) / size * float(torch.tensor(groups).std()) / sum(groups) * GROUPS**0.5]
        found.append({"coupling": round(coupling, 4), "sampler": sampler, **rounded({"evaluations": each, "effective": size})})
        print(found[-1], flush=True)
    return found


def products(values: Tensor, sites: int) -> Tensor:
    """Returns all combinations of values at sites, with shape (states, sites, *)."""
    return values[torch.cartesian_prod(*[torch.arange(len(values))] * sites)]


def models() -> dict[str, tuple[ce.Energy, Tensor]]:
    """Returns small energies of discrete points and all their states."""
    bits, (a, b) = torch.tensor([0.0, 1.0]), (ce.as_energy(td.Bernoulli(torch.tensor(p))) for p in ((0.2, 0.7, 0.5), (0.9, 0.8, 0.1)))
    machine = BoltzmannMachine(8, 4).requires_grad_(False)
    torch.nn.init.normal_(machine.weight, generator=torch.Generator().manual_seed(0))
    return {
        "Ising, 3 x 3": (Ising((3, 3), 0.2, 0.1), products(bits, 9).view(-1, 3, 3)),
        "Potts, 2 x 2, 3 states": (Potts((2, 2), 3, 0.5, torch.tensor([0.3, 0.0, -0.2])), products(torch.eye(3), 4).view(-1, 2, 2, 3)),
        "Boltzmann machine, 8": (machine, products(bits, 8)),
        "A & ~B": (a & ~b, products(bits, 3)),
        "A | B": (a | b, products(bits, 3)),
    }


def deviations(drawn: Tensor, states: Tensor, expected: Tensor, least: float = 100.0) -> Tensor:
    """Returns the errors of the shares of states in standard errors; states with few expected draws are one."""
    place = {tuple(state): number for number, state in enumerate(states.flatten(1).tolist())}
    counts = torch.bincount(torch.tensor([place[tuple(x)] for x in drawn.flatten(1).tolist()]), minlength=len(states)).double()
    rare = expected * len(drawn) < least
    found, wanted = (torch.cat([some[~rare], some[rare].sum()[None]]) for some in (counts / len(drawn), expected))
    known = wanted * len(drawn) >= least
    return ((found - wanted) / (wanted * (1 - wanted) / len(drawn)).sqrt())[known]


def mixed_deviations(drawn: Mapping[str, Tensor], means: Callable[[Tensor], Tensor], shares: Tensor) -> Tensor:
    """Returns the errors of the shares of z, and of the means and variances of x given z, in standard errors."""
    states = products(torch.tensor([0.0, 1.0]), len(shares))
    expected = torch.where(states == 1, shares, 1 - shares).prod(1).double()
    found = [deviations(drawn["z"], states, expected)]
    for state in states:
        x = drawn["x"][(drawn["z"] == state).all(1), 0].double() - means(state[None])
        found.append(torch.stack([x.mean() * len(x) ** 0.5, (x.square().mean() - 1) * (len(x) / 2) ** 0.5]))
    return torch.cat(found)


def accuracy(_: Any) -> list[Row]:
    found = []
    steps = {"enumeration": 1, "gibbs": 40, "gibbs-with-gradients": 400, "discrete-langevin": 400}

    def report(model: str, sampler: str, errors: Tensor) -> None:
        chance = td.Normal(0.0, 1.0).icdf(torch.tensor(1 - (1 - 0.99 ** (1 / len(errors))) / 2, dtype=torch.float64))
        largest = rounded({"deviation": float(errors.abs().max()), "chance": float(chance)})
        found.append({"model": model, "sampler": sampler, **largest, "numbers": len(errors)})
        print(found[-1], flush=True)

    for name, (energy, states) in models().items():
        expected = torch.softmax(-energy(states).double(), 0)
        for sampler, count in steps.items():
            drawn = energy.sample(DRAWS, sampler=sampler, steps=count, seed=0)
            report(name, sampler, deviations(drawn, states, expected))
    shares = torch.tensor([0.3, 0.6])
    joint = ce.as_energy(td.Bernoulli(shares)).over("z") & ce.as_energy(
        lambda z, x: (x - 2 * z.sum(1, keepdim=True)).square().sum(1) / 2, variables={"z": (2,), "x": (1,)}
    )
    for sampler, most in (("mixed", 64), ("mixed, in turn", 0)):
        drawn = joint.sample(DRAWS, sampler=Mixed(most=most), steps=60, seed=0)
        report("labels and a mean", sampler, mixed_deviations(drawn, lambda z: 2 * z.sum(1).double(), shares))
    return found


def run(args: Any) -> Iterator[dict[str, Any]]:
    one_processor()
    results = read_json(PATH) if PATH.exists() else {}
    sweeps = {"composable-energy": args.rounds * SWEEPS, "thrml": args.rounds * SWEEPS, "ebmkit": args.rounds * SLOW["sweeps"]}
    for name, measure in {"speed": speed, "evaluations": evaluations, "accuracy": accuracy}.items():
        if name in args.only:
            results |= {**environment("thrml", "jax", "ebmkit", size=SIZE, sweeps=sweeps, draws=DRAWS), name: measure(args)}
            yield results


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run, only=("speed", "evaluations", "accuracy"), chains=[64, 256], rounds=15)
