"""The options of samplers as settings of recipes."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter
from typing import Any, Optional

from composable_energy import get
from composable_energy.errors import OptionError
from composable_energy_training.setting_types import get_parameters


def setting(name: str, annotation: Any) -> Parameter:
    """Returns a setting of a type, without a default."""
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation)


def sampler_parameters(name: str) -> dict[str, Parameter]:
    """Returns the options of a sampler, each optional; for Langevin also the step and the noise of papers."""
    options = get_parameters(get("sampler", name))
    papers = {"step": float, "noise": float} if {"step_size", "temperature"} <= options.keys() else {}
    types = {**papers, **{key: option.annotation for key, option in options.items()}}
    return {"sampler": setting("sampler", str), **{key: setting(key, Optional[kind]) for key, kind in types.items()}}  # noqa: UP045


def sampler_options(table: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name of a sampler and its options; `step` and `noise` of a paper become a step size and a temperature."""
    options = {key: value for key, value in table.items() if value is not None}
    name = options.pop("sampler", "langevin")
    if "step" in options or "noise" in options:
        both = {"step", "noise"} <= options.keys()
        if not both or {"step_size", "temperature"} & options.keys():
            raise OptionError(f"Set either step and noise of a sampler, or step_size and temperature; got {', '.join(options)}.")
        step, noise = options.pop("step"), options.pop("noise")
        if not step > 0:
            raise OptionError(f"step must be positive, got {step!r}.")
        options["step_size"], options["temperature"] = 2 * step, noise**2 / (2 * step)
    return name, options
