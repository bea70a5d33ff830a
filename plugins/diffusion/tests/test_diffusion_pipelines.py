"""Pipelines of diffusers as energies, beside what their own schedulers and networks say; and those that cannot be loaded."""

import copy
import importlib.util
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import ExpressionError, ExtraNotInstalled, FileFormatError, OptionError
from composable_energy.sampling import Noise
from composable_energy.testing import check_energy
from composable_energy_diffusion import ODE, SDE
from composable_energy_diffusion.pipelines import PipelineEnergy, load_pipeline
from plugins.diffusion.tests import tiny_pipelines
from plugins.diffusion.tests.tiny_pipelines import diffusers
from tests.refusals import refused

pytestmark = [
    pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning"),
    pytest.mark.slow,  # the import of diffusers takes seconds
    pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs the extra diffusers"),
]

STEPS = (10, 400, 950)
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}  # random weights nearly denoise with it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def text(folder) -> PipelineEnergy:
    return load_pipeline(str(tiny_pipelines.text(folder / "text", diffusers.DDIMScheduler(**COSINE, steps_offset=1, clip_sample=False))))


@pytest.fixture(scope="module")
def transformer(folder) -> PipelineEnergy:
    path = tiny_pipelines.transformer(folder / "dit")
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps({**index, "id2label": {"0": "cat", "1": "dog, puppy", "2": "shark"}}))
    return load_pipeline(str(path))


@pytest.fixture(scope="module")
def classes(folder) -> PipelineEnergy:
    return load_pipeline(str(tiny_pipelines.classes(folder / "classes", diffusers.DDPMScheduler(**COSINE))), unconditional=4)


def points(energy: Any, n: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, *energy.event_shape, generator=torch.Generator().manual_seed(seed))


def own_noise(scheduler: Any, output: Tensor, step: int, x: Tensor) -> Tensor:
    """The noise in x that the scheduler of a pipeline reads from the output of its network at one of its steps."""
    scheduler = diffusers.DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    clean = scheduler.step(output.double(), step, x.double()).pred_original_sample
    signal = scheduler.alphas_cumprod[step].double()
    return (x - signal.sqrt() * clean) / (1 - signal).sqrt()


def check_gradients(energy: PipelineEnergy, pipeline: Any, call: Callable[..., Tensor], **conditions: Any) -> None:
    for step in STEPS:
        signal = pipeline.scheduler.alphas_cumprod[step].double()
        x = (signal.sqrt() * points(energy) + (1 - signal).sqrt() * points(energy, seed=1)).float()
        with torch.no_grad():
            output = call(x, torch.full((len(x),), step))
        sigma = ((1 - signal) / signal).sqrt().item()
        expected = own_noise(pipeline.scheduler, output, step, x)
        found = energy.given(**conditions).with_gradient((x / signal.sqrt()).float(), sigma=sigma)[1] * sigma
        assert (found - expected).norm() < 1e-5 * expected.norm()


SCHEDULERS = {
    "linear, epsilon": ("DDPMScheduler", {}),
    "cosine, clean": ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "clip_sample": False}),
    "trained": ("EulerDiscreteScheduler", {"trained_betas": torch.linspace(1e-3, 0.03, 1000).tolist()}),
    "zero last": ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
}


@pytest.mark.parametrize("name", ["linear, epsilon", *(pytest.param(name, marks=pytest.mark.full) for name in list(SCHEDULERS)[1:])])
def test_the_gradient_is_what_the_scheduler_says(name, tmp_path):
    cls, options = SCHEDULERS[name]
    path = tiny_pipelines.plain(tmp_path / "plain", getattr(diffusers, cls)(**options))
    energy, pipeline = load_pipeline(str(path)), diffusers.DiffusionPipeline.from_pretrained(path)
    assert energy.conditions == {"sigma"} and not energy.has_value
    check_gradients(energy, pipeline, lambda x, t: pipeline.unet(x, t).sample)


def test_the_gradient_of_a_class_is_what_the_scheduler_says(classes):
    pipeline = own(classes)
    check_gradients(classes, pipeline, lambda x, t: pipeline.unet(x, t, class_labels=torch.full((3,), 2)).sample, class_label=2)
    check_gradients(classes, pipeline, lambda x, t: pipeline.unet(x, t, class_labels=torch.full((3,), 4)).sample)


