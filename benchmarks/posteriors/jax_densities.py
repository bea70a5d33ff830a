"""The log densities of the targets in JAX: functions of one point of shape $(d,)$, written a second time so that both check each other."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.posteriors import hierarchies
from benchmarks.posteriors.regressions import breast_cancer_data, diabetes_data, horseshoe_data, logistic_data, poisson_data
from benchmarks.posteriors.shapes import TORUS_MODES, TORUS_SHARES

Array = Any
Density = Callable[[Array], Array]


def schools(centered: bool) -> Density:
    effects, errors = (jnp.array(values) for values in hierarchies.SCHOOLS)

    def log_density(x: Array) -> Array:
        mean, tau, rest = x[0], jnp.exp(x[1]), x[2:]
        theta = rest if centered else mean + tau * rest
        group = -jnp.sum(((theta - mean) / tau) ** 2) / 2 - (8 * x[1] if centered else 0.0)
        prior = -((mean / 5) ** 2) / 2 - jnp.log(5.0) - jnp.log(1 + (tau / 5) ** 2) + x[1]
        return prior + group - jnp.sum(((effects - theta) / errors) ** 2 / 2 + jnp.log(errors))

    return log_density


def logistic(data: tuple[Array, Array]) -> Density:
    features, labels = (jnp.asarray(values) for values in data)

    def log_density(x: Array) -> Array:
        logits = x[0] + features @ x[1:]
        chosen = jnp.where(labels > 0, jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits))
        return chosen.sum() - jnp.sum(x**2) / (2 * 2.5**2) - 31 * jnp.log(2.5)

    return log_density


def poisson() -> Density:
    features, counts = (jnp.asarray(values) for values in poisson_data())

    def log_density(x: Array) -> Array:
        rates = x[0] + features @ x[1:]
        return counts @ rates - jnp.exp(rates).sum() - x @ x / 2

    return log_density


def horseshoe() -> Density:
    features, outcomes = (jnp.asarray(values) for values in horseshoe_data())

    def log_density(x: Array) -> Array:
        z, local, tau, sigma = x[:12], jnp.exp(x[12:24]), jnp.exp(x[24]), jnp.exp(x[25])
        shrunk = local / jnp.sqrt(1 + (tau * local / 2) ** 2)
        residuals = outcomes - features @ (z * tau * shrunk)
        prior = -z @ z / 2 + jnp.sum(x[12:24] - jnp.log(1 + local**2)) + x[24] - jnp.log(0.1) - jnp.log(1 + (tau / 0.1) ** 2)
        return prior - sigma**2 / 2 + x[25] - residuals @ residuals / (2 * sigma**2) - 60 * x[25]

    return log_density


def diabetes() -> Density:
    features, outcomes = (jnp.asarray(values) for values in diabetes_data())

    def log_density(x: Array) -> Array:
        sigma, nu = jnp.exp(x[11]), jnp.exp(x[12])
        errors = jax.scipy.stats.t.logpdf(outcomes, nu, x[0] + features @ x[1:11], sigma)
        prior = -x[:11] @ x[:11] / 2 + x[11] - sigma**2 / 2 + jax.scipy.stats.gamma.logpdf(nu, 2.0, scale=10.0) + x[12]
        return prior + errors.sum()

    return log_density


def gaussian_process() -> Density:
    places, values = (jnp.asarray(array) for array in hierarchies.gp_data())

    def log_density(x: Array) -> Array:
        length, amplitude, noise = jnp.exp(x)
        kernel = amplitude**2 * jnp.exp(-((places[:, None] - places[None]) ** 2) / (2 * length**2))
        factor = jnp.linalg.cholesky(kernel + (noise**2 + 1e-6) * jnp.eye(20))
        white = jax.scipy.linalg.solve_triangular(factor, values, lower=True)
        prior = x.sum() - length**2 / 2 - amplitude**2 / 8 - noise**2 / 2
        return prior - white @ white / 2 - jnp.log(jnp.diag(factor)).sum()

    return log_density


def mixture() -> Density:
    numbers = jnp.asarray(hierarchies.mixture_data())

    def log_density(x: Array) -> Array:
        first, second = x[0], x[0] + jnp.exp(x[1])
        sds, weight = jnp.exp(x[2:4]), jax.nn.sigmoid(x[4])
        low = weight * jnp.exp(-(((numbers - first) / sds[0]) ** 2) / 2) / sds[0]
        high = (1 - weight) * jnp.exp(-(((numbers - second) / sds[1]) ** 2) / 2) / sds[1]
        prior = -(first**2 + second**2) / 8 - 2 * jnp.log(2.0) + x[1] - sds @ sds / 2 + x[2] + x[3]
        return jnp.log(low + high).sum() + prior + 5 * (jnp.log(weight) + jnp.log(1 - weight))

    return log_density


def lotka_volterra() -> Density:
    observed, h = jnp.asarray(hierarchies.populations()), hierarchies.SPAN / hierarchies.STEPS
    center, spread = jnp.log(jnp.array(hierarchies.CENTER)), jnp.array(hierarchies.SPREAD)

    def log_density(x: Array) -> Array:
        birth, predation, death, growth, prey, predators = jnp.exp(center + spread * x[:6])
        log_noise = hierarchies.LOG_NOISE[0] + hierarchies.LOG_NOISE[1] * x[6]

        def rates(y: Array) -> Array:
            return jnp.array([birth - predation * jnp.exp(y[1]), growth * jnp.exp(y[0]) - death])

        def step(y: Array, _: None) -> tuple[Array, Array]:  # compiles sooner than a loop in Python
            a = rates(y)
            b = rates(y + h * a / 2)
            c = rates(y + h * b / 2)
            y = y + h * (a + 2 * b + 2 * c + rates(y + h * c)) / 6
            return y, y

        path = jax.lax.scan(step, jnp.log(jnp.array([prey, predators])), None, hierarchies.STEPS)[1][
            hierarchies.BETWEEN - 1 :: hierarchies.BETWEEN
        ]
        return -x @ x / 2 - jnp.sum((observed - path) ** 2) / (2 * jnp.exp(2 * log_noise)) - 20 * log_noise

    return log_density


def dirichlet_multinomial() -> Density:
    counts = jnp.asarray(hierarchies.counts_data())

    def log_density(x: Array) -> Array:
        lgamma = jax.scipy.special.gammaln
        shares, total = jax.nn.softmax(jnp.append(x[1:], 0.0)), jnp.exp(x[0])
        alpha = total * shares
        groups = lgamma(total) - lgamma(total + counts.sum(1)) + jnp.sum(lgamma(alpha + counts) - lgamma(alpha), 1)
        return groups.sum() + jnp.log(shares).sum() - (x[0] - 2) ** 2 / 2

    return log_density


def banana(pairs: int, width: float) -> Density:
    def log_density(x: Array) -> Array:
        a, b = x[:pairs], x[pairs:]
        return -a @ a / 2 - jnp.sum((b - a**2) ** 2) / (2 * width**2) - pairs * jnp.log(width)

    return log_density


def torus() -> Density:
    modes, shares = jnp.array(TORUS_MODES), jnp.array(TORUS_SHARES)

    def log_density(x: Array) -> Array:
        angles = jnp.arctan2(x[1::2], x[::2])
        radius = jnp.sqrt(x[::2] ** 2 + x[1::2] ** 2)
        waves = 2 * jnp.cos(angles - modes).sum(1)
        return jax.scipy.special.logsumexp(waves, b=shares) - jnp.sum((radius - 1) ** 2) / 0.08

    return log_density


def funnel(x: Array) -> Array:
    scale = jnp.exp(x[0] / 2)
    return -((x[0] / 3) ** 2) / 2 - jnp.log(3.0) - jnp.sum((x[1:] / scale) ** 2) / 2 - 9 * jnp.log(scale)


def far_modes(x: Array) -> Array:
    angle = jnp.arange(8) * jnp.pi / 4
    means = 10 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)
    return jax.scipy.special.logsumexp(-jnp.sum((x - means) ** 2, 1) / (2 * 0.5**2))


_DENSITIES: Mapping[str, Callable[[], Density]] = {
    "schools": lambda: schools(False),
    "schools-centered": lambda: schools(True),
    "logistic": lambda: logistic(logistic_data()),
    "poisson": poisson,
    "gp": gaussian_process,
    "mixture": mixture,
    "horseshoe": horseshoe,
    "breast-cancer": lambda: logistic(breast_cancer_data()),
    "diabetes": diabetes,
    "lotka-volterra": lotka_volterra,
    "dirichlet": dirichlet_multinomial,
    "banana-2": lambda: banana(1, 0.5),
    "banana-10": lambda: banana(5, 0.5),
    "torus": torus,
    "funnel": lambda: funnel,
    "modes": lambda: far_modes,
}


def jax_density(name: str) -> Density:
    """Returns the log density of a target by name."""
    return _DENSITIES[name]()
