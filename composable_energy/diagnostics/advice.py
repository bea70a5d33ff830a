"""The class of warnings, and advice that depends on the sampler and on what was done already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from composable_energy.sampling.sampler import Sampler
    from composable_energy.sampling.trace import Trace


class SamplingWarning(UserWarning):
    """A warning about a run. `trace.warnings()` returns all; `sample` emits those that are clear without a trace.

    Args:
        kind: `"start"`, `"diverged"`, `"errors"`, `"formula"`, `"acceptance"`, `"constant"`, `"stuck"`, `"drift"`, `"r_hat"`, `"ess"`,
            `"bias"`, `"branch"`, `"families"`, `"trips"`, `"weak"`, `"precise"` or `"unchecked"`.
        seen: The observation, with figures.
        advice: What to do.
    """

    def __init__(self, kind: str, seen: str, advice: str) -> None:
        super().__init__(kind, seen, advice)
        self.kind, self.seen, self.advice = kind, seen, advice

    def __str__(self) -> str:
        return f"{self.kind}: {self.seen} {self.advice}"


def length_of(sampler: Sampler) -> str:
    """Returns the name of the sampler's step, with its value where it is known."""
    value = getattr(sampler, "step_size", None)
    return f"`step_size` than {value:.3g}" if isinstance(value, float) else "step"


def advise_shorter_step(trace: Trace) -> str:
    """Returns the advice for steps that are too long; it depends on whether the step was tuned, and on the burn-in."""
    burn_in = f"take {longer_burn_in(trace)}"
    if is_tunable(trace):
        return f"Take a smaller {length_of(trace.sampler)}, or leave it out so that it is tuned; {burn_in}."
    if not trace.tuned:
        return f"Take a smaller {length_of(trace.sampler)}; {burn_in}."
    ways = {
        "step_size": f"a smaller {length_of(trace.sampler)}",
        "acceptance": "a higher goal of `acceptance`",
        "tuning_steps": "more `tuning_steps`",
    }
    return (
        "The step was tuned on pilot chains, where the energy is less narrow than here: start where the density is (`init=`), "
        f"{burn_in}, or take {' or '.join(way for option, way in ways.items() if has_option(trace.sampler, option))}."
    )


def longer_burn_in(trace: Trace) -> str:
    """Returns the advice to take more steps before the draws."""
    return f"a longer `burn_in` than {trace.burn_in}" if trace.burn_in else "a `burn_in`"


def is_tunable(trace: Trace) -> bool:
    """Returns whether the step size was given, and would be tuned otherwise."""
    return "step_size" not in trace.tuned and any(f.name == "step_size" and f.default is None for f in _options(trace.sampler))


def has_option(sampler: Sampler, option: str) -> bool:
    """Returns whether a sampler has an option."""
    return any(f.name == option for f in _options(sampler))


def or_use(sampler: Sampler, text: str, *names: str) -> str:
    """Returns a text with names of samplers other than the one used; empty if there is none."""
    others = [f"`{name}`" for name in names if name != type(sampler).__name__.lower()]
    return text.format(", ".join(others)) if others else ""


def list_ids(ids: Sequence[int]) -> str:
    """Returns the number of some chains, and the first ids."""
    return f"{len(ids)} (chains {', '.join(map(str, ids[:5]))}{', ...' if len(ids) > 5 else ''})"


def _options(sampler: Sampler) -> Sequence[Field[Any]]:
    return fields(sampler) if is_dataclass(sampler) else ()
