"""Draws and plans: closed forms of bridges, zones that plans keep out of, and the training of transitions."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

import composable_energy as ce
import composable_energy_planning as planning
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy_planning import Planner, TransitionEnergy, parts_of

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

HORIZON = 12


@cache
def walk(size: int = 2) -> TransitionEnergy:
    """Moves whose increments are symmetric and independent of the state, in closed form: all networks return 0."""
    energy = TransitionEnergy(size, kept=512).eval()
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.zero_()
        energy.visited.copy_(6 * torch.rand(512, size, generator=torch.Generator().manual_seed(0)) - 3)
        for step in (energy.ahead, energy.behind):
            step.unit.fill_(0.3)
    return energy


def bridge(*terms: ce.Energy) -> ce.Energy:
    expression = ce.over_time(walk(), HORIZON) & planning.goal([1.5, 0.0], 0.05)
    for term in terms:
        expression = expression & term
    return expression


def distance_along(plan: Tensor, center: tuple[float, float]) -> float:
    shares = torch.linspace(0, 1, 20)[:, None, None]
    points = (plan[:-1] + shares * plan.diff(dim=0)).flatten(0, 1)
    return float((points - torch.tensor(center)).norm(dim=1).min())


@pytest.mark.full
def test_a_bridge_of_equal_increments_has_a_straight_mean():
    expression = bridge(planning.start([-1.5, 1.0], 0.05))
    draws = expression.sample(256, seed=0, steps=30)
    share = torch.linspace(0, 1, HORIZON)[:, None]
    expected = (1 - share) * torch.tensor([-1.5, 1.0]) + share * torch.tensor([1.5, 0.0])
    error = draws.std(0) / 256**0.5
    assert ((draws.mean(0) - expected).abs() < 5 * 2 * error).all()  # pilots are 64, so draws are worth less than independent ones


@pytest.mark.slow
def test_a_plan_goes_around_a_zone():
    wet = planning.disc((0.0, 0.5), 0.4, margin=0.05)
    assert distance_along(Planner(bridge(planning.effort(10.0))).plan([-1.5, 1.0]), (0.0, 0.5)) < 0.4
    assert distance_along(Planner(bridge(planning.effort(10.0), ~wet)).plan([-1.5, 1.0]), (0.0, 0.5)) > 0.4


@pytest.mark.full
def test_a_warm_start_continues_and_a_new_obstacle_changes_the_plan():
    planner = Planner(bridge(planning.effort(10.0)))
    plan = planner.plan([-1.5, 1.0])
    calls = planner.calls
    rest = planner.step(plan[1])
    assert planner.calls == calls and rest.shape == (HORIZON - 1, 2)
    assert (rest[0] - plan[1]).norm() < 0.05
    planner.change(bridge(planning.effort(10.0), ~planning.disc((0.0, 0.5), 0.4, margin=0.1)))
    assert distance_along(planner.step(rest[1]), (0.0, 0.5)) > 0.4
    assert planner.last is not None and planner.last.shape == (HORIZON, 2)


@pytest.mark.full
def test_the_goal_comes_nearer_and_is_reached_on_time_in_spite_of_disturbances():
    generator = torch.Generator().manual_seed(0)
    planner = Planner(bridge(planning.effort(10.0)))
    rest = planner.plan([-1.5, 1.0])
    for left in range(HORIZON - 1, 0, -1):
        rest = planner.step(rest[1] + 0.03 * torch.randn(2, generator=generator))
        assert len(rest) == left
    assert (rest[-1] - torch.tensor([1.5, 0.0])).norm() < 0.25
    with pytest.raises(OptionError, match="over"):
        planner.step([1.5, 0.0])


@pytest.mark.full
def test_a_zone_that_was_passed_still_counts_after_a_new_search():
    shop, wet = planning.disc((-1.0, 0.2), 0.4), planning.disc((1.0, 0.1), 0.25, margin=0.05)
    planner = Planner(bridge(planning.effort(10.0), shop))
    rest = planner.plan([-1.5, 1.0])
    for _ in range(HORIZON // 2):
        rest = planner.step(rest[1])
    planner.change(bridge(planning.effort(10.0), shop, ~wet))
    rest = planner.step(rest[1])
    assert planner.last is not None and distance_along(planner.last, (-1.0, 0.2)) < 0.45
    assert distance_along(rest, (-1.0, 0.2)) > 0.45
    assert distance_along(rest, (1.0, 0.1)) > 0.25


@pytest.mark.slow
def test_angles_turn_the_short_way():
    energy = walk(1)
    turning = TransitionEnergy(1, angles=(0,), kept=512).eval()
    with torch.no_grad():
        for parameter in turning.parameters():
            parameter.zero_()
        turning.visited.copy_(energy.visited * torch.pi / 3)
        for step in (turning.ahead, turning.behind):
            step.unit.fill_(0.3)

    def heading(states: Tensor) -> Tensor:
        return torch.cat([states.cos(), states.sin()], 1)

    task = ce.over_time(turning, HORIZON) & planning.goal([-0.96, -0.28], 0.05, of=heading) & planning.effort(10.0)
    plan = Planner(task).plan([2.8])
    assert 0.3 < (plan[-1] - plan[0]).item() < 1.0  # from 2.8 over pi, not back through 0


@pytest.mark.slow
def test_a_task_that_no_plan_fulfils_warns():
    wet = planning.disc((1.5, 0.0), 0.5)
    with pytest.warns(planning.PlanWarning, match="None of 1 searches"):
        Planner(bridge(~wet), retries=0).plan([-1.5, 1.0])


@pytest.mark.full
def test_two_agents_keep_apart():
    lifted = [ce.over_time(walk(), HORIZON, axes=axes, size=4) for axes in ((0, 1), (2, 3))]
    task = lifted[0] & lifted[1] & planning.goal([1.5, 0.0, -1.5, 0.0], 0.05) & planning.apart((0, 1), (2, 3), 0.5) & planning.effort(10.0)
    plan = Planner(task, search=planning.Search(tree=1200)).plan([-1.5, 0.0, 1.5, 0.0])
    assert (plan[:, :2] - plan[:, 2:]).norm(dim=1).min() > 0.45


@pytest.mark.full
def test_training_finds_the_density_of_moves_and_a_wall():
    generator = torch.Generator().manual_seed(0)
    states = 2 * torch.rand(40_000, 1, generator=generator) - 1
    ends = states + 0.1 * torch.randn(40_000, 1, generator=generator)
    free = (ends.abs() < 1).squeeze(1)  # walls at -1 and 1
    energy = TransitionEnergy(1, kept=64).fit(torch.stack([states, ends], 1)[free], steps=600)
    steps = torch.tensor([0.0, 0.1, 0.15])
    pairs = torch.stack([torch.zeros(3), steps], 1)[..., None]
    differences = energy(pairs) - energy(pairs[:1])
    assert ((differences - (steps / 0.1) ** 2 / 2).abs() < 0.4).all()
    wall = torch.tensor([[[0.97], [1.07]], [[0.0], [0.1]]])
    assert energy(wall).diff().item() < -2


def test_expressions_that_cannot_be_searched_are_refused():
    with pytest.raises(ExpressionError, match="chees"):
        (ce.over_time(walk(), 5)).sample(2, seed=0)
    with pytest.raises(ExpressionError, match="chees"):
        parts_of(planning.start([0.0]) & planning.goal([1.0]))
    with pytest.raises(OptionError, match="start already"):
        Planner(bridge(planning.start([0.0, 0.0]))).plan([0.0, 0.0])
    with pytest.raises(ShapeError, match="trajectories"):
        Planner(bridge()).change(ce.over_time(walk(), 5) & planning.goal([0.0, 0.0]))
    with pytest.raises(ShapeError, match="Pairs"):
        TransitionEnergy(2).fit(torch.zeros(5, 2, 3))
    with pytest.raises(OptionError, match="angles"):
        TransitionEnergy(2, angles=(2,))