@pytest.mark.full
def test_the_gradient_of_a_transformer_is_what_the_scheduler_says(transformer):
    pipeline = own(transformer)
    call = lambda x, t, label: pipeline.transformer(x, t, class_labels=torch.full((3,), label)).sample[:, :4]  # the others are variances
    check_gradients(transformer, pipeline, lambda x, t: call(x, t, 1), class_label=1)
    check_gradients(transformer, pipeline, lambda x, t: call(x, t, 6))  # its null class
    x = points(transformer)
    one = transformer.concept("puppy").with_gradient(x, sigma=1.0)[1]
    torch.testing.assert_close(one, transformer.concept(class_label=1).with_gradient(x, sigma=1.0)[1])


@pytest.mark.full
def test_the_gradient_of_a_prompt_is_what_the_scheduler_says(text):
    pipeline = own(text)
    for prompt in ("a dog", "", "a dog on a leash in the rain at night"):
        tokens = pipeline.encode_prompt(prompt, "cpu", 1, False)[0].expand(3, -1, -1)
        conditions = text.encode(prompt) if prompt else {}
        check_gradients(text, pipeline, lambda x, t, tokens=tokens: pipeline.unet(x, t, tokens).sample, **conditions)


@pytest.mark.full
def test_the_gradient_of_a_prompt_with_sizes_is_what_the_scheduler_says(folder):
    energy = load_pipeline(str(change(tiny_pipelines.text(folder / "xl", sizes=True), "unet/config.json", sample_size=[8, 16])))
    pipeline, sizes = own(energy), torch.tensor([[16.0, 32.0, 0.0, 0.0, 16.0, 32.0]]).expand(3, -1)
    tokens, _, summary, _ = pipeline.encode_prompt("a dog", device="cpu", do_classifier_free_guidance=False)

    def call(x: Tensor, t: Tensor, scale: int) -> Tensor:
        added = {"text_embeds": scale * summary.expand(3, -1), "time_ids": sizes}
        return pipeline.unet(x, t, scale * tokens.expand(3, -1, -1), added_cond_kwargs=added).sample

    check_gradients(energy, pipeline, lambda x, t: call(x, t, 1), **energy.encode("a dog"))
    check_gradients(energy, pipeline, lambda x, t: call(x, t, 0))  # zeros stand for no prompt
    with ce.register("energy", "xl", lambda: load_pipeline(str(folder / "xl"))):
        named: Any = ce.get("energy", "xl")
        (named.concept("a dog") & named.concept("a cat")).save(folder / "saved")
        assert ce.load(folder / "saved").equals(named.concept("a dog") & named.concept("a cat"))


def own(energy: PipelineEnergy) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(energy.config()["location"])


@pytest.mark.full
def test_the_gradient_of_a_flow_is_what_its_scheduler_says(tmp_path):
    path = tiny_pipelines.plain(tmp_path / "flow", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    energy, pipeline = load_pipeline(str(path)), None
    pipeline = own(energy)
    pipeline.scheduler.set_timesteps(20)
    for step in (2, 10, 18):
        t, level = pipeline.scheduler.timesteps[step], pipeline.scheduler.sigmas[step]
        clean, noise = points(energy), points(energy, seed=1)
        x = pipeline.scheduler.scale_noise(clean, t[None], noise)
        with torch.no_grad():
            velocity = pipeline.unet(x, t.expand(3)).sample
        pipeline.scheduler._step_index = step
        to_data = pipeline.scheduler.step(velocity, t, x).prev_sample
        ahead = pipeline.scheduler.sigmas[step + 1]
        expected = x + (1 - level) * (to_data - x) / (ahead - level)  # the line of the step, followed to pure noise
        found = energy.with_gradient(x / (1 - level), sigma=(level / (1 - level)).item())[1] * level / (1 - level)
        assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.full
def test_the_gradients_of_edm_and_of_a_score_are_what_their_schedulers_say(tmp_path):
    energy = load_pipeline(str(tiny_pipelines.plain(tmp_path / "edm", diffusers.EDMEulerScheduler())))
    pipeline, y = own(energy), points(energy)
    for sigma in (0.05, 1.0, 30.0):
        level = torch.tensor(sigma)
        scaled = pipeline.scheduler.precondition_inputs(y, level)
        with torch.no_grad():
            output = pipeline.unet(scaled, pipeline.scheduler.precondition_noise(level).expand(3)).sample
        clean = pipeline.scheduler.precondition_outputs(y, output, level)
        torch.testing.assert_close(energy.with_gradient(y, sigma=sigma)[1] * sigma**2, y - clean, rtol=1e-5, atol=1e-5)
    energy = load_pipeline(str(tiny_pipelines.plain(tmp_path / "ve", diffusers.ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0))))
    with torch.no_grad():
        score = own(energy).unet(y, torch.full((3,), 2.0)).sample
    torch.testing.assert_close(energy.with_gradient(y, sigma=2.0)[1], -score)


