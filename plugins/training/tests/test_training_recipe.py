"""Recipes: settings in files that extend one another, checked before a run; its precision, memory format, and the model after it."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import composable_energy as ce
import composable_energy_training as training
from composable_energy.errors import FileFormatError, OptionError, PluginLoadError, PluginNotFound
from composable_energy_training.precision import native_precision
from composable_energy_training.toml import flatten
from plugins.training.tests.run_helpers import StopAt, fit_until_stopped, same
from tests.refusals import refusals, refused

TEXT = """
about = "A bowl"
source = "Nobody (2020)"
needs = "nothing"
cost = "no time"

[data]
labels = "none"
limit = "none"
size = [8, 8]

[model]
width = 4
gain = 0.5
sharp = true

[training]
steps = 10
seed = 0
device = "cpu"
"""
IMAGES = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")
PLAIN, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


@dataclass(frozen=True)
class Bowl(training.Recipe):
    def run(self, data: Path, out: Path, *, progress: bool = False) -> Path:
        self.save(out)
        return out


@pytest.fixture
def bowl(tmp_path):
    (tmp_path / "bowl.toml").write_text(TEXT)
    return Bowl.read(tmp_path / "bowl.toml")


def test_a_file_has_a_head_and_settings_which_changes_leave_alone(bowl):
    assert (bowl.name, bowl.about, bowl.source, bowl.needs, bowl.cost) == ("bowl", "A bowl", "Nobody (2020)", "nothing", "no time")
    assert bowl.settings["model"] == {"width": 4, "gain": 0.5, "sharp": True} and bowl.text == TEXT
    changed = bowl.with_changes({"model.gain": 1, "data.labels": "faces.csv"}).with_steps(3)
    assert flatten(changed.settings) == {**flatten(bowl.settings), "model.gain": 1.0, "data.labels": "faces.csv", "training.steps": 3}
    assert isinstance(changed.settings["model"]["gain"], float) and bowl.settings["training"]["steps"] == 10


def test_the_word_none_is_none_only_in_settings_that_may_be_none(bowl, tmp_path):
    assert bowl.settings["data"]["labels"] is None and bowl.settings["data"]["limit"] is None
    assert bowl.with_changes({"training.device": "none"}).settings["training"]["device"] is None
    listed = bowl.with_changes({"data.labels": "faces.csv"}).with_changes({"data.labels": "none", "data.size": ["none", "a"]})
    assert listed.settings["data"] == {"labels": None, "limit": None, "size": ["none", "a"]}
    refused(OptionError, r"model\.width takes a whole number, got 'none'", bowl.with_changes, {"model.width": "none"})
    (tmp_path / "named.toml").write_text('about = "none"\n[model]\nkind = "shell"\n')
    named = Bowl.read(tmp_path / "named.toml").with_changes({"model.kind": "none"})
    assert (named.about, named.settings) == ("none", {"model": {"kind": "none"}})


def test_settings_survive_a_run(bowl, tmp_path):
    settings = {**bowl.settings, "model": {**bowl.settings["model"], "layers": [{"width": 3}, {"width": 4}], "extra": {}, "name": "\x7f"}}
    odd = replace(bowl, settings=settings)
    odd.run(tmp_path, tmp_path / "out")
    assert Bowl.read(tmp_path / "out" / "recipe.toml").settings == odd.settings
    odd.run(tmp_path, tmp_path / "out")


test_bad_settings_are_reported_with_the_known_ones = refusals(
    ("model.widht", 8, r"no setting 'model\.widht'\. Did you mean 'model\.width'\? Known: model\.width, model\.gain, model\.sharp\."),
    ("colour", 8, r"no setting 'colour'\. Known: data, model, training\."),
    ("modle.wide", 8, r"no setting 'modle\.wide'\. Did you mean 'model'\? Known: data, model, training\."),
    ("model.width", 8.5, r"model\.width takes a whole number, got 8\.5"),
    *(("model.gain", value, "takes a number") for value in ("much", float("nan"))),
    ("model.sharp", 1, "true or false"),
    ("data.size", 8, "a list in brackets"),
    ("training.device", 0, "a text"),
    ("training.steps", None, "a whole number"),
    call=lambda bowl, key, value: bowl.with_changes({key: value}),
    fixture="bowl",
    error=OptionError,
)


def test_a_file_may_extend_a_name_or_a_file(bowl, tmp_path):
    (tmp_path / "wide.toml").write_text('extends = "bowl"\nabout = "A wide bowl"\n[model]\nwidth = 9\n')
    (tmp_path / "widest.toml").write_text('extends = "wide.toml"\n[model]\nwidth = 99\n')
    with ce.register("recipe", "bowl", lambda: bowl):
        recipe = training.open_recipe(tmp_path / "widest.toml")
        assert training.open_recipe("bowl").entry == recipe.entry == "bowl"
    assert isinstance(recipe, Bowl) and (recipe.name, recipe.about, recipe.needs) == ("widest", "A wide bowl", "nothing")
    assert flatten(recipe.settings) == {**flatten(bowl.settings), "model.width": 99}


@pytest.fixture
def mine(bowl, tmp_path):
    with ce.register("recipe", "bowl", lambda: bowl):
        yield tmp_path / "mine.toml"


test_bad_files_are_reported = refusals(
    (b"steps = = 3", FileFormatError, r"mine\.toml is not TOML.*line 1"),
    (b"steps = 3\n", FileFormatError, r"steps = 3 is in no table.*about, source, needs, cost, extends"),
    (b'extends = "./mine.toml"\n', FileFormatError, "extends itself"),
    (b'extends = "./nothing.toml"\n', FileFormatError, "no file"),
    (b'extends = "bawl"\n', PluginNotFound, "the recipe 'bawl'"),
    (b'extends = "bowl"\n[model]\nwith = 3\n', OptionError, r"no setting 'model\.with'"),
    (b"\xff\xfe", FileFormatError, "UTF-8"),
    call=lambda mine, content: mine.write_bytes(content) and training.open_recipe(mine),
    fixture="mine",
)


def test_a_run_saves_its_recipe_and_refuses_another(bowl, tmp_path):
    out = tmp_path / "out"
    bowl.run(tmp_path, out)
    assert Bowl.read(out / "recipe.toml").settings == bowl.settings
    bowl.with_steps(20).run(tmp_path, out)
    assert Bowl.read(out / "recipe.toml").settings["training"]["steps"] == 20
    with pytest.raises(OptionError, match=r"other settings \(model\.width: there 4, here 5; training\.seed: there 0, here 1\)"):
        bowl.with_changes({"model.width": 5, "training.seed": 1}).run(tmp_path, out)
    assert [path.name for path in out.iterdir()] == ["recipe.toml"]
    ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0)).save(tmp_path / "mine/best")
    refused(OptionError, "holds saved energies or results of no run", bowl.run, tmp_path, tmp_path / "mine")
    (tmp_path / "report.json").write_text("{}")
    refused(OptionError, "results of no run", bowl.run, tmp_path, tmp_path)


def test_paths_may_be_texts(bowl, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    bowl.save("~/out")
    assert Bowl.read("~/out/recipe.toml").settings == bowl.settings
    assert bowl.with_changes({"data.labels": tmp_path / "faces.csv"}).settings["data"]["labels"] == str(tmp_path / "faces.csv")


def test_an_entry_of_another_class_is_refused():
    with ce.register("recipe", "odd", lambda: 3), pytest.raises(PluginLoadError, match="should return a Recipe"):
        ce.get("recipe", "odd")


class Denoise(training.Objective):
    def __init__(self):
        self.dtypes, self.formats = set(), set()

    def loss(self, model, batch):
        output = model(batch.x + 0.1 * batch.noise.normal(batch.x))
        self.dtypes.add(output.dtype)
        self.formats.update(weight.is_contiguous(memory_format=CHANNELS_LAST) for weight in model.parameters() if weight.ndim == 4)
        return training.Loss((output.float() - batch.x).square().mean())


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))


def trainer(model=None, precision="float32", out=None, callbacks=()):
    callbacks, optimizer = [training.Checkpoints(out, every=2), *callbacks], training.Optimizer(precision=precision)
    return training.Trainer(model or network(), Denoise(), IMAGES, steps=6, batch_size=8, optimizer=optimizer, callbacks=callbacks)


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
    assert native_precision(CPU, flags) == precision and native_precision(torch.device("meta"), flags) == "float32"


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
    refused(OptionError, "precision was 'bfloat16', is 'float32'", trainer(out=tmp_path / "cut").fit)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("memory_format", [PLAIN, CHANNELS_LAST])
def test_the_model_keeps_its_memory_format_and_storage(memory_format, fails):
    model = network().to(memory_format=memory_format)
    weights, shared = [model[0].weight, model[2].weight], model[0].weight.detach()
    before = [(weight.stride(), weight.data_ptr(), weight.detach().clone()) for weight in weights]
    run = trainer(model, callbacks=[StopAt(3)] if fails else [])
    fit_until_stopped(run) if fails else run.fit()
    assert run.objective.formats == {True}  # channels last during the run
    for weight, (stride, pointer, values) in zip(weights, before, strict=True):
        assert weight.stride() == stride and weight.data_ptr() == pointer and not torch.equal(weight, values)
    assert torch.equal(shared, model[0].weight)


@pytest.mark.parametrize("name", training.toys.NAMES)
def test_a_toy_set_is_a_function_of_its_seed_and_fills_the_same_square(name):
    state, points = torch.get_rng_state(), training.toys.sample(name, 4000, seed=3)
    assert points.shape == (4000, 2) and torch.equal(training.toys.sample(name, 4000, seed=3), points)
    assert not torch.equal(training.toys.sample(name, 4000, seed=4), points) and torch.equal(torch.get_rng_state(), state)
    assert 1.2 < points.abs().quantile(0.99) < 2.2 and points.mean(0).abs().max() < 0.35


def test_sets_have_the_shapes_of_their_names():
    rings, modes, board = (training.toys.sample(name, 3000) for name in ("rings", "eight-gaussians", "checkerboard"))
    counts = (rings.norm(dim=1) / 0.6).round().long().bincount()
    assert counts[0] == 0 and counts[1:4].min() > 900
    centres = (modes[:, 1].atan2(modes[:, 0]) / (torch.pi / 4)).round().long() % 8
    assert centres.bincount().min() > 300 and (modes.norm(dim=1) - 1.7).abs().max() < 0.8
    assert bool((board.floor().sum(1) % 2 == 0).all()) and (board.floor() + 2).unique(dim=0).shape[0] == 8


test_unknown_sets_and_numbers_are_reported = refusals(
    (lambda: training.toys.sample("two-moon", 5), "Did you mean 'two-moons'"),
    (lambda: training.toys.sample("rings", 0), "n must be"),
    (lambda: training.MLPEnergy(2, scale=0.0), "scale must be a positive number"),
    error=OptionError,
)


@pytest.mark.full
def test_noise_contrast_trains_it_to_a_normalized_density_of_the_data():
    points, test = (training.toys.sample("eight-gaussians", 4000, seed=seed) for seed in (0, 1))
    energy, noise = training.MLPEnergy(2), training.GaussianNoise.fit(points, widen=1.5)
    objective, optimizer = training.NoiseContrastive(noise), training.Optimizer(5e-3, betas=(0.9, 0.99))
    training.Trainer(energy, objective, points, steps=300, batch_size=256, optimizer=optimizer).fit()
    axis = torch.linspace(-5, 5, 301)
    with torch.no_grad():
        mass = (-energy(torch.cartesian_prod(axis, axis))).exp().sum() * (axis[1] - axis[0]) ** 2
        gain = (-energy(test) - noise.log_prob(test)).mean()
    assert abs(mass - 1) < 0.15 and gain > 0.3
