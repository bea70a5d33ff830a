r"""Reads pipelines of diffusers from a folder or the Hugging Face hub, safetensors only and no code of theirs, and their schedulers.

A scheduler is a process of training together with a sampler. Only the process counts here, as a noise schedule and a parametrisation:
fields that steer the sampler, such as `use_karras_sigmas` or `clip_sample`, are not read.

| scheduler | schedule | parametrisation, by `prediction_type` |
|---|---|---|
| with `alphas_cumprod`: DDPM, DDIM, PNDM, DPM-Solver, Euler, Heun, UniPC, ... | `vp-discrete` | `epsilon`, `sample`, `v_prediction` |
| the same with `use_flow_sigmas`; flow match Euler and Heun | `flow` | `flow_prediction` |
| EDM Euler, EDM DPM-Solver | `edm` | `epsilon` |
| score SDE VE | `ve` | the score |
"""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import Handler
from pathlib import Path
from typing import Any

import torch

from composable_energy.errors import FileFormatError, OptionError
from composable_energy.files import exists, expanded, is_file
from composable_energy.options import check_choice, import_extra
from composable_energy_diffusion.schedules import EDM, DiscreteVP, RectifiedFlow, Schedule, VarianceExploding

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers", None)
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


def read_pipeline(location: str, *, revision: str | None = None, variant: str | None = None, dtype: str = "float32") -> Any:
    """Returns a pipeline of diffusers."""
    diffusers = import_extra("diffusers", "diffusers")
    precision = DTYPES[check_choice("dtype", dtype, DTYPES)]
    place = str(expanded(location)) if exists(expanded(location)) else location
    index = _read_index(diffusers, place, revision)
    options: dict[str, Any] = {name: None for name in _UNUSED if name in index}
    options |= {} if importlib.util.find_spec("accelerate") else {"low_cpu_mem_usage": False}  # the default warns
    try:
        with _no_progress(diffusers.utils.logging) as told:
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                place, revision=revision, variant=variant, dtype=precision, use_safetensors=True, **options
            )
        if drawn := [text for text in told if "newly initialized" in text]:  # random numbers, of which diffusers only warns
            raise ValueError(drawn[0])
        return pipeline
    except Exception as error:  # diffusers raises OSError, ValueError, TypeError, ImportError and others for damaged files
        raise FileFormatError(
            f"The pipeline {place} cannot be read: {_first_lines(error)} Weights must be safetensors; a pipeline with pickled ones is "
            "converted by `pipe.save_pretrained(folder, safe_serialization=True)` where you trust it."
        ) from error


def _read_index(diffusers: Any, place: str, revision: str | None) -> Mapping[str, Any]:
    """Returns `model_index.json`, if all parts that it names are of diffusers and transformers."""
    folder = Path(place)
    local = folder.is_absolute() or place.startswith((".", "~")) or exists(folder)
    if local and not is_file(folder / _INDEX):
        raise FileFormatError(
            f"{place} is no pipeline of diffusers: there is no {_INDEX}. Give the folder that `save_pretrained` of a pipeline wrote, "
            "or `owner/name` of the hub; for a network alone use ce.get('energy', 'diffusion', model=...)."
        )
    try:
        index = dict(diffusers.DiffusionPipeline.load_config(place, revision=revision))
    except Exception as error:
        raise FileFormatError(f"{place} is no pipeline of diffusers: {_first_lines(error)}") from error
    name = index.get("_class_name")
    parts = {part: value[0] for part, value in index.items() if isinstance(value, list | tuple) and len(value) == 2}
    foreign = {part: library for part, library in parts.items() if library not in _LIBRARIES and part not in _UNUSED}
    if not isinstance(name, str) or foreign:
        what = f"its parts {foreign}" if foreign else f"its class {name!r}"
        raise OptionError(f"{place} needs code of its own ({what}), which is never run; known are pipelines of diffusers and transformers.")
    if not isinstance(getattr(diffusers, name, None), type):
        raise OptionError(f"{place} is a pipeline of the class {name}, which diffusers {diffusers.__version__} does not have.")
    return index


def check_fields(part: Any, **expected: Any) -> None:
    """Raises `OptionError` if a field of the configuration of a part has another value than the one that is known."""
    for field, value in expected.items():
        if (found := part.config.get(field, value)) != value:
            raise OptionError(f"{type(part).__name__} cannot be mapped: its field {field} is {found!r}; known: {value!r}.")


def _first_lines(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400].rstrip('.')}."


@contextmanager
def _no_progress(logging: Any) -> Iterator[list[str]]:
    """A context without the progress bars of diffusers, with the list of what it logs; restores them on exit."""
    before, told, handler = logging.is_progress_bar_enabled(), list[str](), Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.disable_progress_bar()
    logging.add_handler(handler)
    try:
        yield told
    finally:
        logging.remove_handler(handler)
        if before:
            logging.enable_progress_bar()


_OUTPUTS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
_FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_EXPLODING = ("ScoreSdeVeScheduler",)


def process_of(scheduler: Any) -> tuple[Schedule, str]:
    """Returns the noise schedule and the parametrisation of a model by its scheduler. Networks for LCM and TCD have no score."""
    name, config = type(scheduler).__name__, scheduler.config
    if name in _FLOWS:
        check_fields(scheduler, invert_sigmas=False, stochastic_sampling=False)
        return RectifiedFlow(time_scale=float(config["num_train_timesteps"])), "flow"
    if name in _EDM:
        check_fields(scheduler, prediction_type="epsilon")
        return EDM(config["sigma_data"], config["sigma_min"], config["sigma_max"]), "edm"
    if name in _EXPLODING:
        return VarianceExploding(config["sigma_min"], config["sigma_max"]), "score"
    if name in ("LCMScheduler", "TCDScheduler") or not isinstance(getattr(scheduler, "alphas_cumprod", None), torch.Tensor):
        raise OptionError(
            f"The scheduler {name} cannot be mapped to a noise schedule. Known are those of scores with `alphas_cumprod`, as DDPM's, and "
            f"{', '.join((*_FLOWS, *_EDM, *_EXPLODING))}. For another process, pass the network to ce.get('energy', 'diffusion', ...)."
        )
    if config.get("use_flow_sigmas"):
        check_fields(scheduler, prediction_type="flow_prediction")
        return RectifiedFlow(time_scale=float(config["num_train_timesteps"])), "flow"
    check_fields(scheduler, timestep_type="discrete")
    if (output := config.get("prediction_type", "epsilon")) not in _OUTPUTS:
        raise OptionError(f"{name} cannot be mapped: its field prediction_type is {output!r}; known: {', '.join(_OUTPUTS)}.")
    return DiscreteVP(_betas(scheduler)), _OUTPUTS[output]


def _betas(scheduler: Any) -> tuple[float, ...]:
    """Returns the rates of a process from its products $a_k^2$, which also contain rescaled and shifted schedules."""
    signal = scheduler.alphas_cumprod[: -1 if scheduler.config.get("rescale_betas_zero_snr") else None].double().cpu()
    signal = signal[signal > 0]  # a last step without signal has no finite noise level; some schedulers replace its 0
    betas = 1 - signal / torch.cat([signal.new_ones(1), signal[:-1]])
    if len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
        raise OptionError(f"The scheduler {type(scheduler).__name__} cannot be mapped: its `alphas_cumprod` do not fall from step to step.")
    return tuple(betas.tolist())