TRAJECTORIES = {
    "DDIM": (SDE(eta=0.0, order=1), "EulerDiscreteScheduler", {}),
    "DPM-Solver++ 2M": (SDE(eta=0.0), "DPMSolverMultistepScheduler", {"euler_at_final": True}),
    "Heun": (ODE(), "HeunDiscreteScheduler", {}),
}


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers with NumPy 2
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_samplers_follow_the_trajectories_of_schedulers(name, tmp_path):
    sampler, cls, options = TRAJECTORIES[name]
    energy = load_pipeline(str(tiny_pipelines.plain(tmp_path / "plain", diffusers.DDPMScheduler(**COSINE))))
    scheduler, unet, levels = getattr(diffusers, cls)(**COSINE, **options, use_karras_sigmas=True), own(energy).unet, 12
    scheduler.set_timesteps(levels)
    scheduler.set_begin_index(0)
    sigmas = scheduler.sigmas.unique().flip(0)[:levels]
    y, noise = 5 * points(energy), Noise(0, range(3))
    x = y / (1 + sigmas[0] ** 2).sqrt() if name.startswith("DPM") else y
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        exact = t if t.is_floating_point() else energy.schedule.time(sigma)  # DPM-Solver cuts its times off
        assert abs(t - exact) <= 1
        with torch.no_grad():
            x = scheduler.step(unet(scheduler.scale_model_input(x, t), exact).sample, t, x).prev_sample
    sampler = type(sampler)(**{**vars(sampler), "levels": levels, "sigma_max": sigmas[0].item(), "sigma_min": sigmas[-1].item()})
    state = sampler.init(energy, y, noise)
    for step in range(1, levels + 1):
        found = sampler.move(state, noise.at(step)) if step == levels else None
        state, _ = sampler.step(energy, state, noise.at(step)) if found is None else (state, None)
    assert found is not None and (found - x).norm() < 2e-3 * x.norm()


@pytest.mark.full
def test_an_expression_evaluates_the_network_once(text, classes):
    for energy, name, values in ((text, "prompt", ("a", "dog", "b", "cat")), (classes, "class_label", range(4))):
        calls: list[int] = []
        hook = energy.model.model.register_forward_hook(lambda model, given, output, calls=calls: calls.append(len(output[0])))
        a, b, c, d = (energy.concept(**{name: value}) for value in values)
        ((a & ce.negate(b, mode="power", weight=1.0) & c).sharpened(3) & 0.5 * d).with_gradient(points(energy), sigma=1.0)
        hook.remove()
        assert calls == [15]


@pytest.mark.full
def test_pipelines_pass_the_checks_of_energies(classes):
    check_energy(classes.concept(class_label=1).at(0.5), points(classes))


def test_two_calls_have_one_base(classes):
    location = classes.config()["location"]
    a, b = (ce.load(f"diffusers:{location}", class_label=label, unconditional=4) for label in (0, 1))
    together, x = a & b, points(classes)
    assert len(together.bases) == 1
    expected = (classes.concept(class_label=0) & classes.concept(class_label=1)).with_gradient(x, sigma=1.0)[1]
    torch.testing.assert_close(together.with_gradient(x, sigma=1.0)[1], expected)


