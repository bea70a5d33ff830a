"""Precision, memory format and progress bar of a run, and the caller's settings after it."""

import logging

import pytest
import torch
from torch import nn

from composable_energy.errors import OptionError
from composable_energy_training import Callback, Loss, Objective, Trainer, open_recipe
from composable_energy_training.precision import native_precision

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


class Fail(Callback):
    def on_step(self, trainer, scalars):
        if trainer.step == 3:
            raise ArithmeticError("Ends the run.")


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))


def trainer(model=None, **options):
    options = {"steps": 6, "batch_size": 8, "checkpoint_every": 2, **options}
    return Trainer(network() if model is None else model, Denoise(), IMAGES, **options)


@pytest.fixture
def no_bfloat16(monkeypatch):
    """The environment of a processor without instructions for bfloat16; oneDNN itself has read its own before."""
    network()(IMAGES)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        (["avx2", "fma"], "float32"),
        (["avx2", "avx512f", "avx512_vnni"], "float32"),
        (["avx512f", "avx512_bf16"], "bfloat16"),
        (["amx_bf16", "amx_tile"], "bfloat16"),
        ([], "float32"),
    ],
)
def test_the_processor_chooses_the_precision(flags, precision, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert native_precision(CPU, flags) == precision
    assert native_precision(torch.device("meta"), flags) == "float32"


@pytest.mark.parametrize(("limit", "precision"), [("AVX2", "float32"), ("AVX512_CORE", "float32"), ("AVX512_CORE_AMX", "bfloat16")])
def test_a_limit_on_instructions_counts(limit, precision, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert native_precision(CPU, ["avx512_bf16"]) == precision


def test_auto_is_float32_without_bfloat16_and_is_logged(no_bfloat16, caplog):
    run = trainer(precision="auto")
    with caplog.at_level(logging.INFO, logger="composable_energy_training"):
        report = run.fit()
    assert report.precision == run.precision == "float32" and run.objective.dtypes == {torch.float32}
    assert "float32 on cpu" in repr(run) and repr(run) in caplog.text


def test_a_named_precision_is_kept_on_any_machine(no_bfloat16):
    run = trainer(precision="bfloat16")
    assert run.fit().precision == "bfloat16" and run.objective.dtypes == {torch.bfloat16}


def test_a_resumed_run_keeps_its_precision(no_bfloat16, tmp_path):
    """A run that started in bfloat16 keeps it on a machine for which `auto` is float32."""
    whole = trainer(precision="bfloat16", out=tmp_path / "whole")
    whole.fit()
    with pytest.raises(ArithmeticError):
        trainer(precision="bfloat16", out=tmp_path / "cut", callbacks=[Fail()]).fit()
    run = trainer(precision="auto", out=tmp_path / "cut")
    assert run.fit().precision == "bfloat16"
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name])
    with pytest.raises(OptionError, match="precision was 'bfloat16', is 'float32'"):
        trainer(precision="float32", out=tmp_path / "cut").fit()


def test_no_recipe_asks_for_bfloat16_on_every_machine():
    recipe = open_recipe("base-and-attributes")
    assert recipe.settings["training"]["precision"] == "auto"
    assert recipe.with_changes({"training.precision": "bfloat16"}).settings["training"]["precision"] == "bfloat16"


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("memory_format", [PLAIN, CHANNELS_LAST])
def test_the_model_keeps_its_memory_format_and_storage(memory_format, fails):
    model = network().to(memory_format=memory_format)
    weights = [model[0].weight, model[2].weight]
    before = [(weight.stride(), weight.data_ptr(), weight.detach().clone()) for weight in weights]
    run = trainer(model, callbacks=[Fail()] if fails else [])
    assert [(weight.stride(), weight.data_ptr()) for weight in weights] == [(stride, pointer) for stride, pointer, _ in before]
    if fails:
        with pytest.raises(ArithmeticError):
            run.fit()
    else:
        run.fit()
    assert run.objective.formats == {True}  # channels last during the run
    for weight, (stride, pointer, values) in zip(weights, before, strict=True):
        assert weight.stride() == stride and weight.data_ptr() == pointer
        assert not torch.equal(weight, values)


def test_tensors_that_share_storage_with_the_model_see_the_trained_weights():
    model = network()
    shared = model[0].weight.detach()
    trainer(model).fit()
    assert torch.equal(shared, model[0].weight)


class Open(Callback):
    """Counts what is open."""

    def __init__(self, fail_at_start=False):
        self.open, self.fail_at_start = 0, fail_at_start

    def on_start(self, trainer):
        if self.fail_at_start:
            raise ArithmeticError("Does not start.")
        self.open += 1

    def on_exit(self, trainer):
        self.open -= 1


def test_every_callback_is_closed_after_an_error():
    one, other = Open(), Open()
    with pytest.raises(ArithmeticError):
        trainer(callbacks=[one, Fail(), other]).fit()
    assert one.open == other.open == 0
    trainer(callbacks=[one]).fit()
    assert one.open == 0


def test_a_progress_bar_is_closed_after_an_error(capsys):
    """A closed bar ends its line; an open one does not."""
    run = trainer(callbacks=[Fail()], progress=True)
    with pytest.raises(ArithmeticError):
        run.fit()
    shown = capsys.readouterr().err
    assert "training" in shown and shown.endswith("\n")
    with pytest.raises(ArithmeticError):
        trainer(callbacks=[Open(fail_at_start=True)], progress=True).fit()  # before the bar exists
