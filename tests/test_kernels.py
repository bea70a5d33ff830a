"""The step of samplers: its formula, which implementation takes it, samplers that are made of it, and what it costs."""

import logging
import math
import tracemalloc
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import OptionError, PluginNotFound, ShapeError
from composable_energy.sampling import Noise, State, langevin_step, underdamped_step
from composable_energy.testing import Gaussian
from composable_energy_mcmc import HMC, MALA, ChEES, Langevin, Underdamped
from composable_energy_mcmc.mala import langevin_log_ratio
from composable_energy_mcmc.metric import Metric
from tests.factories import Operations, quadratic
from tests.recorded_kernel import SWITCH, Recorded, points
from tests.refusals import refusals, refused

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
QUADRATIC = ce.as_energy(quadratic, event_shape=(2,))
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}
"""Operations whose result Python gets, so that it waits for the device."""


@pytest.mark.parametrize("kind", ["numpy", "philox"])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_the_step_is_its_formula(kind, gradient, keep):
    x, p, g = points(7, 2, 5, count=3)
    noise, start = Noise(3, range(5, 12), step=2, kind=kind), x.clone()
    force, xi = g if gradient else torch.zeros_like(x), noise.normal(x, 4)
    options = {"noise": noise, "drift": 0.3, "scale": 0.7, "keep": keep, "stream": 4}
    y = langevin_step(x, g if gradient else None, box=(-1.0, 1.0), **options)
    torch.testing.assert_close(y, (keep * x - 0.3 * force + 0.7 * xi).clamp(-1, 1), rtol=0, atol=1e-14)
    kicked = p - 0.3 * g
    expected = keep * kicked + 0.7 * xi
    y, q = underdamped_step(x, g, p, move=0.2, **options)
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(y, x + 0.2 * kicked + 0.2 * expected, rtol=0, atol=1e-14)
    assert torch.equal(x, start)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    x, p, g = points(40, 3, count=3, dtype=dtype)
    options = {"noise": Noise(0, range(40)), "drift": 0.3, "scale": 0.7, "keep": 0.9, "move": 0.2}
    got, expected = underdamped_step(x, g, p, **options), underdamped_step(x.float(), g.float(), p.float(), **options)
    assert all(torch.equal(a, b.to(dtype)) and a.dtype == dtype for a, b in zip(got, expected, strict=True))


def test_a_step_can_be_differentiated(recorded, force):
    """Training by short chains does; no kernel can, so torch takes it, or says why the one that was asked for cannot."""
    x, g = (value.requires_grad_() for value in points(3, 2, count=2))
    noise = Noise(0, range(3))
    with pytest.raises(OptionError, match="a gradient of the step itself"):
        langevin_step(x.float(), g.float(), noise=Noise(0, range(3), kind="philox"), drift=0.25, scale=1.0)
    force("torch")
    by_x, by_g = torch.autograd.grad(langevin_step(x, g, noise=noise, drift=0.25, scale=1.0, keep=0.5).sum(), (x, g))
    assert torch.equal(by_x, torch.full_like(x, 0.5)) and torch.equal(by_g, torch.full_like(x, -0.25))


test_what_does_not_fit_is_said = refusals(
    (torch.zeros(3, 1), torch.zeros(3, 2), 3, ShapeError, r"A gradient has the shape \(3, 2\) of the points, got \(3, 1\)"),
    (torch.zeros(3, 2), torch.zeros(2), 3, ShapeError, r"A momentum has the shape \(3, 2\) of the points, got \(2,\)"),
    (torch.zeros(3, 2), torch.zeros(3, 2), 2, ShapeError, "noise of 2 chains, got 3 points"),
    (torch.zeros(3, 2), None, 3, OptionError, "takes a momentum, got None; a step without one is `langevin_step`"),
    call=lambda gradient, momentum, chains: underdamped_step(
        torch.zeros(3, 2), gradient, momentum, noise=Noise(0, range(chains)), scale=1.0, drift=0.1, keep=1.0, move=0.1
    ),
)