@pytest.mark.full
@pytest.mark.parametrize("sampler", ["sde", "feynman-kac"])
def test_samplers_take_expressions_of_pipelines(sampler, classes):
    a, b = classes.concept(class_label=0), classes.concept(class_label=1)
    no_b = ~b if sampler == "feynman-kac" else ce.negate(b, mode="power", weight=1.0)
    levels = {"levels": 4, "sigma_max": 10.0, "sigma_min": 0.05}
    x = (a & no_b).sample(8, sampler=sampler, seed=0, **levels)  # weights need some chains
    assert x.shape == (8, 3, 8, 8) == a.sample(8, seed=0, levels=3).shape and x.isfinite().all() and (x >= 0).all() and (x <= 1).all()


@pytest.mark.full
def test_latents_are_decoded_by_the_autoencoder(text):
    pipeline, z = own(text), points(text, 2)
    with torch.no_grad():
        expected = pipeline.vae.decode(z / pipeline.vae.config.scaling_factor).sample / 2 + 0.5
        torch.testing.assert_close(text.decoder(z), expected.clamp(0, 1))
        assert text.decoder.encode(expected).shape == z.shape
    options = {"sampler": "ode", "levels": 3, "seed": 0}
    latents = text.latents.sample(2, **options)
    assert latents.shape == (2, 4, 8, 8) and text.decoded_shape == (3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(text.sample((2, 3, 16, 16), **options), text.decoder(latents))


@pytest.mark.full
def test_expressions_are_copied_and_saved(text, classes, tmp_path):
    ways: list[tuple[Any, Callable[[Any], ce.Energy]]] = [
        (text, lambda energy: energy.concept("a dog") & energy.concept("a cat")),
        (classes, lambda energy: energy.concept(class_label=0).sharpened(2)),
    ]
    for energy, express in ways:
        refused(ce.errors.ExpressionError, r"location=.* no saved file may give", express(energy).save, tmp_path / energy.name)
        with ce.register("energy", "pipe", lambda energy=energy: PipelineEnergy(**energy.config())):
            expression = express(ce.get("energy", "pipe"))
            expression.save(tmp_path / energy.name)
            again = ce.load(tmp_path / energy.name)
        x = points(energy)
        for other in (copy.deepcopy(expression), again):
            assert other.equals(expression)
            torch.testing.assert_close(other.with_gradient(x, sigma=1.0), expression.with_gradient(x, sigma=1.0))
    torch.testing.assert_close(copy.deepcopy(text).encode("a dog"), text.encode("a dog"))


# Pipelines that cannot be loaded


def test_folders_and_names_that_are_no_pipelines(tmp_path, monkeypatch):
    for place in (tmp_path, tmp_path / "missing"):
        refused(FileFormatError, r"is no pipeline of diffusers: there is no model_index\.json", load_pipeline, str(place))
    (tmp_path / "model_index.json").write_text("[]")
    refused(OptionError, "its class None", load_pipeline, str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for place in (str(tmp_path), "nobody/nothing"):
        refused(FileFormatError, f"{place} is no pipeline of diffusers", load_pipeline, place)


def test_pickled_weights_are_never_read(tmp_path):
    path = tiny_pipelines.plain(tmp_path / "pickled")
    (weights := path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, path / "unet" / "diffusion_pytorch_model.bin")
    refused(FileFormatError, "Weights must be safetensors", load_pipeline, str(path))
    weights.write_bytes(b"damaged")
    refused(FileFormatError, "cannot be read", load_pipeline, str(path))
    lacking = change(tiny_pipelines.plain(tmp_path / "lacking"), "unet/config.json", class_embed_type="timestep")
    refused(FileFormatError, "were not initialized from the model checkpoint", load_pipeline, str(lacking))


def change(path, file, **fields):
    (path / file).write_text(json.dumps({**json.loads((path / file).read_text()), **fields}))
    return path


def test_pipelines_with_code_of_their_own(tmp_path):
    path = tiny_pipelines.plain(tmp_path / "own")
    (path / "my_unet.py").write_text("raise SystemExit")
    change(path, "model_index.json", unet=["my_unet", "MyUNet"])
    refused(OptionError, r"needs code of its own .*my_unet.*never run", load_pipeline, str(path))
    change(path, "model_index.json", unet=["diffusers", "UNet2DModel"], _class_name=["pipeline", "Mine"])
    refused(OptionError, "needs code of its own", load_pipeline, str(path))
    change(path, "model_index.json", _class_name="FuturePipeline")
    refused(OptionError, r"of the class FuturePipeline, which diffusers .* does not have", load_pipeline, str(path))


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        ("DDPMScheduler", {"prediction_type": "score"}, r"DDPMScheduler cannot be mapped: its field prediction_type is 'score'"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "its field invert_sigmas is True"),
        *((name, {}, f"The scheduler {name} cannot be mapped") for name in ("CMStochasticIterativeScheduler", "LCMScheduler")),
    ],
)
def test_schedulers_that_cannot_be_mapped(cls, options, message, tmp_path):
    refused(OptionError, message, load_pipeline, str(tiny_pipelines.plain(tmp_path / "plain", getattr(diffusers, cls)(**options))))


