r"""Schedulers of diffusers as noise schedules and parametrisations.

A scheduler is a process of training together with a sampler. Only the process counts here: fields that steer the sampler, such as
`use_karras_sigmas` or `clip_sample`, are not read.

| scheduler | schedule | parametrisation, by `prediction_type` |
|---|---|---|
| with `alphas_cumprod`: DDPM, DDIM, PNDM, DPM-Solver, Euler, Heun, UniPC, ... | `vp-discrete` | `epsilon`, `sample`, `v_prediction` |
| the same with `use_flow_sigmas`; flow match Euler and Heun | `flow` | `flow_prediction` |
| EDM Euler, EDM DPM-Solver | `edm` | `epsilon` |
| score SDE VE | `ve` | the score |
"""

from typing import Any

import torch

from composable_energy.errors import OptionError
from composable_energy_diffusion.pipelines.files import check_fields
from composable_energy_diffusion.schedules import EDM, DiscreteVP, RectifiedFlow, Schedule, VarianceExploding

_OUTPUTS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
_FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_EXPLODING = ("ScoreSdeVeScheduler",)


def process_of(scheduler: Any) -> tuple[Schedule, str]:
    """Returns the noise schedule and the parametrisation of a model that was trained with a scheduler of diffusers."""
    name, config = type(scheduler).__name__, scheduler.config
    if name in _FLOWS:
        check_fields(scheduler, invert_sigmas=False, stochastic_sampling=False)
        return RectifiedFlow(time_scale=float(config["num_train_timesteps"])), "flow"
    if name in _EDM:
        check_fields(scheduler, prediction_type="epsilon")
        return EDM(config["sigma_data"], config["sigma_min"], config["sigma_max"]), "edm"
    if name in _EXPLODING:
        return VarianceExploding(config["sigma_min"], config["sigma_max"]), "score"
    if not isinstance(getattr(scheduler, "alphas_cumprod", None), torch.Tensor):
        raise OptionError(
            f"The scheduler {name} cannot be mapped to a noise schedule. Known are those with `alphas_cumprod`, such as DDPMScheduler, and "
            f"{', '.join((*_FLOWS, *_EDM, *_EXPLODING))}. For another process, pass the network to ce.get('energy', 'diffusion', ...)."
        )
    if config.get("use_flow_sigmas"):
        check_fields(scheduler, prediction_type="flow_prediction")
        return RectifiedFlow(time_scale=float(config["num_train_timesteps"])), "flow"
    check_fields(scheduler, timestep_type="discrete")
    output = config.get("prediction_type", "epsilon")
    if output not in _OUTPUTS:
        raise OptionError(f"{name} cannot be mapped: its field prediction_type is {output!r}; known: {', '.join(_OUTPUTS)}.")
    return DiscreteVP(_betas(name, scheduler.alphas_cumprod)), _OUTPUTS[output]


def _betas(name: str, signal: torch.Tensor) -> tuple[float, ...]:
    """Returns the rates of a process from its products $a_k^2$, which also contain rescaled and shifted schedules."""
    signal = signal.double().cpu()
    signal = signal[signal > 0]  # a last step without signal has no finite noise level
    before = torch.cat([signal.new_ones(1), signal[:-1]])
    betas = 1 - signal / before
    if len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
        raise OptionError(f"The scheduler {name} cannot be mapped: its `alphas_cumprod` do not fall from step to step.")
    return tuple(betas.tolist())
