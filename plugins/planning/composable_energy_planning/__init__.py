"""Trajectories as points of an energy: `dynamics & start(s0) & goal(g) & ~obstacle`, and planners that draw them."""

from composable_energy_planning.distances import Box, Disc
from composable_energy_planning.over_time import OverTime
from composable_energy_planning.parts import Parts, parts_of
from composable_energy_planning.planner import Planner, PlanWarning
from composable_energy_planning.refine import descend
from composable_energy_planning.sampler import Trajectories
from composable_energy_planning.search import Search
from composable_energy_planning.terms import Effort, Waypoint, effort, goal, start, via
from composable_energy_planning.transition import GaussianStep, TransitionEnergy
from composable_energy_planning.worlds import WORLDS, Arm, Car, Maze, World
from composable_energy_planning.zones import Entered, Gap, apart, box, disc, zone

__all__ = [
    "WORLDS",
    "Arm",
    "Box",
    "Car",
    "Disc",
    "Effort",
    "Entered",
    "Gap",
    "GaussianStep",
    "Maze",
    "OverTime",
    "Parts",
    "PlanWarning",
    "Planner",
    "Search",
    "Trajectories",
    "TransitionEnergy",
    "Waypoint",
    "World",
    "apart",
    "box",
    "descend",
    "disc",
    "effort",
    "goal",
    "parts_of",
    "start",
    "via",
    "zone",
]