@pytest.mark.full
def test_networks_that_cannot_be_mapped(tmp_path):
    path = tiny_pipelines.text(tmp_path / "timed", time_cond_proj_dim=8)
    refused(OptionError, "UNet2DConditionModel cannot be mapped: its field time_cond_proj_dim is 8", load_pipeline, str(path))
    path = tiny_pipelines.classes(tmp_path / "identity", num_class_embeds=None, class_embed_type="timestep")
    refused(OptionError, "UNet2DModel cannot be mapped: its field class_embed_type is 'timestep'", load_pipeline, str(path))
    unsized = change(path, "unet/config.json", class_embed_type=None, sample_size=None)
    refused(OptionError, "UNet2DModel does not say the size of its points", load_pipeline, str(unsized))
    line = tiny_pipelines.seeded(diffusers.UNet1DModel, sample_size=16, block_out_channels=(8, 8, 8), norm_num_groups=4)
    diffusers.DDPMPipeline(line, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "line")
    refused(OptionError, "is a UNet1DModel; known are UNet2DModel", load_pipeline, str(tmp_path / "line"))


@pytest.mark.full
def test_conditions_that_a_pipeline_does_not_take(folder, text, classes):
    plain = str(tiny_pipelines.plain(folder / "plain"))
    for call, error, message in (
        (lambda: load_pipeline(plain, prompt="a dog"), ExpressionError, "plain takes no prompt: it has no text encoder"),
        (lambda: classes.concept("a dog"), ExpressionError, "takes no prompt: it has no text encoder, and takes `class_label=`"),
        (lambda: load_pipeline(plain, class_label=3), ExpressionError, "takes no class_label"),
        (lambda: text.concept(class_label=3), ExpressionError, "takes no class_label"),
        (lambda: load_pipeline(plain, unconditional=3), OptionError, "takes no conditions"),
        (lambda: text.concept(prompt=3), OptionError, "A prompt must be a text, got 3"),
    ):
        refused(error, message, call)


@pytest.mark.parametrize("label", [5, 2.0, torch.tensor([1, 7])], ids=str)
def test_classes_that_do_not_exist(label, classes):
    for call in (
        lambda: classes.concept(class_label=label),
        lambda: classes.given(class_label=label).with_gradient(torch.zeros(2, 3, 8, 8), sigma=1.0),
        lambda: load_pipeline(classes.config()["location"], unconditional=label),
    ):
        refused(OptionError, "class_label must be a whole number from 0 to 4", call)


def test_other_options(folder, classes):
    location = classes.config()["location"]
    refused(OptionError, r"dtype must be one of .*float32", load_pipeline, location, dtype="int8")
    assert next(load_pipeline(location, dtype="bfloat16").parameters()).dtype == torch.bfloat16
    refused(FileFormatError, "no such modeling files", load_pipeline, location, variant="fp16")


def test_without_diffusers_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    for load in (load_pipeline, lambda location: ce.get("energy", "diffusers", location=location)):
        refused(ExtraNotInstalled, r"composable-energy\[diffusers\]", load, str(tmp_path))
