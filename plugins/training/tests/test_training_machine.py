"""Precision and memory format of a run, and the caller's model after it."""

import logging

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.testing import check_energy
from composable_energy_training import Checkpoints, GaussianNoise, Loss, MLPEnergy, NoiseContrastive, Objective, Optimizer, Trainer, toys
from composable_energy_training.precision import native_precision
from plugins.training.tests.run_helpers import StopAt, fit_until_stopped, same
from tests.refusals import refusals

IMAGES = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")
PLAIN, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


class Denoise(Objective):
    def __init__(self):
        self.dtypes, self.formats = set(), set()

    def loss(self, model, batch):
        output = model(batch.x + 0.1 * batch.noise.normal(batch.x))
        self.dtypes.add(output.dtype)
        self.formats.update(weight.is_contiguous(memory_format=CHANNELS_LAST) for weight in model.parameters() if weight.ndim == 4)
        return Loss((output.float() - batch.x).square().mean())


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))


def trainer(model=None, precision="float32", out=None, callbacks=()):
    callbacks, optimizer = [Checkpoints(out, every=2), *callbacks], Optimizer(precision=precision)
    return Trainer(model or network(), Denoise(), IMAGES, steps=6, batch_size=8, optimizer=optimizer, callbacks=callbacks)


@pytest.fixture
def no_bfloat16(monkeypatch):
    """The environment of a processor without instructions for bfloat16; oneDNN itself has read its own before."""
    network()(IMAGES)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


@pytest.mark.parametrize(
    ("flags", "limit", "precision"),
    [
        (["avx2", "avx512f", "avx512_vnni"], None, "float32"),
        (["avx512f", "avx512_bf16"], None, "bfloat16"),
        (["amx_bf16", "amx_tile"], None, "bfloat16"),
        ([], None, "float32"),
        (["avx512_bf16"], "AVX512_CORE", "float32"),
        (["avx512_bf16"], "AVX512_CORE_AMX", "bfloat16"),
    ],
)
def test_the_processor_and_a_limit_on_its_instructions_choose_the_precision(flags, limit, precision, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert native_precision(CPU, flags) == precision
    assert native_precision(torch.device("meta"), flags) == "float32"


def test_auto_is_float32_without_bfloat16_and_is_logged(no_bfloat16, caplog):
    run = trainer(precision="auto")
    with caplog.at_level(logging.INFO, logger="composable_energy_training"):
        report = run.fit()
    assert report.precision == run.precision == "float32" and run.objective.dtypes == {torch.float32}
    assert "float32 on cpu" in repr(run) and repr(run) in caplog.text


def test_a_resumed_run_keeps_its_precision(no_bfloat16, tmp_path):
    """A run that started in bfloat16 keeps it on a machine for which `auto` is float32."""
    whole = trainer(precision="bfloat16", out=tmp_path / "whole")
    assert whole.fit().precision == "bfloat16" and whole.objective.dtypes == {torch.bfloat16}
    fit_until_stopped(trainer(precision="bfloat16", out=tmp_path / "cut", callbacks=[StopAt(3)]))
    run = trainer(precision="auto", out=tmp_path / "cut")
    assert run.fit().precision == "bfloat16"
    same(whole.model, run.model)
    with pytest.raises(OptionError, match="precision was 'bfloat16', is 'float32'"):
        trainer(out=tmp_path / "cut").fit()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("memory_format", [PLAIN, CHANNELS_LAST])
def test_the_model_keeps_its_memory_format_and_storage(memory_format, fails):
    model = network().to(memory_format=memory_format)
    weights, shared = [model[0].weight, model[2].weight], model[0].weight.detach()
    before = [(weight.stride(), weight.data_ptr(), weight.detach().clone()) for weight in weights]
    run = trainer(model, callbacks=[StopAt(3)] if fails else [])
    if fails:
        fit_until_stopped(run)
    else:
        run.fit()
    assert run.objective.formats == {True}  # channels last during the run
    for weight, (stride, pointer, values) in zip(weights, before, strict=True):
        assert weight.stride() == stride and weight.data_ptr() == pointer
        assert not torch.equal(weight, values)
    assert torch.equal(shared, model[0].weight)


@pytest.mark.parametrize("name", toys.NAMES)
def test_a_toy_set_is_a_function_of_its_seed_and_fills_the_same_square(name):
    state = torch.get_rng_state()
    points = toys.sample(name, 4000, seed=3)
    assert points.shape == (4000, 2) and torch.equal(toys.sample(name, 4000, seed=3), points)
    assert not torch.equal(toys.sample(name, 4000, seed=4), points) and torch.equal(torch.get_rng_state(), state)
    assert 1.2 < points.abs().quantile(0.99) < 2.2 and points.mean(0).abs().max() < 0.35


def test_sets_have_the_shapes_of_their_names():
    rings, modes, board = (toys.sample(name, 3000) for name in ("rings", "eight-gaussians", "checkerboard"))
    counts = (rings.norm(dim=1) / 0.6).round().long().bincount()
    assert counts[0] == 0 and counts[1:4].min() > 900
    centres = (modes[:, 1].atan2(modes[:, 0]) / (torch.pi / 4)).round().long() % 8
    assert centres.bincount().min() > 300 and (modes.norm(dim=1) - 1.7).abs().max() < 0.8
    assert bool((board.floor().sum(1) % 2 == 0).all()) and (board.floor() + 2).unique(dim=0).shape[0] == 8


test_unknown_sets_and_numbers_are_reported = refusals(
    (("two-moon", 5), "Did you mean 'two-moons'"),
    (("rings", 0), "n must be"),
    call=lambda call: toys.sample(*call),
    error=OptionError,
)


def test_the_energy_keeps_the_laws():
    check_energy(lambda: ce.get("energy", "mlp", dim=2, width=8), torch.randn(4, 2))
    check_energy(lambda: ce.get("energy", "mlp", dim=3, width=8, layers=1, scale=2.0), torch.randn(5, 3))
    with pytest.raises(OptionError, match="scale must be a positive number"):
        MLPEnergy(2, scale=0.0)


@pytest.mark.full
def test_noise_contrast_trains_it_to_a_normalized_density_of_the_data():
    points, test = (toys.sample("eight-gaussians", 4000, seed=seed) for seed in (0, 1))
    energy, noise = MLPEnergy(2), GaussianNoise.fit(points, widen=1.5)
    Trainer(energy, NoiseContrastive(noise), points, steps=300, batch_size=256, optimizer=Optimizer(5e-3, betas=(0.9, 0.99))).fit()
    axis = torch.linspace(-5, 5, 301)
    with torch.no_grad():
        mass = (-energy(torch.cartesian_prod(axis, axis))).exp().sum() * (axis[1] - axis[0]) ** 2
        gain = (-energy(test) - noise.log_prob(test)).mean()
    assert abs(mass - 1) < 0.15 and gain > 0.3
