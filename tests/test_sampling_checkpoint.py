"""Checkpoints: an interrupted run ends as an uninterrupted one."""

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy.errors import OptionError, SamplingDiverged
from tests.checkpoint_runs import BOWL, Stop, same, stop_at


def network() -> ce.Energy:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).eval()
    return ce.as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("langevin", {"step_size": 0.1}),
        ("underdamped", {"step_size": 0.1}),
        ("mala", {}),
        ("chees", {"tuning_steps": 20}),
        ("annealed", {"levels": 12}),
    ],
)
@pytest.mark.parametrize("size", [None, 4])
def test_a_run_that_was_broken_off_ends_as_if_it_had_not_been(tmp_path, sampler, options, size):
    energy = network()
    call = dict(sampler=sampler, steps=12, seed=3, trace=3, burn_in=1, batch_size=size, **options)
    whole = energy.sample((10, 2), **call)
    file = tmp_path / "deep" / "run.safetensors"
    for step in (2, 3, 9):
        with pytest.raises(Stop):
            energy.sample((10, 2), observers=[ce.sampling.Stop(stop_at(step)), ce.sampling.Checkpoint(file)], **call)
    same(whole, energy.sample((10, 2), observers=[ce.sampling.Checkpoint(file)], **call))
    assert [path.name for path in file.parent.iterdir()] == ["run.safetensors"]
    same(whole, energy.sample((10, 2), observers=[ce.sampling.Checkpoint(file)], **call))  # it is done: nothing is left to do


@pytest.mark.slow
def test_losses_survive_a_break(tmp_path):
    hole = ce.as_energy(lambda x: torch.where(x[:, 0] > 1.2, torch.nan, x.square().sum(1) / 2))
    call = {
        "sampler": "langevin",
        "step_size": 0.2,
        "steps": 20,
        "seed": 1,
        "trace": True,
        "on_divergence": "keep",
        "init": torch.zeros(40, 2),
    }
    whole = hole.sample((40, 2), **call)
    assert whole[1].diverged.any()
    for step in (4, 11):
        with pytest.raises(Stop):
            hole.sample((40, 2), observers=[ce.sampling.Stop(stop_at(step)), ce.sampling.Checkpoint(tmp_path / "c")], **call)
    same(whole, hole.sample((40, 2), observers=[ce.sampling.Checkpoint(tmp_path / "c")], **call))


def test_more_steps_go_on_from_a_finished_run(tmp_path):
    call = {"sampler": "langevin", "step_size": 0.1, "trace": True, "seed": 0}
    BOWL.sample((5, 3), steps=10, observers=[ce.sampling.Checkpoint(tmp_path / "c")], **call)
    same(BOWL.sample((5, 3), steps=25, **call), BOWL.sample((5, 3), steps=25, observers=[ce.sampling.Checkpoint(tmp_path / "c")], **call))
    with pytest.raises(OptionError, match="25 steps are done already, 10 were asked for"):
        BOWL.sample((5, 3), steps=10, observers=[ce.sampling.Checkpoint(tmp_path / "c")], **call)


def test_a_trace_that_is_resumed_has_checkpoints_too(tmp_path):
    call = {"trace": True}
    _, trace = BOWL.sample((5, 3), sampler="langevin", step_size=0.1, seed=0, steps=10, **call)
    whole = BOWL.sample((5, 3), resume=trace, steps=10, **call)
    with pytest.raises(Stop):
        BOWL.sample(
            (5, 3), resume=trace, steps=10, observers=[ce.sampling.Stop(stop_at(14)), ce.sampling.Checkpoint(tmp_path / "c")], **call
        )
    same(whole, BOWL.sample((5, 3), resume=trace, steps=10, observers=[ce.sampling.Checkpoint(tmp_path / "c")], **call))


def test_a_seed_that_nobody_gave_is_kept(tmp_path):
    with pytest.raises(Stop):
        BOWL.sample(
            (5, 3),
            sampler="langevin",
            step_size=0.1,
            steps=10,
            observers=[ce.sampling.Stop(stop_at(5)), ce.sampling.Checkpoint(tmp_path / "c")],
        )
    first, second = (
        BOWL.sample((5, 3), sampler="langevin", step_size=0.1, steps=10, observers=[ce.sampling.Checkpoint(tmp_path / "c")])
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, BOWL.sample((5, 3), sampler="langevin", step_size=0.1, steps=10))


def test_a_divergence_leaves_a_checkpoint_that_another_policy_goes_on_from(tmp_path):
    hole = ce.as_energy(lambda x: torch.where(x[:, 0] > 1.2, torch.nan, x.square().sum(1) / 2))
    call = {"sampler": "langevin", "step_size": 0.2, "steps": 20, "seed": 1, "init": torch.zeros(40, 2)}
    with pytest.raises(SamplingDiverged):
        hole.sample((40, 2), observers=[ce.sampling.Checkpoint(tmp_path / "c")], **call)
    with pytest.warns(SamplingWarning, match="diverged"):
        wanted = hole.sample((40, 2), on_divergence="keep", **call)
        assert torch.equal(wanted, hole.sample((40, 2), on_divergence="keep", observers=[ce.sampling.Checkpoint(tmp_path / "c")], **call))
