"""The step of samplers: its formula, and which implementation takes it."""

import logging
import math

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError, PluginNotFound, ShapeError
from composable_energy.sampling import Noise, langevin_step, normal, underdamped_step
from tests.recorded_kernel import SWITCH, Recorded, points


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


def test_normal_numbers_are_those_of_the_noise_and_do_not_read_the_points():
    noise, x = Noise(0, range(3), kind="philox"), torch.full((3, 4), math.nan)
    assert torch.equal(normal(x, noise, stream=2), noise.normal(x, 2))
    assert torch.equal(normal(x, noise, scale=0.5), 0.5 * noise.normal(x))


def test_a_step_can_be_differentiated(recorded, force):
    """Training by short chains does; no kernel can, so torch takes it, or says why the one that was asked for cannot."""
    x, g = (value.requires_grad_() for value in points(3, 2, count=2))
    noise = Noise(0, range(3))
    with pytest.raises(OptionError, match="a gradient of the step itself"):
        langevin_step(x.float(), g.float(), noise=Noise(0, range(3), kind="philox"), drift=0.25, scale=1.0)
    force("torch")
    by_x, by_g = torch.autograd.grad(langevin_step(x, g, noise=noise, drift=0.25, scale=1.0, keep=0.5).sum(), (x, g))
    assert torch.equal(by_x, torch.full_like(x, 0.5)) and torch.equal(by_g, torch.full_like(x, -0.25))


@pytest.mark.parametrize(
    ("inputs", "chains", "message"),
    [
        ([torch.zeros(3, 1), torch.zeros(3, 2)], 3, r"A gradient has the shape \(3, 2\) of the points, got \(3, 1\)"),
        ([torch.zeros(3, 2), torch.zeros(2)], 3, r"A momentum has the shape \(3, 2\) of the points, got \(2,\)"),
        ([torch.zeros(3, 2), torch.zeros(3, 2)], 2, "noise of 2 chains, got 3 points"),
    ],
)
def test_what_does_not_fit_is_said(inputs, chains, message):
    call = {"scale": 1.0, "drift": 0.1, "keep": 1.0, "move": 0.1}
    with pytest.raises(ShapeError, match=message):
        underdamped_step(torch.zeros(3, 2), *inputs, noise=Noise(0, range(chains)), **call)
    with pytest.raises(OptionError, match="takes a momentum, got None; a step without one is `langevin_step`"):
        underdamped_step(torch.zeros(3, 2), torch.zeros(3, 2), None, noise=Noise(0, range(3)), **call)


@pytest.mark.full
def test_a_graph_that_is_compiled_holds_the_reference(recorded):
    x, g = points(4, 3, count=2, dtype=torch.float32)
    noise = Noise(5, range(4), kind="philox")
    compiled = torch.compile(lambda x, g: langevin_step(x, g, noise=noise, drift=0.1, scale=0.7), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x, g), langevin_step(x, g, noise=noise, drift=0.1, scale=0.7))
    assert len(recorded.calls) == 1


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
        assert torch.equal(self.step(), y)
        assert len(recorded.calls) == 1

    def test_what_stands_in_another_order_is_put_in_order(self, recorded):
        wide = torch.randn(3, 4)
        x, g = wide.T, torch.randn(1, 3).expand(4, 3)
        assert torch.equal(self.step(x, g), self.step(x.contiguous(), g.contiguous()))
        images = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
        assert torch.equal(self.step(images, images), self.step(images.contiguous(), images.contiguous()))

    def test_momenta_and_seeds_reach_the_kernel(self, recorded, force):
        for seed in (-1, 2**31 + 5, 2**63, 2**64 - 1):
            options = {"noise": Noise(seed, range(4), kind="philox"), "drift": 0.1, "scale": 0.5, "move": 0.1, "keep": 0.9}
            moved = underdamped_step(self.x, self.x, self.g, **options)
            assert recorded.calls[-1].seed == seed
            force("")
            expected = underdamped_step(self.x, self.x, self.g, **options)
            force("recorded")
            assert all(map(torch.equal, moved, expected))

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
        with pytest.raises(OptionError, match=rf"{SWITCH} names a kernel which cannot run here \(recorded: .*{message}.*Unset it"):
            self.step(**options)

    def test_unknown_kernels_are_reported(self, force):
        force("tritn")
        with pytest.raises(PluginNotFound, match=r"No plug-in offers the kernel 'tritn'\. Did you mean 'triton'"):
            self.step()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_triton_without_a_gpu_is_reported(self, force):
        force("triton")
        with pytest.raises(OptionError, match=r"names a kernel which cannot run here \(triton: (torch finds no GPU|Triton is not)"):
            self.step()

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
