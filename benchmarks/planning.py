"""Planning by energies in three worlds, beside other planners: `python -m benchmarks.planning --write`.

Random tasks whose shortest path on a grid exists and takes at most three quarters of the horizon at full speed, and which a reference
planner solves that knows the true map and the true dynamics. Such tasks are also drawn with an obstacle on that path, which no training
saw. A plan is followed by a controller that all planners share; success is to be within the tolerance of the goal at the end, with no
blocked move and no touch of the obstacle, also between states.

Settings were chosen on tasks of other seeds; the figures are of the seeds 10 and 11, which were first drawn for them. `--resume` goes on
where an earlier run with `--write` ended.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import RESULTS, ROOT, environment, read_json, read_options, write_json
from benchmarks.planning_baselines import ForwardModel, Solvable, cross_entropy, grid_plan, reference_plan
from benchmarks.planning_tasks import Grid, Task, succeeds
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
    energy = TransitionEnergy(len(world.low), ANGLES[world.name])
    return _kept(WEIGHTS / f"{world.name}.safetensors", energy, lambda: _fit_energy(world, energy))


def forward_model(world: World) -> ForwardModel:
    """Returns the forward model of a world, trained on the same random motion with its actions and blocked moves, or read."""
    model = ForwardModel(world, ANGLES[world.name])
    return _kept(WEIGHTS / f"{world.name}-forward.safetensors", model, lambda: _fit_forward(world, model))


def _fit_energy(world: World, energy: TransitionEnergy) -> None:
    pairs, _, blocked = world.random_motion(MOTION, torch.Generator().manual_seed(0), MARGINS[world.name])
    energy.fit(pairs[~blocked], steps=TRAINING[world.name])


def _fit_forward(world: World, model: ForwardModel) -> None:
    pairs, actions, _ = world.random_motion(MOTION, torch.Generator().manual_seed(0), MARGINS[world.name])
    model.fit(pairs, actions)


def _kept(path: Path, module: Any, fit: Callable[[], None]) -> Any:
    if path.exists():
        module.load_state_dict(load_file(path))
        return module.eval()
    begin = time.process_time()
    fit()
    print(f"{path.stem}: trained in {time.process_time() - begin:.0f} s", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path)
    return module.eval()


def expression(world: World, energy: ce.Energy, task: Task) -> ce.Energy:
    """Returns the expression of a task without its start: `dynamics & goal & effort & ~obstacle`."""
    margin, width = ZONES[world.name]
    where: dict[str, Any] = {"of": world.position} if world.name == "arm" else {"axes": (0, 1)}
    dynamics = WEIGHT * ce.over_time(energy, world.horizon)
    task_energy = dynamics & goal(task.goal, 0.01, **where) & effort(EFFORTS[world.name], axes=(0, 1))
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
        self.rows = 0
        for step in (self.energy.ahead, self.energy.behind):  # each energy of a move and each draw of a move passes one of these once
            step.network.register_forward_hook(lambda _module, _inputs, out: self._count(len(out)))

    def _count(self, rows: int) -> None:
        self.rows += rows

    @cached_property
    def model(self) -> ForwardModel:
        return forward_model(self.world)

    def plan(self, name: str, task: Task, seed: int) -> tuple[Tensor | None, int]:
        if name == "energies":
            self.rows = 0
            return Planner(expression(self.world, self.energy, task), seed=seed).plan(task.start), self.rows
        if name == "reference":
            return reference_plan(self.world, task)
        if name == "grid":
            return grid_plan(self.world, task, None if task.obstacle is not None else self.grid)
        model = self.model
        model.evaluations = 0
        return cross_entropy(self.world, model, task, seed), model.evaluations


def measure(methods: Methods, name: str, task: Task, seed: int) -> dict[str, Any]:
    """Returns the figures of one plan."""
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlanWarning)  # the figures say so
        plan, evaluations = methods.plan(name, task, seed)
    seconds = time.process_time() - begin
    success = plan is not None and succeeds(methods.world, task, plan, seed)
    return {"success": success, "evaluations": evaluations, "seconds": round(seconds, 3)}


def run(results: dict[str, Any], args: Any) -> None:
    """Measures all rows in parts, so that an early end leaves as many tasks in each."""
    methods = {name: Methods(WORLDS[name]()) for name in args.worlds}
    tasks = {
        (name, later): Solvable(methods[name].world, SEED + later, later, results["solvable"].setdefault(_key(name, later), []))
        for name in args.worlds
        for later in (False, True)
    }
    for most in range(CHUNK, args.tasks + 1, CHUNK):
        for (world, later), solvable in tasks.items():
            for name in args.methods:
                rows = results["rows"].setdefault(f"{_key(world, later)}/{name}", [])
                count = min(most, args.tasks if name == "energies" else args.others)
                begin = len(rows)
                rows += [measure(methods[world], name, solvable.first(count)[index], index) for index in range(begin, count)]
                if len(rows) > begin:
                    print(world, later, name, len(rows), _mean(rows, "success"), round(_mean(rows, "seconds"), 2), flush=True)
                    if args.write:
                        _write(results)


def _key(world: str, later: bool) -> str:
    return f"{world}/{'later' if later else 'known'}"


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return sum(float(row[key]) for row in rows) / max(1, len(rows))


def _read() -> dict[str, Any]:
    """Returns the results of an earlier run."""
    kept = read_json(PATH)
    rows = {name: [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)] for name, table in kept["rows"].items()}
    return {"rows": rows, "solvable": kept["solvable"]}


def _write(results: dict[str, Any]) -> None:
    """Writes the results, the rows of each planner as columns."""
    about = environment(
        motion=MOTION, settings={"training steps": TRAINING, "efforts": EFFORTS, "weight of dynamics": WEIGHT, "margins": MARGINS}
    )
    rows = {name: {key: [row[key] for row in table] for key in table[0]} for name, table in results["rows"].items() if table}
    write_json(PATH, {**about, "command": "python -m benchmarks.planning --write", "rows": rows, "solvable": results["solvable"]})


def main() -> None:
    args = read_options(__doc__, PATH, tasks=200, others=50, worlds=list(WORLDS), methods=list(METHODS), resume=False)
    torch.manual_seed(0)
    results: dict[str, Any] = _read() if args.resume and PATH.exists() else {"rows": {}, "solvable": {}}
    if not args.resume:
        shutil.rmtree(WEIGHTS, ignore_errors=True)
    run(results, args)


if __name__ == "__main__":
    main()
