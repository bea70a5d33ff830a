"""Planning by energies in three worlds, beside other planners: `python -m benchmarks.planning --write`.

Random tasks whose shortest path on a grid exists and takes at most three quarters of the horizon at full speed, and which a reference
planner solves that knows the true map and the true dynamics. Such tasks are also drawn with an obstacle on that path, which no training
saw. A plan is followed by a controller that all planners share; success is to be within the tolerance of the goal at the end, with no
blocked move and no touch of the obstacle, also between states.

Settings were chosen on tasks of other seeds; the figures are of the seeds 10 and 11, which were first drawn for them.
"""

import itertools
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import RESULTS, ROOT, environment, kept, run_benchmark
from benchmarks.planning_tasks import ForwardModel, Grid, Solvable, Task, cross_entropy, grid_plan, reference_plan, succeeds
from composable_energy_planning import WORLDS, Planner, PlanWarning, TransitionEnergy, World, effort, goal, zone

PATH = RESULTS / "planning.json"
WEIGHTS = ROOT / ".benchmarks" / "planning"
MOTION = 200_000
SEED = 10
MARGINS = {"maze": 0.02, "arm": 0.02, "car": 0.04}  # of random motion; the car slips off its plan by .03 on the median
ANGLES = {"maze": (), "arm": (0, 1), "car": (2,)}
TRAINING = {"maze": 6000, "arm": 8000, "car": 8000}
EFFORTS = {"maze": 30.0, "arm": 10.0, "car": 30.0}
ZONES = {"maze": (0.015, 0.005), "arm": (0.015, 0.005), "car": (0.03, 0.01)}  # margin and width of the border of a later obstacle
WEIGHT = 3.0  # of the energy of moves, against the effort
METHODS = ("energies", "reference", "grid", "cem")
CHUNK = 25


def trained(world: World) -> TransitionEnergy:
    """Returns the energy of moves of a world, trained on random motion or read."""

    def fit(energy: TransitionEnergy) -> None:
        pairs, _, blocked = world.random_motion(MOTION, torch.Generator().manual_seed(0), MARGINS[world.name])
        energy.fit(pairs[~blocked], steps=TRAINING[world.name])

    return kept(WEIGHTS / f"{world.name}.pt", TransitionEnergy(len(world.low), ANGLES[world.name]), fit)


def forward_model(world: World) -> ForwardModel:
    """Returns the forward model of a world, trained on the same random motion with its actions and blocked moves, or read."""

    def fit(model: ForwardModel) -> None:
        model.fit(*world.random_motion(MOTION, torch.Generator().manual_seed(0), MARGINS[world.name])[:2])

    return kept(WEIGHTS / f"{world.name}-forward.pt", ForwardModel(world, ANGLES[world.name]), fit)


def expression(world: World, energy: ce.Energy, task: Task) -> ce.Energy:
    """Returns the expression of a task without its start: `dynamics & goal & effort & ~obstacle`."""
    margin, width = ZONES[world.name]
    dynamics = WEIGHT * ce.over_time(energy, world.horizon)
    cost = effort(EFFORTS[world.name], of=None if world.name == "arm" else world.position)
    task_energy = dynamics & goal(task.goal, 0.01, of=world.position) & cost
    return (
        task_energy
        if task.obstacle is None
        else task_energy & ~zone(task.obstacle, of=world.outline, margin=margin, width=width, between=4, name="obstacle")
    )


class Methods:
    """The planners of one world, each a function of a task and a seed that returns states and a count of evaluations."""

    def __init__(self, world: World) -> None:
        self.world, self.energy = world, trained(world)
        self.grid = Grid(world, None, 0.02)
        self.rows = rows = Counter[str]()
        for step in (self.energy.ahead, self.energy.behind):  # each energy of a move and each draw of a move passes one of these once
            step.network.register_forward_hook(lambda _module, _inputs, out: rows.update(passed=len(out)))

    @cached_property
    def model(self) -> ForwardModel:
        return forward_model(self.world)

    def plan(self, name: str, task: Task, seed: int) -> tuple[Tensor | None, int]:
        if name == "energies":
            self.rows.clear()
            return Planner(expression(self.world, self.energy, task), seed=seed).plan(task.start), self.rows["passed"]
        if name == "reference":
            return reference_plan(self.world, task)
        if name == "grid":
            return grid_plan(self.world, task, None if task.obstacle is not None else self.grid)
        model = self.model
        model.evaluations = 0
        return cross_entropy(self.world, model, task, seed), model.evaluations


def measure(methods: Methods, name: str, task: Task, seed: int) -> dict[str, Any]:
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlanWarning)  # the figures say so
        plan, evaluations = methods.plan(name, task, seed)
    seconds = time.process_time() - begin
    success = plan is not None and succeeds(methods.world, task, plan, seed)
    return {"success": success, "evaluations": evaluations, "seconds": round(seconds, 3)}


def run(args: Any) -> Iterator[dict[str, Any]]:
    """Yields the rows after each chunk, so that an early end leaves as many tasks in each."""
    torch.manual_seed(0)
    shutil.rmtree(WEIGHTS, ignore_errors=True)
    methods = {name: Methods(WORLDS[name]()) for name in args.worlds}
    tasks = {(name, later): Solvable(methods[name].world, SEED + later, later) for name in args.worlds for later in (False, True)}
    results: dict[str, list[dict[str, Any]]] = {}
    for most in range(CHUNK, args.tasks + CHUNK, CHUNK):
        for (world, later), name in itertools.product(tasks, args.methods):
            key = f"{world}/{'later' if later else 'known'}/{name}"
            rows, count = results.setdefault(key, []), min(most, args.tasks if name == "energies" else args.others)
            for index, task in list(enumerate(tasks[world, later].first(count)))[len(rows) :]:
                rows.append(measure(methods[world], name, task, index))
            print(key, len(rows), sum(row["success"] for row in rows) / len(rows), flush=True)
        columns = {name: {key: [row[key] for row in table] for key in table[0]} for name, table in results.items()}
        yield {**environment(motion=MOTION), "rows": columns}


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run, tasks=200, others=50, worlds=list(WORLDS), methods=list(METHODS))
