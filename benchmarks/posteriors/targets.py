"""All targets of the suite by name."""

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.posteriors.hierarchies import dirichlet_multinomial, eight_schools, gaussian_process, lotka_volterra, mixture
from benchmarks.posteriors.regressions import breast_cancer_data, diabetes, horseshoe, logistic, logistic_data, poisson
from benchmarks.posteriors.shapes import banana, far_modes, funnel, torus
from benchmarks.posteriors.target import Target

TARGETS: Mapping[str, Callable[[], Target]] = {
    "schools": partial(eight_schools, centered=False),
    "schools-centered": partial(eight_schools, centered=True),
    "logistic": lambda: logistic("logistic", "logistic regression", logistic_data()),
    "poisson": poisson,
    "gp": gaussian_process,
    "mixture": mixture,
    "horseshoe": horseshoe,
    "breast-cancer": lambda: logistic("breast-cancer", "breast cancer, logistic", breast_cancer_data()),
    "diabetes": diabetes,
    "lotka-volterra": lotka_volterra,
    "dirichlet": dirichlet_multinomial,
    "banana-2": partial(banana, 1, 0.5),
    "banana-10": partial(banana, 5, 0.5),
    "torus": torus,
    "funnel": funnel,
    "modes": far_modes,
}


def get_target(name: str) -> Target:
    if name not in TARGETS:
        raise ValueError(f"There is no target {name!r}; the targets are {', '.join(TARGETS)}.")
    return TARGETS[name]()