class TestChoice:
    """Which implementation runs."""

    x, g = points(4, 3, count=2, dtype=torch.float32)
    noise = Noise(5, range(10, 14), step=2, kind="philox")

    def step(self, x=None, g=None, noise=None, **options):
        x, g = self.x if x is None else x, self.g if g is None else g
        return langevin_step(x, g, noise=noise or self.noise, drift=0.1, scale=0.5, **options)

    def test_the_environment_names_a_kernel_or_torch(self, recorded, force):
        y = self.step()
        assert recorded.calls == [self.noise]
        force("torch")
        assert torch.equal(self.step(), y)
        force("")
        assert torch.equal(self.step(), y) and len(recorded.calls) == 1

    def test_what_stands_in_another_order_is_put_in_order(self, recorded):
        x, g = torch.randn(3, 4).T, torch.randn(1, 3).expand(4, 3)
        assert torch.equal(self.step(x, g), self.step(x.contiguous(), g.contiguous()))
        images = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
        assert torch.equal(self.step(images, images), self.step(images.contiguous(), images.contiguous()))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"noise": Noise(0, range(4))}, "it draws Philox noise, and the noise is 'numpy'"),
            ({"noise": Noise(0, (1, 2, 3, 9), kind="philox")}, "the ids of the chains are not consecutive"),
            ({"x": x.double(), "g": x.double()}, "it takes no float64"),
            ({"g": g.double()}, "differ in dtype or device"),
        ],
    )
    def test_a_kernel_that_was_asked_for_and_cannot_run_is_reported(self, recorded, options, message):
        refused(OptionError, rf"{SWITCH} names a kernel which cannot run here \(recorded: .*{message}.*Unset it", self.step, **options)

    def test_unknown_kernels_are_reported(self, force):
        force("tritn")
        refused(PluginNotFound, r"No plug-in offers the kernel 'tritn'\. Did you mean 'triton'", self.step)

    def test_on_another_device_the_first_kernel_runs_that_does_not_refuse_and_torch_says_once_why(self, force, monkeypatch, caplog):
        force("")
        monkeypatch.setattr(Recorded, "langevin_step", lambda kernel, *given: kernel.calls.append(given))
        kernel, meta = Recorded(), torch.zeros(4, 3, device="meta")
        with ce.register("kernel", "recorded", lambda: kernel), caplog.at_level(logging.WARNING, "composable_energy.kernels"):
            self.step(meta, meta)
            assert len(kernel.calls) == 1
            for _ in range(3):
                self.step(meta.double(), meta.double())
        assert len(kernel.calls) == 1
        told = [record.message for record in caplog.records]
        assert sum("run in torch, without a fused kernel (recorded: it takes no float64" in line for line in told) == 1


F64 = torch.float64


@pytest.mark.parametrize(
    "sampler",
    [Langevin(0.1), Langevin(0.1, metric=torch.ones(3)), MALA(0.1), Underdamped(0.1), HMC(0.2, leapfrogs=2), ChEES(0.2, 0.5)],
)
def test_every_sampler_takes_its_noise_by_the_step(sampler, recorded):
    target = Gaussian(torch.zeros(3))
    noise = Noise(1, range(5), kind="philox")
    with torch.no_grad():
        state = sampler.init(target, torch.zeros(5, 3), noise)
        for step in range(1, 5):
            state, _ = sampler.step(target, state, noise.at(step))
    assert [noise.step for noise in recorded.calls] == [0] * isinstance(sampler, Underdamped) + [1, 2, 3, 4]
    assert {(noise.seed, noise.chains, noise.kind) for noise in recorded.calls} == {(1, range(5), "philox")}


@pytest.mark.parametrize(("dtype", "spread"), [(torch.float32, 1e3), (torch.bfloat16, 1.0), (F64, 1e3)])
def test_malas_ratio_is_that_of_the_step_that_was_taken(dtype, spread):
    """Beside float64 from the same rounded points; where they were rounded, a ratio made of the noise is that of another step."""
    step_size, generator = 0.04, torch.Generator().manual_seed(0)
    x, xi, here = (torch.randn(2000, 12, generator=generator, dtype=F64) for _ in range(3))
    x, here = (spread * x).to(dtype), here.to(dtype)
    y = (x.to(F64) - step_size / 2 * here.to(F64) + math.sqrt(step_size) * xi).to(dtype)
    there = (here.to(F64) + 0.1 * xi).to(dtype)
    energies = torch.zeros(2000, dtype=torch.promote_types(dtype, torch.float32))
    got = langevin_log_ratio(State(x, energies, here), State(y, energies, there), step_size)
    wide = [value.to(F64) for value in (x, y, here, there)]
    log_density = lambda start, grad, end: -(end - start + step_size / 2 * grad).square().sum(1) / (2 * step_size)
    exact = log_density(wide[1], wide[3], wide[0]) - log_density(wide[0], wide[2], wide[1])
    assert got.dtype == energies.dtype and (got - exact).abs().max() < (1e-10 if dtype == F64 else 2e-5)
    if dtype == torch.float32:
        s = (here + there) * (math.sqrt(step_size) / 2)
        by_noise = ((xi.float() - s / 2) * s).sum(1)
        assert (got - exact).abs().max() < max(2e-6, 0.1 * (by_noise - exact).abs().max() * (spread > 1))


@pytest.mark.parametrize("kind", ["ones", "scales", "dense"])
def test_a_metric_scales_the_gradient_and_the_noise_of_a_step(kind):
    start, factor = torch.randn(5, 6, dtype=F64), torch.tril(torch.full((6, 6), 0.3, dtype=F64)) + torch.eye(6, dtype=F64)
    scales = torch.ones(6, dtype=F64) if kind == "ones" else torch.linspace(1, 3, 6, dtype=F64)
    metric, matrix = (Metric(factor, torch.Size([6])), factor) if kind == "dense" else (scales, scales.diag())
    call = {"step_size": 0.1, "temperature": 0.5, "metric": metric, "steps": 1, "seed": 0, "init": start}
    x = Gaussian(torch.zeros(6, dtype=F64)).sample((5, 6), sampler="langevin", **call)
    expected = start - 0.05 * start @ matrix @ matrix.T + math.sqrt(0.05) * Noise(0, range(5), step=1).normal(start) @ matrix.T
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-13)


