"""Worlds: moves stay within reach and outside of obstacles, and a plan that can be followed is followed."""

from __future__ import annotations

import pytest
import torch

from composable_energy_planning import WORLDS, Box, Car, Disc


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


def test_distances_of_shapes():
    points = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 3.0]])
    torch.testing.assert_close(Disc((0.0, 0.0), 1.0)(points), torch.tensor([-1.0, 1.0, 13**0.5 - 1]))
    torch.testing.assert_close(Box((0.0, 0.0), (1.0, 2.0))(points), torch.tensor([-1.0, 1.0, 2**0.5]))
