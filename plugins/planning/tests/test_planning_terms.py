"""Laws of terms over trajectories: lifted pairs, waypoints, zones with an exact complement; and worlds where plans are followed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import composable_energy as ce
import composable_energy_planning as planning
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy_planning import WORLDS, Car, OverTime


def pair(x: Tensor) -> Tensor:
    return (x[:, 1] - 0.5 * x[:, 0] ** 2).square().sum(1) + x[:, 0].cos().sum(1)


def lifted(horizon: int, size: int = 2, **options: object) -> ce.Energy:
    """A lifted pair energy; `size` is that of its own states."""
    return ce.over_time(ce.energies.CallableEnergy(pair, event_shape=(2, size)), horizon, **options)


def paths(rows: int, horizon: int, seed: int, size: int = 2) -> Tensor:
    return torch.randn(rows, horizon, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 7), st.integers(1, 6), st.integers(0, 999))
def test_lifting_adds_up_along_a_path_that_is_cut(one: int, other: int, seed: int):
    x = paths(3, one + other, seed)
    whole = lifted(one + other)(x)
    torch.testing.assert_close(whole, lifted(one)(x[:, :one]) + lifted(other + 1)(x[:, one - 1 :]))


def test_axes_move_one_agent_of_two():
    x = paths(3, 6, 2, 4)
    one = ce.energies.CallableEnergy(pair, event_shape=(2, 2))
    both = ce.over_time(one, 6, axes=(0, 1), size=4) & ce.over_time(one, 6, axes=(2, 3), size=4)
    torch.testing.assert_close(both(x), lifted(6)(x[..., :2]) + lifted(6)(x[..., 2:]))


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
    wet = planning.disc((0.0, 0.0), 0.5, between=3)
    outside = (~wet)(x)
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


def test_mistakes_are_named():
    with pytest.raises(ShapeError, match="event_shape"):
        ce.over_time(lambda x: x.flatten(1).sum(1), 5)
    with pytest.raises(OptionError, match="horizon"):
        lifted(1)
    with pytest.raises(ShapeError, match="axes"):
        ce.over_time(ce.energies.CallableEnergy(pair, event_shape=(2, 2)), 5, axes=(0,), size=4)
    with pytest.raises(OptionError, match="width"):
        planning.goal([0.0], 0.0)
    with pytest.raises(OptionError, match="not both"):
        planning.goal([0.0], axes=(0,), of=torch.sin)
    with pytest.raises(ShapeError, match="compares 1"):
        planning.goal([0.0])(torch.zeros(1, 3, 2))
    with pytest.raises(ShapeError, match="trajectories"):
        planning.disc((0.0, 0.0), 1.0)(torch.zeros(4, 2))
    with pytest.raises(OptionError, match="radius"):
        planning.disc((0.0, 0.0), -1.0)
    with pytest.raises(ExpressionError, match="relative"):
        OverTime(ce.ClassifierEnergy(lambda x: x[:, 0], 1, ce.energies.CallableEnergy(pair, event_shape=(2, 2))), 5)


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_random_motion_touches_nothing(name: str):
    world = WORLDS[name]()
    pairs, actions, blocked = world.random_motion(2000, torch.Generator().manual_seed(0))
    assert (world.clearance(pairs.flatten(0, 1)) > 0).all()
    assert (actions.abs() <= world.reach).all()
    assert 0.01 < blocked.float().mean() < 0.5
    assert not world.hits(pairs[~blocked, 0], pairs[~blocked, 1]).any()


@pytest.mark.parametrize("name", ["maze", "arm"])
def test_a_plan_of_small_moves_is_followed_exactly(name: str):
    world = WORLDS[name]()
    state = world.random_states(1, torch.Generator().manual_seed(1))
    plan = [state]
    for seed in range(10):
        actions = world.reach * (2 * torch.rand(1, 2, generator=torch.Generator().manual_seed(seed)) - 1)
        plan.append(world.step(plan[-1], actions)[0])
    followed, hit = world.follow(torch.cat(plan))
    torch.testing.assert_close(followed, torch.cat(plan))
    assert not hit


def test_a_car_with_inertia_moves_one_step_after_its_action():
    world = Car(blocks=[(0.9, 0.9, 0.05, 0.05)])
    state = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    faster, _ = world.step(state, torch.tensor([[0.0, 0.03]]))
    torch.testing.assert_close(faster, torch.tensor([[0.0, 0.0, 0.0, 0.03]]))
    moved, _ = world.step(faster, torch.tensor([[0.0, 0.0]]))
    torch.testing.assert_close(moved, torch.tensor([[0.03, 0.0, 0.0, 0.03]]))
