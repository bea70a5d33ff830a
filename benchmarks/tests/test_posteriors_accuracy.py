"""References and the verdict on draws: right draws pass, wrong ones do not, and what cannot be decided is said."""

import pytest
import torch

from benchmarks.posteriors.__main__ import Counter, main, measure, start_points
from benchmarks.posteriors.accuracy import Reference, compare, least_effective, moments, read_reference, verdict
from benchmarks.posteriors.references import closed_reference
from benchmarks.posteriors.targets import TARGETS, get_target
from benchmarks.tables.samplers import accuracy, cost
from tests.refusals import refused

NORMAL = Reference("normal", ["x", "y"], [1.0, 0.0], [2.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [2.0, 1.0], "closed form")


def draws(steps=100, chains=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(steps, chains, 2, dtype=torch.float64, generator=generator) * torch.tensor([2.0, 1.0]) + torch.tensor([1.0, 0.0])


@pytest.mark.parametrize("name", list(TARGETS))
def test_each_target_has_a_reference_with_what_the_harness_needs(name):
    target = get_target(name)
    reference = read_reference(target)
    k, d = len(target.names), target.dimension
    assert [len(some) for some in (reference.mean, reference.sd, reference.mean_error, reference.sd_error)] == [k] * 4
    assert [len(some) for some in (reference.center, reference.scale)] == [d] * 2
    assert min(reference.sd) > 0 and min(reference.scale) > 0
    assert "benchmarks.posteriors.references" in reference.about["command"]
    if target.closed_form is None:
        assert reference.about["r_hat"] < 1.01 and reference.about["ess"] > 1000
        assert max(error / sd for error, sd in zip(reference.mean_error, reference.sd, strict=True)) < 0.03
        assert max(reference.about["torch_and_jax_differ"].values()) < 1e-5
        assert {"numpyro", "jax", "seconds", "divergences"} <= reference.about.keys()


def test_the_references_of_closed_forms_are_up_to_date():
    for name in ("banana-10", "funnel", "modes"):
        target = get_target(name)
        again, committed = closed_reference(target, target.closed_form()), read_reference(target)
        for one, other in ((again.mean, committed.mean), (again.sd, committed.sd), (again.scale, committed.scale)):
            assert one == pytest.approx(other, rel=1e-5)


def test_a_missing_reference_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.posteriors.accuracy.REFERENCES", tmp_path)
    refused(FileNotFoundError, "references --rows funnel", read_reference, get_target("funnel"))


def test_standard_errors_of_independent_draws():
    mean, sd, mean_error, sd_error = moments(draws())
    assert ((mean - torch.tensor([1.0, 0.0])).abs() < 5 * mean_error).all()
    torch.testing.assert_close(mean_error, sd / 80, rtol=0.1, atol=0)
    torch.testing.assert_close(sd_error, sd / (2 * 6400) ** 0.5, rtol=0.1, atol=0)
    assert 5000 < least_effective(draws()) < 8000


def test_right_draws_pass():
    found = compare(draws(), NORMAL)
    assert not found.wrong and not found.undecided


@pytest.mark.parametrize("change", [lambda x: x + 0.3, lambda x: x * torch.tensor([1.0, 1.2])])
def test_a_wrong_mean_or_sd_is_found(change):
    found = compare(change(draws()), NORMAL)
    assert found.wrong == ["x", "y"] or found.wrong == ["y"]


def test_chains_that_all_stand_at_one_point_are_wrong():
    found = compare(torch.zeros(100, 64, 2), NORMAL)
    assert found.wrong == ["x", "y"] and found.ess == 0 and found.mean_error is None


def test_few_effective_draws_decide_nothing():
    stuck = draws(1).expand(100, -1, -1)
    assert compare(stuck, NORMAL).undecided


def test_starts_are_those_that_were_asked_for():
    target = get_target("torus")
    reference = read_reference(target)
    assert start_points("default", target, reference, 0) is None
    assert (start_points("zeros", get_target("modes"), read_reference(get_target("modes")), 0) == 0).all()
    assert start_points("zeros", target, reference, 0)[5].tolist() == [1, 0, 1, 0]
    distance = (start_points("far", target, reference, 0) - torch.tensor(reference.center)).abs() / torch.tensor(reference.scale)
    torch.testing.assert_close(distance, torch.full((64, 4), 10.0))


def test_copies_of_a_function_share_the_count():
    counter = Counter(lambda x: x.sum(1))
    counter.lifted()(torch.zeros(3, 2))
    counter.lifted()(torch.zeros(4, 2))
    assert int(counter.points) == 7


@pytest.mark.full
def test_a_row_has_errors_and_costs():
    target = get_target("modes")
    row = measure(target, read_reference(target), 0, "default")
    assert row["gradients"] > 64 * row["draws"] > 0
    assert 0 < row["gradients_per_effective"] < row["all_gradients_per_effective"]
    assert verdict(row) in ("right", "wrong", "undecided")
    failed = {"row": "modes", "sampler": row["sampler"], "seed": 1, "start": "default", "error": "SamplingDiverged", "warnings": []}
    assert "8 far modes" in accuracy([row, failed]) and "1 error" in accuracy([row, failed])
    assert "| composable-energy |" in cost([row, failed])


def test_an_unknown_row_is_refused(capsys):
    refused(SystemExit, None, main, ["--rows", "seven-schools"])
    assert "invalid choice: 'seven-schools'" in capsys.readouterr().err
