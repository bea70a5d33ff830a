"""Training: it goes on after a kill as if there had been none, and its objectives know what they should."""

from __future__ import annotations

import pytest
import torch
from composable_energy_faces import card, data, train, weights
from composable_energy_faces.data import draw_to
from composable_energy_faces.draw import draw
from composable_energy_faces.fitting import Effort, fit, keyed
from composable_energy_faces.networks import CODE, Autoencoder, Base, Heads, Judge
from composable_energy_faces.objectives import (
    autoencoder_loss,
    base_loss,
    decoder_loss,
    heads_loss,
    judge_loss,
    one_condition,
    outline_weights,
)
from torch import nn


class _KilledError(Exception):
    pass


def test_a_killed_fit_goes_on_to_the_bit(tmp_path):
    points = torch.randn(64, 5, generator=keyed(0))

    def run(folder, die_at=None):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

        def loss(step):
            if step == die_at:
                raise _KilledError
            return network(points[torch.randint(64, (16,), generator=keyed(1, step))]).square().mean()

        report = fit(network, loss, Effort(steps=30), checkpoint=folder / "net.pt", every=0.0)
        return network, report

    whole, report = run(tmp_path)
    (tmp_path / "second").mkdir()
    with pytest.raises(_KilledError):
        run(tmp_path / "second", die_at=17)
    resumed, again = run(tmp_path / "second")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert report["steps"] == again["steps"] == 30 and report["loss"] == again["loss"]


def test_the_average_is_kept_not_the_last_step(tmp_path):
    network = nn.Linear(1, 1)
    first = network.weight.item()
    fit(network, lambda _: (network.weight - 100).square().sum(), Effort(steps=5, rate=1.0), checkpoint=tmp_path / "net.pt")
    last = torch.load(tmp_path / "net.pt", weights_only=True)["network"]["weight"].item()
    assert first < network.weight.item() < last
    assert not network.training


def test_files_give_back_the_drawn_faces(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_SHARD", 30)
    files = draw_to(tmp_path, 50, seed=9)
    faces = draw(60, seed=9)
    assert len(files) == 60
    index = torch.tensor([0, 59, 31, 31])
    assert (files.images(index) - faces.images[index]).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(files.attributes, faces.attributes) and torch.equal(files.hair, faces.hair)


def test_outlines_weigh_more_and_all_pictures_the_same():
    flat = torch.full((1, 3, 64, 64), 0.5)
    assert torch.equal(outline_weights(flat), torch.full((1, 1, 64, 64), 0.3))
    small, large = flat.clone(), flat.clone()
    small[..., 30:33, 30:33], large[..., 8:56, 8:56] = 1.0, 1.0
    weights = outline_weights(torch.cat([small, large]))
    assert weights[0].max() > weights[1].max() > 0.9
    assert (weights.sum((1, 2, 3)) / 64**2 - 0.3 < 0.7).all()


def test_a_condition_tells_one_attribute_or_none():
    faces = draw(2000, seed=1, size=8)
    truth = torch.cat([faces.attributes * 2 - 1, nn.functional.one_hot(faces.hair, 4).float()], 1)
    told = one_condition(truth, keyed(0))
    assert (told.abs().sum(1) <= 1).all()
    kept = told != 0
    assert torch.equal(told[kept], truth[kept])
    assert abs((told.abs().sum(1) == 0).float().mean() - 0.25) < 5 * (0.25 * 0.75 / 2000) ** 0.5


def test_every_objective_is_finite_and_reaches_every_parameter(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_SHARD", 20)
    files = draw_to(tmp_path, 20, seed=0)
    torch.manual_seed(0)
    codes = torch.randn(30, CODE)
    attributes, hair = torch.ones(30, 5), torch.zeros(30, dtype=torch.long)
    judge, pair = Judge(), nn.ModuleDict({"model": Autoencoder(), "labels": nn.Linear(CODE, 9)})
    base, heads, conditional = Base(), Heads(), Base(conditions=9)
    for network in (base, heads, conditional):  # their last layers start at zero, which would stop gradients
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
    losses = {
        judge: judge_loss(judge, files, batch=8),
        pair: autoencoder_loss(pair["model"], pair["labels"], files, batch=8),  # pyright: ignore[reportArgumentType]
        base: base_loss(base, codes, batch=8),
        conditional: base_loss(conditional, codes, torch.ones(30, 9), batch=8),
        heads: heads_loss(heads, codes, attributes, hair, batch=8),
    }
    sharpened = decoder_loss(pair["model"], files, codes[:20], batch=8)  # pyright: ignore[reportArgumentType]
    assert torch.equal(sharpened(1), sharpened(1)) and sharpened(1).isfinite()
    for network, loss in losses.items():
        value = loss(3)
        value.backward()
        assert value.isfinite() and torch.equal(value, loss(3))
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_one_level_for_all_is_embedded_once_with_the_same_result():
    torch.manual_seed(0)
    z, level = torch.randn(7, CODE, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    for network in (Base().double(), Heads().double()):
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        expected = network(z, level.repeat(7))
        for sigma in (0.3, level, level.expand(7)):
            torch.testing.assert_close(network(z, sigma), expected, rtol=1e-10, atol=1e-10)


def test_the_command_makes_weights_and_a_card_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """Every stage at a thousandth of the effort; the second call finds all done."""
    monkeypatch.setattr(data, "_SHARD", 60)
    monkeypatch.setattr(card, "ROWS", card.ROWS[:1])
    monkeypatch.setattr(card, "TEST_FACES", 20)
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "package")
    command = ["--out", str(tmp_path / "run"), "--effort", "0.001", "--samples", "2"]
    train.main(command)
    files = sorted((tmp_path / "run" / "weights").glob("*.safetensors"))
    assert [path.stem for path in files] == ["autoencoder", "base", "heads", "judge"]
    text = (tmp_path / "run" / "MODEL_CARD.md").read_text()
    assert "--effort 0.001" in text and "| `male` |" in text
    first = [path.read_bytes() for path in files]
    train.main(command)
    assert [path.read_bytes() for path in files] == first
    assert not (tmp_path / "package").exists()
    with pytest.raises(SystemExit):
        train.main(["--out", str(tmp_path), "--effort", "0"])
    assert "must be positive" in capsys.readouterr().err
