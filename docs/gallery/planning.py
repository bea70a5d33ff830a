"""Draws docs/img/planning.png and docs/img/planning.gif from the trained energies.

The picture shows plans of several tries for one task of each world, without and with an
obstacle that no training saw. The animation is a point in the maze that plans anew
when an obstacle appears on its way. Run `python -m benchmarks.planning --write` before.
"""

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.planning import expression, trained  # noqa: E402
from benchmarks.planning_tasks import Task, draw_tasks  # noqa: E402
from composable_energy_planning import WORLDS, Arm, Box, Car, Disc, Maze, Planner, World  # noqa: E402

SIZE, SCALE = 320, 2  # drawn larger, then reduced
INK, WALL, LATER, GOAL = (40, 60, 110), (120, 120, 120), (210, 90, 60), (30, 140, 70)
COLORS = ((40, 80, 190), (100, 150, 220), (150, 190, 230), (190, 210, 235))


class Canvas:
    """A picture of the square from -1 to 1."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), "white")
        self.draw = ImageDraw.Draw(self.image)

    def at(self, point: Tensor) -> tuple[float, float]:
        x, y = point.tolist()
        return (x + 1.03) / 2.06 * SIZE * SCALE, (1.03 - y) / 2.06 * SIZE * SCALE

    def shape(self, shape: Box | Disc, color: tuple[int, int, int]) -> None:
        extent = (
            shape.extent if isinstance(shape, Box) else torch.full((2,), shape.radius)
        )
        (left, bottom), (right, top) = (
            self.at(shape.center - extent),
            self.at(shape.center + extent),
        )
        (self.draw.rectangle if isinstance(shape, Box) else self.draw.ellipse)(
            [left, top, right, bottom], fill=color
        )

    def line(self, points: Tensor, color: tuple[int, int, int], width: int = 5) -> None:
        self.draw.line(
            [self.at(point) for point in points], fill=color, width=width, joint="curve"
        )

    def dot(self, point: Tensor, color: tuple[int, int, int], radius: int = 10) -> None:
        x, y = self.at(point)
        self.draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)

    def done(self) -> Image.Image:
        self.draw.rectangle(
            [0, 0, SIZE * SCALE - 1, SIZE * SCALE - 1], outline=WALL, width=3
        )
        return self.image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def scene(world: World, task: Task) -> Canvas:
    """Returns the obstacles and the goal of a task."""
    canvas, shapes = Canvas(), ()
    if isinstance(world, Maze):
        shapes = world.walls
    elif isinstance(world, Arm):
        shapes = world.discs
    elif isinstance(world, Car):
        shapes = world.blocks
    for shape in shapes:
        canvas.shape(shape, WALL)
    if task.obstacle is not None:
        canvas.shape(task.obstacle, LATER)
    canvas.dot(task.goal, GOAL, 12)
    return canvas


def panel(world: World, energy: Any, task: Task) -> Image.Image:
    """Returns a picture of the plans of a task, the best one darkest."""
    canvas = scene(world, task)
    plans, _ = Planner(expression(world, energy, task)).candidates(task.start)
    for plan, color in reversed(list(zip(plans, COLORS, strict=False))):
        canvas.line(world.position(plan), color, 4 if color != COLORS[0] else 7)
    if isinstance(world, Arm):
        for state in plans[0][:: (len(plans[0]) - 1) // 4]:
            canvas.line(
                torch.cat([torch.zeros(1, 2), world.outline(state[None])[0]]), INK, 3
            )
    canvas.dot(world.position(task.start[None])[0], INK, 10)
    return canvas.done()


def picture() -> Image.Image:
    """Returns the three worlds, above without and below with the later obstacle."""
    whole = Image.new("RGB", (3 * SIZE + 40, 2 * SIZE + 30), "white")
    for column, make in enumerate(WORLDS.values()):
        world = make()
        energy = trained(world)
        task = next(islice(draw_tasks(world, 1003, later=True), column, None))
        for row, shown in enumerate((Task(task.start, task.goal), task)):
            whole.paste(
                panel(world, energy, shown),
                (10 + column * (SIZE + 10), 10 + row * (SIZE + 10)),
            )
    return whole


def animation() -> list[Image.Image]:
    """Returns the frames of a point that plans anew when it sees an obstacle."""
    world = Maze()
    energy = trained(world)
    known = next(islice(draw_tasks(world, 1005, later=True), 1, None))
    known = Task(known.start, known.goal)
    planner = Planner(expression(world, energy, known))
    plan, trail, frames = planner.plan(known.start), [known.start], []
    task = Task(known.start, known.goal, Disc(plan[30], 0.1))
    for time in range(1, world.horizon):
        actions = world.towards(trail[-1][None], plan[1][None])
        trail.append(world.step(trail[-1][None], actions)[0][0])
        if time == 8:
            planner.change(expression(world, energy, task))
        plan = planner.step(trail[-1])
        canvas = scene(world, known if time < 8 else task)
        canvas.line(plan, COLORS[1], 4)
        canvas.line(torch.stack(trail), INK, 6)
        canvas.dot(trail[-1], LATER, 12)
        frames.append(canvas.done().quantize(32))
    return frames


def main() -> None:
    """Writes both files."""
    torch.set_num_threads(1)
    folder = ROOT / "docs" / "img"
    picture().quantize(64).save(folder / "planning.png", optimize=True)
    frames = animation()
    frames[0].save(
        folder / "planning.gif",
        save_all=True,
        append_images=[*frames[1:], *[frames[-1]] * 6],
        duration=160,
        loop=0,
        optimize=True,
    )


if __name__ == "__main__":
    main()