@pytest.mark.full
def test_a_diagonal_metric_and_a_box_draw_the_truncated_density():
    """Walls reflect along the scales: an exponential density keeps its mean of one where each axis has another scale."""
    rates = torch.tensor([1.0, 4.0], dtype=F64)
    target = ce.as_energy(lambda x: (x * rates).sum(1), event_shape=(2,))
    sampler = Langevin(0.002, metric=1 / rates, clamp=(0.0, 20.0))
    init = -torch.rand(4000, 2, dtype=F64).log() / rates
    x = target.sample((4000, 2), sampler=sampler, steps=1500, seed=0, init=init)  # chains are slow, and start at draws
    # Points at the wall are pulled to it: a bias of the order of the root of the step, the same for both axes.
    means = x.mean(0) * rates
    assert (means - 1).abs().max() < 4.5 / math.sqrt(4000) + math.sqrt(0.002) and abs(means[0] - means[1]) < 4.5 * math.sqrt(2 / 4000)


test_metrics_that_do_not_fit_are_reported = refusals(
    ({"metric": Metric(torch.eye(2), torch.Size([2])), "clamp": (0, 1)}, OptionError, "A dense metric and clamp draw from another"),
    ({"metric": torch.tensor([1.0, math.nan])}, OptionError, "scales of a metric must be positive, finite"),
    ({"metric": Metric(-torch.eye(2), torch.Size([2]))}, OptionError, "scales of a metric must be positive, finite"),
    ({"metric": "dense"}, OptionError, "metric must be a Metric, or a tensor of scales with the shape of a point, got 'dense'"),
    ({"metric": torch.ones(3)}, ShapeError, r"tuned for points of shape \(3,\), got \(2,\)"),
    call=lambda options: Gaussian(torch.zeros(2)).sample(4, sampler=Langevin(0.1, **options), steps=1),
)


def count(steps: int, **call) -> Counter[str]:
    """Returns how often each operation ran in a call."""
    with Operations() as counted:
        QUADRATIC.sample(32, init=torch.ones(32, 2), steps=steps, seed=0, **call)
    return counted.counts


@pytest.mark.parametrize(
    ("sampler", "trace", "options"),
    [
        ("langevin", False, {"step_size": 0.1}),
        ("underdamped", True, {"step_size": 0.1}),
        ("hmc", True, {"step_size": 0.1, "leapfrogs": 2}),
        ("tempering", True, {"levels": 3, "leapfrogs": 2, "mean": 0.0, "scale": 2.0}),
    ],
)
def test_a_step_reads_from_the_device_once(sampler, trace, options):
    """The check of finite numbers is one number; numbers that a sampler reports are read when the call ends."""
    tuned = QUADRATIC.sample(32, sampler=sampler, steps=1, seed=0, trace=True, **options)[1].sampler
    short, long = (count(steps, sampler=tuned, trace=trace) for steps in (30, 40))
    more = long - short
    assert not more["aten::all"] and sum(more[name] for name in READS) <= 10


FEW, MANY = 4_000, 44_000
MOST = 800_000  # bytes: NumPy's words of two runs of chains take 700,000, as many numbers in a list 1.4 million
LANGEVIN = {"sampler": "langevin", "step_size": 0.1, "steps": 3, "seed": 0}
BOWL = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))


def peak(work: Callable[[], object]) -> int:
    """Returns the most memory that Python's objects take meanwhile, in bytes; memory of tensors does not count."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("options", [{}, {"batch_size": 3_000}, {"trace": True}], ids=str)
def test_a_call_makes_no_object_for_each_chain(options):
    def draw(n: int) -> None:
        BOWL.sample(n, **LANGEVIN, **options)

    draw(FEW)
    few, many = (peak(lambda n=n: draw(n)) for n in (FEW, MANY))
    assert many - few < MOST


def test_a_step_makes_no_object_for_each_chain_after_one_stopped():
    taken: list[int] = []

    def bowl(x: Tensor) -> Tensor:
        now, most = tracemalloc.get_traced_memory()
        taken.append(most - now)
        tracemalloc.reset_peak()
        return torch.where(x[:, 0] > 100, torch.nan, x.square().sum(1) / 2)

    init = torch.zeros(MANY, 2)
    init[MANY // 2, 0] = 101
    call = {**LANGEVIN, "steps": 8, "init": init, "on_divergence": "keep", "trace": True}
    peak(lambda: ce.as_energy(bowl).sample(MANY, **call))
    assert max(taken[-5:]) < MOST
