"""Pipelines that cannot be loaded: error classes and messages."""

import importlib.util
import json

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ExpressionError, ExtraNotInstalled, FileFormatError, OptionError
from composable_energy_diffusion.pipelines import load_pipeline
from plugins.diffusion.tests import tiny_pipelines

pytestmark = [
    pytest.mark.slow,  # the import of diffusers takes seconds
    pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs the extra diffusers"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("refused")


@pytest.fixture(scope="module")
def text(folder):
    return load_pipeline(str(tiny_pipelines.text(folder / "text")))


@pytest.fixture(scope="module")
def classes(folder):
    return load_pipeline(str(tiny_pipelines.classes(folder / "classes")))


def test_folders_that_are_no_pipelines(tmp_path):
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileFormatError, match=r"is no pipeline of diffusers: there is no model_index\.json"):
            load_pipeline(str(place))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(FileFormatError, match="is no pipeline of diffusers"):
        load_pipeline(str(tmp_path))


def test_a_name_that_the_hub_does_not_have(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileFormatError, match="nobody/nothing is no pipeline of diffusers"):
        load_pipeline("nobody/nothing")


def test_pickled_weights_are_never_read(tmp_path):
    path = tiny_pipelines.plain(tmp_path / "pickled")
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({}, path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(FileFormatError, match="Weights must be safetensors"):
        load_pipeline(str(path))
    weights.write_bytes(b"damaged")
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_pipeline(str(path))


def change(path, file, **fields):
    content = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps({**content, **fields}))
    return path


def test_pipelines_with_code_of_their_own(tmp_path):
    path = tiny_pipelines.plain(tmp_path / "own")
    (path / "my_unet.py").write_text("raise SystemExit")
    change(path, "model_index.json", unet=["my_unet", "MyUNet"])
    with pytest.raises(OptionError, match=r"needs code of its own .*my_unet.*never run"):
        load_pipeline(str(path))
    change(path, "model_index.json", unet=["diffusers", "UNet2DModel"], _class_name=["pipeline", "Mine"])
    with pytest.raises(OptionError, match="needs code of its own"):
        load_pipeline(str(path))
    change(path, "model_index.json", _class_name="FuturePipeline")
    with pytest.raises(OptionError, match=r"of the class FuturePipeline, which diffusers .* does not have"):
        load_pipeline(str(path))


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        ("DDPMScheduler", {"prediction_type": "score"}, r"DDPMScheduler cannot be mapped: its field prediction_type is 'score'"),
        ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, "EDMEulerScheduler cannot be mapped: its field prediction_type"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "its field invert_sigmas is True"),
        ("CMStochasticIterativeScheduler", {}, "The scheduler CMStochasticIterativeScheduler cannot be mapped"),
    ],
)
def test_schedulers_that_cannot_be_mapped(cls, options, message, tmp_path):
    import diffusers

    path = tiny_pipelines.plain(tmp_path / "plain", getattr(diffusers, cls)(**options))
    with pytest.raises(OptionError, match=message):
        load_pipeline(str(path))


def test_networks_that_cannot_be_mapped(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet1DModel

    path = tiny_pipelines.text(tmp_path / "timed", time_cond_proj_dim=8)
    with pytest.raises(OptionError, match="UNet2DConditionModel cannot be mapped: its field time_cond_proj_dim is 8"):
        load_pipeline(str(path))
    path = tiny_pipelines.classes(tmp_path / "identity", num_class_embeds=None, class_embed_type="timestep")
    with pytest.raises(OptionError, match="UNet2DModel cannot be mapped: its field class_embed_type is 'timestep'"):
        load_pipeline(str(path))
    sizes = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4}
    DDPMPipeline(tiny_pipelines.seeded(UNet1DModel, sample_size=16, **sizes), DDPMScheduler()).save_pretrained(tmp_path / "line")
    with pytest.raises(OptionError, match="is a UNet1DModel; known are UNet2DModel"):
        load_pipeline(str(tmp_path / "line"))


def test_conditions_that_a_pipeline_does_not_take(folder, text, classes):
    plain = str(tiny_pipelines.plain(folder / "plain"))
    with pytest.raises(ExpressionError, match="plain takes no prompt: it has no text encoder"):
        load_pipeline(plain, prompt="a dog")
    with pytest.raises(ExpressionError, match="takes no prompt: it has no text encoder, and takes `class_label=`"):
        classes.concept("a dog")
    with pytest.raises(ExpressionError, match="takes no class_label"):
        load_pipeline(plain, class_label=3)
    with pytest.raises(ExpressionError, match="takes no class_label"):
        text.concept(class_label=3)
    with pytest.raises(OptionError, match="takes no conditions"):
        load_pipeline(plain, unconditional=3)
    with pytest.raises(OptionError, match=r"A prompt must be a text, got 3"):
        text.concept(prompt=3)


@pytest.mark.parametrize("label", [5, 2.0, torch.tensor([1, 7])], ids=str)
def test_classes_that_do_not_exist(label, classes):
    with pytest.raises(OptionError, match="class_label must be a whole number from 0 to 4"):
        classes.concept(class_label=label)
    with pytest.raises(OptionError, match="class_label must be a whole number from 0 to 4"):
        classes.given(class_label=label).with_gradient(torch.zeros(2, 3, 8, 8), sigma=1.0)
    with pytest.raises(OptionError, match="class_label must be a whole number from 0 to 4"):
        load_pipeline(classes.config()["location"], unconditional=label)


def test_a_class_needs_a_null_class(classes):
    with pytest.raises(ExpressionError, match=r"needs class_label: give the values of no concept, such as `unconditional="):
        classes.concept(class_label=1)
    with pytest.raises(OptionError, match=r"has no class 'cat'\. Give its number"):
        classes.concept(class_label="cat")


def test_other_options(folder, classes):
    location = classes.config()["location"]
    with pytest.raises(OptionError, match=r"dtype must be one of .*float32"):
        load_pipeline(location, dtype="int8")
    assert next(load_pipeline(location, dtype="bfloat16").parameters()).dtype == torch.bfloat16
    with pytest.raises(FileFormatError, match="no such modeling files"):
        load_pipeline(location, variant="fp16")


def test_without_diffusers_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ExtraNotInstalled, match=r"composable-energy\[diffusers\]"):
        load_pipeline(str(tmp_path))
    with pytest.raises(ExtraNotInstalled, match=r"composable-energy\[diffusers\]"):
        ce.get("energy", "diffusers", location=str(tmp_path))
