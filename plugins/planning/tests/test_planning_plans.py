"""Draws and plans: closed forms of bridges, zones that plans keep out of, and the training of transitions."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import composable_energy as ce
import composable_energy_planning as planning
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.testing import check_energy
from composable_energy_planning import WORLDS, Car, Planner, TransitionEnergy, parts_of
from tests.refusals import refusals, refused

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

HORIZON = 12


@cache
def walk(size: int = 2, angles: tuple[int, ...] = ()) -> TransitionEnergy:
    """Moves whose increments are symmetric and independent of the state, in closed form: all networks return 0."""
    energy = TransitionEnergy(size, angles, kept=512).eval()
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.zero_()
        energy.visited.copy_(6 * torch.rand(512, size, generator=torch.Generator().manual_seed(0)) - 3)
        for step in (energy.ahead, energy.behind):
            step.unit.fill_(0.3)
    return energy


def bridge(*terms: ce.Energy) -> ce.Energy:
    return ce.all_of(ce.over_time(walk(), HORIZON), planning.goal([1.5, 0.0], 0.05), *terms)


def distance_along(plan: Tensor, center: tuple[float, float]) -> float:
    points = (plan[:-1] + torch.linspace(0, 1, 20)[:, None, None] * plan.diff(dim=0)).flatten(0, 1)
    return float((points - torch.tensor(center)).norm(dim=1).min())


@pytest.mark.full
def test_a_bridge_of_equal_increments_has_a_straight_mean():
    draws = bridge(planning.start([-1.5, 1.0], 0.05)).sample(256, seed=0, steps=30)
    share = torch.linspace(0, 1, HORIZON)[:, None]
    expected = (1 - share) * torch.tensor([-1.5, 1.0]) + share * torch.tensor([1.5, 0.0])
    assert ((draws.mean(0) - expected).abs() < 5 * 2 * draws.std(0) / 256**0.5).all()  # with 64 pilots, draws are not independent


@pytest.mark.slow
def test_a_plan_goes_around_a_zone():
    wet = planning.disc((0.0, 0.5), 0.4, margin=0.05)
    assert distance_along(Planner(bridge(planning.effort(10.0))).plan([-1.5, 1.0]), (0.0, 0.5)) < 0.4
    assert distance_along(Planner(bridge(planning.effort(10.0), ~wet)).plan([-1.5, 1.0]), (0.0, 0.5)) > 0.4


@pytest.mark.full
def test_a_warm_start_continues_and_a_new_obstacle_changes_the_plan():
    planner = Planner(bridge(planning.effort(10.0)))
    plan, calls = planner.plan([-1.5, 1.0]), planner.calls
    rest = planner.step(plan[1])
    assert planner.calls == calls and rest.shape == (HORIZON - 1, 2) and (rest[0] - plan[1]).norm() < 0.05
    planner.change(bridge(planning.effort(10.0), ~planning.disc((0.0, 0.5), 0.4, margin=0.1)))
    assert distance_along(planner.step(rest[1]), (0.0, 0.5)) > 0.4 and planner.last is not None and planner.last.shape == (HORIZON, 2)


@pytest.mark.full
def test_the_goal_comes_nearer_and_is_reached_on_time_in_spite_of_disturbances():
    generator = torch.Generator().manual_seed(0)
    planner = Planner(bridge(planning.effort(10.0)))
    rest = planner.plan([-1.5, 1.0])
    for left in range(HORIZON - 1, 0, -1):
        rest = planner.step(rest[1] + 0.03 * torch.randn(2, generator=generator))
        assert len(rest) == left
    assert (rest[-1] - torch.tensor([1.5, 0.0])).norm() < 0.25
    refused(OptionError, "over", planner.step, [1.5, 0.0])


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
    assert distance_along(rest, (-1.0, 0.2)) > 0.45 and distance_along(rest, (1.0, 0.1)) > 0.25


@pytest.mark.slow
def test_angles_turn_the_short_way():
    turning = walk(1, (0,))
    turning.visited.mul_(torch.pi / 3)
    heading = lambda states: torch.cat([states.cos(), states.sin()], 1)
    plan = Planner(ce.over_time(turning, HORIZON) & planning.goal([-0.96, -0.28], 0.05, of=heading) & planning.effort(10.0)).plan([2.8])
    assert 0.3 < (plan[-1] - plan[0]).item() < 1.0  # from 2.8 over pi, not back through 0


@pytest.mark.slow
def test_a_task_that_no_plan_fulfils_warns():
    with pytest.warns(planning.PlanWarning, match="None of 1 searches"):
        Planner(bridge(~planning.disc((1.5, 0.0), 0.5)), retries=0).plan([-1.5, 1.0])
    with pytest.warns(planning.PlanWarning, match="None of 1 searches"):  # a move a hundred times as long as usual
        Planner(ce.over_time(walk(), 2) & planning.goal([15.0, 0.0], 0.05), retries=0).plan([-15.0, 0.0])


@pytest.mark.full
def test_two_agents_keep_apart():
    dynamics = ce.over_time(walk(), HORIZON).over("left") & ce.over_time(walk(), HORIZON).over("right")
    goals = planning.goal([1.5, 0.0], 0.05).over({"left": (HORIZON, 2)}) & planning.goal([-1.5, 0.0], 0.05).over({"right": (HORIZON, 2)})
    both = (planning.apart(0.5) & planning.effort(10.0)).over(dynamics.variables)
    planner = Planner(dynamics & goals & both, search=planning.Search(tree=1200))
    refused(ShapeError, r"has \[2, 2\] numbers, got \[3, 1\] of left, right", planner.plan, {"left": [-1.5, 0.0, 1.5], "right": [0.0]})
    plan = planner.plan({"left": [-1.5, 0.0], "right": torch.tensor([1.5, 0.0]).double()})  # plans have the precision of the dynamics
    assert (plan["left"] - plan["right"]).norm(dim=1).min() > 0.45 and planner.step(planner.last[1])["right"].shape == (HORIZON - 1, 2)


@pytest.mark.full
def test_training_finds_the_density_of_moves_and_a_wall():
    generator = torch.Generator().manual_seed(0)
    states = 2 * torch.rand(40_000, 1, generator=generator) - 1
    ends = states + 0.1 * torch.randn(40_000, 1, generator=generator)
    energy = TransitionEnergy(1, kept=64).fit(torch.stack([states, ends], 1)[ends[:, 0].abs() < 1], steps=600)  # walls at -1 and 1
    steps = torch.tensor([0.0, 0.1, 0.15])
    pairs = torch.stack([torch.zeros(3), steps], 1)[..., None]
    assert (((energy(pairs) - energy(pairs[:1])) - (steps / 0.1) ** 2 / 2).abs() < 0.4).all()
    assert energy(torch.tensor([[[0.97], [1.07]], [[0.0], [0.1]]])).diff().item() < -2


def pair(x: Tensor) -> Tensor:
    return (x[:, 1] - 0.5 * x[:, 0] ** 2).square().sum(1) + x[:, 0].cos().sum(1)


def lifted(horizon: int, size: int = 2) -> ce.Energy:
    return ce.over_time(ce.energies.CallableEnergy(pair, event_shape=(2, size)), horizon)


def paths(rows: int, horizon: int, seed: int, size: int = 2) -> Tensor:
    return torch.randn(rows, horizon, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 7), st.integers(1, 6), st.integers(0, 999))
def test_lifting_adds_up_along_a_path_that_is_cut(one: int, other: int, seed: int):
    x = paths(3, one + other, seed)
    torch.testing.assert_close(lifted(one + other)(x), lifted(one)(x[:, :one]) + lifted(other + 1)(x[:, one - 1 :]))


def test_named_variables_are_parts_of_a_joined_state():
    check_energy(lambda: lifted(5), paths(4, 5, 1))
    names, wet, shop = {"left": (HORIZON, 2), "right": (HORIZON, 2)}, planning.disc((0.0, 0.0), 0.5), planning.disc((1.0, 0.0), 0.5)
    one, joined, turned = ce.over_time(walk(), HORIZON), planning.start([0.0, 1.0, 2.0, 3.0]), lifted(HORIZON, 4)
    right = planning.goal([1.0, 0.0]) & planning.effort(3.0) & ~wet & shop
    both = joined.over(names) & turned.over({"right": (HORIZON, 2), "left": (HORIZON, 2)}) & right.over({"right": (HORIZON, 2)})
    x, named = paths(2, HORIZON, 5, 4).float(), 2 * (one.over("left") & one.over("right")) & both
    parts = parts_of(named)
    expected = 2 * (one(x[..., :2]) + one(x[..., 2:])) + joined(x) + turned(x[..., [2, 3, 0, 1]]) + right(x[..., 2:])
    torch.testing.assert_close(named(parts.point(x)), expected)
    torch.testing.assert_close(parts.states(parts.point(x)), x)
    moves = parts.of_moves(x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1)).view(2, -1).sum(1) + (~wet)(x[:, :1, 2:])
    states, rest = (parts.of_states(x[:, time], time) for time in parts.waypoints), (term(parts.point(x)) for term in parts.rest)
    torch.testing.assert_close(moves + sum(states) + sum(rest), expected)


def test_a_noise_level_for_each_trajectory_reaches_its_transitions():
    scaled = ce.energies.CallableEnergy(lambda x, sigma: sigma * pair(x), event_shape=(2, 2))
    x, sigma = paths(3, 5, 3), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(ce.over_time(scaled, 5)(x, sigma=sigma), sigma * lifted(5)(x))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(0, 999), st.floats(0.05, 0.5))
def test_a_zone_and_its_complement_have_probabilities_that_add_up_to_one(horizon: int, seed: int, width: float):
    x = paths(4, horizon, seed)
    wet = planning.disc((0.3, 0.0), 0.7, width=width).double()
    total = (-wet(x)).exp() + (-(~wet)(x)).exp()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_a_zone_is_seen_between_states():
    x = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]], [[-1.0, 1.0], [1.0, 1.0]]])
    outside = (~planning.disc((0.0, 0.0), 0.5, between=3))(x)
    assert outside[0] > 10 and outside[1] < 1e-4
    assert (~planning.disc((0.0, 0.0), 0.5, between=0))(x)[0] < 1e-4  # only the states


@pytest.mark.parametrize("quantile", [0.5, 0.95])
def test_the_level_of_a_waypoint_is_the_quantile_of_its_draws(quantile: float):
    point = planning.goal([1.0, -1.0, 0.5], 0.3)
    draws = point.target + 0.3 * torch.randn(20_000, 1, 3, generator=torch.Generator().manual_seed(0))
    share = (point(draws) <= point.known_level(quantile)).float().mean().item()
    assert abs(share - quantile) < 5 * (quantile * (1 - quantile) / 20_000) ** 0.5


def test_a_waypoint_is_a_normalised_density_of_its_state():
    point = planning.via([0.5], 1, 0.2)
    grid = torch.linspace(-3, 4, 4001).view(-1, 1, 1).expand(-1, 2, 1)
    assert abs(torch.trapezoid((-point(grid)).exp(), grid[:, 0, 0]).item() - 1) < 1e-4


PAIR = ce.energies.CallableEnergy(pair, event_shape=(2, 2))
test_mistakes_are_named = refusals(
    (lambda: ce.over_time(walk(), 5).sample(2, seed=0), ExpressionError, "chees"),
    (lambda: parts_of(planning.start([0.0]) & planning.goal([1.0])), ExpressionError, "chees"),
    (lambda: Planner(bridge(planning.start([0.0, 0.0]))).plan([0.0, 0.0]), OptionError, "start already"),
    (lambda: Planner(bridge()).change(ce.over_time(walk(), 5) & planning.goal([0.0, 0.0])), ShapeError, "trajectories"),
    *((lambda p=p: TransitionEnergy(2).fit(p), ShapeError, "Pairs") for p in (torch.zeros(5, 2, 3), torch.ones(5, 2, 2) / 0, [[0.0]])),
    *((lambda s=s: Planner(bridge()).plan(s), ShapeError, r"has \[2\] numbers, got") for s in ([0.0], {"x": [0.0, 1.0]})),
    (lambda: TransitionEnergy(2).fit(torch.ones(5, 2, 2)), OptionError, "all numbers of states and their changes vary"),
    (lambda: TransitionEnergy(2, angles=(2,)), OptionError, "angles"),
    (lambda: ce.over_time(lambda x: x.flatten(1).sum(1), 5), ShapeError, "event_shape"),
    (lambda: lifted(1), OptionError, "horizon"),
    (lambda: ce.over_time(PAIR, 5).over({"a": (5, 2), "b": (5, 2)}), ShapeError, "several along their last axis"),
    (lambda: ce.over_time(PAIR.over("x"), 5), ShapeError, "is over x"),
    (lambda: ce.over_time(ce.as_energy(torch.distributions.Dirichlet(torch.ones(3))), 5), ExpressionError, "joins rows"),
    (lambda: planning.apart(0.5)(torch.zeros(1, 5, 3)), ShapeError, "halves"),
    *((lambda w=w: planning.goal([0.0], w), OptionError, "width") for w in (0.0, float("inf"))),
    (lambda: planning.start("a", 0.1), OptionError, "target of start is a vector of finite numbers, got 'a'"),
    (lambda: planning.via([0.0], 2.5), OptionError, "time must be a whole number"),
    (lambda: planning.goal([0.0])(torch.zeros(1, 3, 2)), ShapeError, "compares 1"),
    (lambda: planning.disc((0.0, 0.0), 1.0)(torch.zeros(4, 2)), ShapeError, "trajectories"),
    (lambda: planning.disc((0.0, 0.0), -1.0), OptionError, "radius"),
    *((lambda c=c: planning.box(c, (1.0, 1.0)), OptionError, "center of a zone is a vector of fin") for c in ((0.0, float("nan")), "ab")),
    (lambda: planning.disc((0.0, 0.0), 1.0)(torch.zeros(1, 3, 1)), ShapeError, "of 2 numbers needs .* got states of 1"),
    (lambda: ce.over_time(ce.ClassifierEnergy(lambda x: x[:, 0], 1, PAIR), 5), ExpressionError, "relative"),
)


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_random_motion_touches_nothing(name: str):
    world = WORLDS[name]()
    pairs, actions, blocked = world.random_motion(2000, torch.Generator().manual_seed(0))
    assert (world.clearance(pairs.flatten(0, 1)) > 0).all() and (actions.abs() <= world.reach).all() and 0.01 < blocked.float().mean() < 0.5
    assert not world.hits(pairs[~blocked, 0], pairs[~blocked, 1]).any()


@pytest.mark.parametrize("name", ["maze", "arm"])
def test_a_plan_of_small_moves_is_followed_exactly(name: str):
    world = WORLDS[name]()
    plan = [world.random_states(1, torch.Generator().manual_seed(1))]
    for seed in range(10):
        plan.append(world.step(plan[-1], world.reach * (2 * torch.rand(1, 2, generator=torch.Generator().manual_seed(seed)) - 1))[0])
    followed, hit = world.follow(torch.cat(plan))
    torch.testing.assert_close(followed, torch.cat(plan))
    assert not hit


def test_a_car_with_inertia_moves_one_step_after_its_action():
    world = Car(blocks=[(0.9, 0.9, 0.05, 0.05)])
    faster, _ = world.step(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.03]]))
    torch.testing.assert_close(faster, torch.tensor([[0.0, 0.0, 0.0, 0.03]]))
    moved, _ = world.step(faster, torch.tensor([[0.0, 0.0]]))
    torch.testing.assert_close(moved, torch.tensor([[0.03, 0.0, 0.0, 0.03]]))
