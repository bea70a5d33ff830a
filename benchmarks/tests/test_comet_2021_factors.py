"""The table of factors: budgets of equal time, codes of all rows, differences with their errors, and the metric of pictures."""

import json
import math

import pytest
import torch

from benchmarks.papers.comet_2021 import factors
from benchmarks.papers.comet_2021.baselines import Autoencoder
from benchmarks.papers.comet_2021.factor_metric import change_metric, isometric_mcc
from benchmarks.papers.comet_2021.factor_models import create_comet, train_comet, train_or_load
from benchmarks.papers.comet_2021.factor_rows import ROWS, codes_of_row, reconstruct_row, scaled_steps, time_steps, train_row
from benchmarks.papers.comet_2021.factors import goals, mean_and_error, part_of, summarize

SCORES = {"BetaVAE": 90.0, "MIG": 10.0, "MCC": 50.0}


def some_images(count=20):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def row(name, r2, mcc, error):
    return {"model": name, "R2": (r2, error), "MCC, raw": (mcc - 5, error), "MCC, PCA 64": (mcc, error)}


def test_tables_have_means_and_standard_errors():
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2, 1 / math.sqrt(3)))
    assert mean_and_error([1.0]) == (1, None)
    runs = [
        {"model": "pixels", "seed": seed, "R2": 0.8 + 0.1 * seed, "raw": SCORES, "PCA 64": {**SCORES, "MIG": 20.0 + seed}}
        for seed in (0, 1)
    ]
    (found,) = summarize(runs, {})
    assert found["model"] == "pixels" and found["seeds"] == 2 and found["seconds"] == 0 and "MSE" not in found
    assert found["R2"] == pytest.approx((0.85, 0.05)) and found["MIG, PCA 64"] == pytest.approx((20.5, 0.5)) and found["MIG, raw"][0] == 10


def test_the_seconds_of_a_row_are_those_of_its_steps():
    runs = [{"model": "comet-coarse", "seed": 5, "R2": 0.9, "raw": SCORES, "PCA 64": SCORES}]
    first, second = ROWS["comet-coarse"]
    (found,) = summarize(runs, {"comet-coarse": [0.01, 0.1]})
    assert found["seconds"] == round(0.01 * first + 0.1 * second)


def test_differences_are_clear_beyond_two_errors():
    rows = [row("comet-coarse", 0.95, 80.0, 0.01), row("beta-1", 0.90, 80.0, 0.01), row("pixels", 0.95, 90.0, 0.0)]
    found = {(goal["score"], goal["against"]): goal for goal in goals(rows)}
    assert found["R2", "beta-1"]["higher"] is True and found["R2", "beta-1"]["difference"] == pytest.approx((0.05, math.sqrt(2) * 0.01))
    assert found["MCC", "beta-1, PCA 64"]["higher"] is None and found["MCC", "pixels, PCA 64"]["higher"] is False
    assert goals(rows[1:]) == []


def test_one_seed_separates_nothing():
    found = goals([row("comet-coarse", 0.95, 80.0, None), row("pixels", 0.5, 10.0, 0.0)])
    assert [goal["higher"] for goal in found] == [None, None] and found[0]["difference"] == (pytest.approx(0.45), None)


@pytest.mark.parametrize("name", ROWS)
def test_each_row_is_trained_scored_and_loaded(name, tmp_path):
    images = some_images()
    share = 1.5 / max(ROWS[name], default=1)
    model, figures = train_row(name, 3, images, tmp_path, share)
    codes, numbers = codes_of_row(name, model), {"pixels": 768, "slots": 192, "beta-0.25-10": 10}.get(name, 64)
    with torch.no_grad():
        first = codes(images[:4]).flatten(1)
        assert first.shape == (4, numbers)
        again, loaded = train_row(name, 3, images, tmp_path, share)
        torch.testing.assert_close(codes_of_row(name, again)(images[:4]).flatten(1), first)
    assert loaded == figures and figures["steps"] == sum(scaled_steps(name, share))
    rebuilt = reconstruct_row(model, images[:4])
    assert (rebuilt is None) == (not ROWS[name]) and (rebuilt is None or rebuilt.shape == (4, 3, 32, 32))


def test_the_second_stage_keeps_the_encoder_of_the_first_and_moves_it_little(tmp_path):
    images, names = some_images(), ("comet-coarse", "comet-coarse")
    few, many = (train_row(name, 3, images, tmp_path / str(share), share)[0] for name, share in zip(names, (0.0, 0.01), strict=True))
    start, end = few.encoder.net[0].weight, many.encoder.net[0].weight
    assert few.energy.size == many.energy.size == 32 and few.components == 2
    assert 0 < (start - end).norm() < 0.3 * start.norm()


def test_a_model_is_trained_once_and_then_loaded(tmp_path):
    images, trainings = some_images(), []

    def load():
        model = create_comet("quadratic", 0)
        train_or_load(tmp_path / "model.pt", model, lambda: trainings.append(1) or train_comet(model, images, 2, 0))
        return model

    first, again, other = load(), load(), create_comet("quadratic", 0)
    assert len(trainings) == 1 and not torch.equal(first.encode(images), other.encode(images))
    torch.testing.assert_close(again.encode(images), first.encode(images))


def test_all_rows_are_timed_in_turns():
    found = time_steps(some_images(), steps=1, rounds=1)
    assert {name: len(stages) for name, stages in found.items()} == {name: len(steps) for name, steps in ROWS.items() if steps}
    assert all(seconds > 0 for stages in found.values() for seconds in stages)


def test_a_beta_vae_has_codes_of_any_size():
    model = Autoencoder(0.25, codes=10)
    assert model.encode(some_images(2)).shape == (2, 10) and model.decode(torch.zeros(2, 10)).shape == (2, 3, 32, 32)
    assert model.loss(some_images(2)).isfinite()


def test_the_table_has_only_the_seeds_asked_for(tmp_path, capsys):
    parts = tmp_path / "factors"
    parts.mkdir()
    (parts / "times.json").write_text("{}")
    (parts / "metric.json").write_text(json.dumps({"MCC": 82.5}))
    for seed in (0, 5, 6):
        run = {"model": "pixels", "seed": seed, "R2": 0.9, "R2 of each": {"lamp x": 0.9}, "raw": SCORES, "PCA 64": SCORES, "steps": 0}
        part_of(parts, "pixels", seed, 1.0).write_text(json.dumps(run))
    factors.main(["--gather", "--parts", str(tmp_path), "--seed", "5", "6", "7"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pixels") and "±" in line]
    assert line.split()[:2] == ["pixels", "2"]


def test_axes_are_factors_if_changes_are_orthogonal_and_of_different_lengths():
    apart, alike = torch.diag(torch.tensor([1.0, 4.0, 9.0])), torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 9.0]])
    assert isometric_mcc(apart) == pytest.approx(1, abs=1e-3)
    assert isometric_mcc(alike) == pytest.approx((1 + math.sqrt(2)) / 3, abs=0.01)  # the first two share both axes


def test_changes_are_derivatives():
    slopes = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    images = torch.stack([sign * 0.04 * slopes for sign in (1, -1)], 1)[:, :, None].expand(-1, -1, 5, -1)
    torch.testing.assert_close(change_metric(images), slopes @ slopes.T)
