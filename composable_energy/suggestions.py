"""Suggestions in error messages: the nearest known names, or all names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_SHOWN = 20
_ELSEWHERE = {  # names that other libraries and papers use, by the names here
    "adam descent gradient-descent map optimize": ("descent",),
    "ais annealed-importance-sampling particle-filter": ("smc",),
    "ddim ddpm dpm euler euler-maruyama heun": ("sde", "ode"),
    "gibbs metropolis metropolis-hastings mh random-walk rwm rwmh slice": ("mala", "chees"),
    "hamiltonian hamiltonian-monte-carlo hybrid-monte-carlo": ("hmc", "chees"),
    "kinetic-langevin sghmc": ("underdamped",),
    "no-u-turn no-u-turn-sampler nuts": ("chees",),
    "parallel-tempering pt replica-exchange": ("tempering",),
    "langevin-dynamics sgld ula unadjusted-langevin": ("langevin",),
    "epsilon eta learning-rate lr": ("step_size",),
    "max-iter n-iter n-steps num-iterations num-steps": ("steps",),
    "chains n-chains n-samples num-chains num-samples size": ("shape",),
    "num-warmup tune warmup-steps": ("burn_in",),
    "leapfrog-steps n-leapfrog num-leapfrog num-leapfrog-steps": ("leapfrogs",),
    "initial-state start x0": ("init",),
    "generator key random-seed random-state rng": ("seed",),
    "thin thinning": ("trace",),
}


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Returns the known names that are nearest to a name, at most `count`.

    The case of letters does not count, nor `-` in place of `_`. A name that others use stands for the one here; else a name may be near to
    one word of a known one, as `ring` to `plane/ring`.
    """
    forms = {_form(one): one for one in known}
    wanted = _form(name)
    here = [one for others, names in _ELSEWHERE.items() if wanted in others.split() for one in names]
    if wanted in forms or here:
        return [forms[one] for one in (wanted, *map(_form, here)) if one in forms][:count]
    close = difflib.get_close_matches(wanted, forms, n=count, cutoff=0.6)
    if not close:
        words = {word: form for form in forms for word in re.split(r"[-/:=]", form)}
        close = dict.fromkeys(words[word] for word in difflib.get_close_matches(wanted, words, n=count, cutoff=0.8))
    return [forms[form] for form in close]


def _form(name: str) -> str:
    return name.casefold().replace("_", "-")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the sentence " Did you mean ...?" with the nearest names; empty if no name is near."""
    close = nearest_names(name, known)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def listed(known: Iterable[str]) -> str:
    """Returns a sentence that lists the known names."""
    known = list(known)
    shown = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
    return f" Known: {shown}." if known else " None is installed."
