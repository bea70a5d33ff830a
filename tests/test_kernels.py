"""The fused step: the formula, the operator of torch, and which implementation runs when."""

import logging
import math

import pytest
import torch
import torch._dynamo.testing

import composable_energy as ce
from composable_energy.errors import OptionError, PluginLoadError, PluginNotFound, ShapeError
from composable_energy.kernels import Kernel, dispatch, langevin_step, normal, operators
from composable_energy.kernels.reference import reference_step
from composable_energy.noise import Noise
from composable_energy.testing import check_kernel, kernel_checks

SWITCH = "COMPOSABLE_ENERGY_KERNEL"
F64 = torch.float64


class Recorded(Kernel):
    """The reference as a kernel, which says how often it ran."""

    def __init__(self) -> None:
        self.calls = []

    def available(self):
        return True, ""

    def refusal(self, x):
        return "it takes no float64" if x.dtype == F64 else ""

    def langevin_step(self, x, gradients, momentum, numbers, counter, out, out_momentum):
        tensors = [x, *gradients, out, *(t for t in (momentum, out_momentum) if t is not None)]
        assert all(t.is_contiguous() and t.shape == x.shape and t.dtype == x.dtype for t in tensors)
        self.calls.append(counter)
        noise = Noise(counter.seed, range(counter.chain, counter.chain + len(x)), counter.step, "philox")
        new = reference_step(x, gradients, momentum, numbers, noise, counter.stream, False)
        for place, value in zip((out, out_momentum), new, strict=True):
            if place is not None:
                place.copy_(value)


@pytest.fixture
def recorded(monkeypatch):
    """The kernel that the environment names."""
    kernel = Recorded()
    monkeypatch.setenv(SWITCH, "recorded")
    with ce.register("kernel", "recorded", lambda: kernel):
        yield kernel


def points(*shape, count=1, dtype=F64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=F64).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("kind", ["blocks", "philox"])
@pytest.mark.parametrize("gradients", [0, 1, 3])
@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("inplace", [False, True])
def test_the_step_is_its_formula(kind, gradients, keep, inplace):
    x, p, *g = points(7, 2, 5, count=2 + gradients)
    noise, weights = Noise(3, range(5, 12), step=2, kind=kind), [0.5, -2.0, 1.5][:gradients]
    before, xi = (x.clone(), p.clone()), noise.normal(x, 4)
    force = sum((w * one for w, one in zip(weights, g, strict=True)), torch.zeros_like(x))
    options = {"noise": noise, "weights": weights, "drift": 0.3, "scale": 0.7, "keep": keep, "stream": 4, "inplace": inplace}
    y = langevin_step(x, g, box=(-1.0, 1.0), **options)
    torch.testing.assert_close(y, (keep * before[0] - 0.3 * force + 0.7 * xi).clamp(-1, 1), rtol=0, atol=1e-14)
    assert (y is x) == inplace and (inplace or torch.equal(x, before[0]))
    x = before[0].clone()
    y, q = langevin_step(x, g, momentum=p, move=0.2, **options)
    kicked = before[1] - 0.3 * force
    expected = keep * kicked + 0.7 * xi
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(y, before[0] + 0.2 * kicked + 0.2 * expected, rtol=0, atol=1e-14)
    assert (q is p) == inplace and (inplace or torch.equal(p, before[1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    x, p, *g = points(40, 3, count=5, dtype=dtype)
    options = {"noise": Noise(0, range(40)), "drift": 0.3, "scale": 0.7, "keep": 0.9, "move": 0.2}
    got = langevin_step(x, g, momentum=p, **options)
    expected = langevin_step(x.float(), [one.float() for one in g], momentum=p.float(), **options)
    assert all(torch.equal(a, b.to(dtype)) and a.dtype == dtype for a, b in zip(got, expected, strict=True))
    y, q = x.clone(), p.clone()
    langevin_step(y, g, momentum=q, inplace=True, **options)
    assert torch.equal(y, got[0]) and torch.equal(q, got[1])


def test_normal_numbers_are_those_of_the_noise_and_do_not_read_the_points():
    noise, x = Noise(0, range(3), kind="philox"), torch.full((3, 4), math.nan)
    assert torch.equal(normal(x, noise, stream=2), noise.normal(x, 2))
    assert torch.equal(normal(x, noise, scale=0.5), 0.5 * noise.normal(x))


def test_a_step_without_noise_draws_none():
    noise = Noise(0, range(2))
    assert torch.equal(langevin_step(torch.ones(2, 2), torch.ones(2, 2), noise=noise, drift=0.5, scale=0.0), torch.full((2, 2), 0.5))
    assert not noise._memory


def test_a_step_can_be_differentiated(recorded):
    """Training by short chains does; no kernel can, so torch takes it, or says why the one that was asked for cannot."""
    x, g = (value.requires_grad_() for value in points(3, 2, count=2))
    noise = Noise(0, range(3))
    with pytest.raises(OptionError, match="a gradient of the step itself"):
        langevin_step(x.float(), g.float(), noise=Noise(0, range(3), kind="philox"), drift=0.25, scale=1.0)
    dispatch.os.environ[SWITCH] = "torch"
    by_x, by_g = torch.autograd.grad(langevin_step(x, g, noise=noise, drift=0.25, scale=1.0, keep=0.5).sum(), (x, g))
    assert torch.equal(by_x, torch.full_like(x, 0.5)) and torch.equal(by_g, torch.full_like(x, -0.25))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gradients": torch.zeros(3, 1)}, ShapeError, r"Gradients have the shape \(3, 2\) of the points, got \(3, 1\)"),
        ({"momentum": torch.zeros(2)}, ShapeError, r"A momentum has the shape \(3, 2\) of the points, got \(2,\)"),
        ({"noise": Noise(0, range(2))}, ShapeError, "noise of 2 chains, got 3 points"),
        ({"gradients": [torch.zeros(3, 2)], "weights": [1.0, 2.0]}, OptionError, "There are 1 gradients and 2 weights"),
    ],
)
def test_what_does_not_fit_is_said(options, error, message):
    with pytest.raises(error, match=message):
        langevin_step(torch.zeros(3, 2), **{"noise": Noise(0, range(3)), "scale": 1.0, **options})


class TestOperator:
    """The step as an operator of torch, which on the CPU is the reference with Philox noise."""

    x, p, g = points(4, 3, count=3, dtype=torch.float32)

    @pytest.mark.parametrize("momentum", [False, True])
    @pytest.mark.parametrize("operator", [operators.step, operators.step_])
    def test_it_keeps_what_torch_asks_of_operators(self, operator, momentum):
        p = self.p if momentum else None
        torch.library.opcheck(operator, (self.x, [self.g], p, [1.0], 0.1, 0.1, 0.9, 0.2, -1.0, 1.0, -1, 3, 0, 0))

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [-1, 2**31 + 5, 2**63, 2**64 - 1])
    def test_a_graph_that_is_compiled_holds_it(self, seed):
        """Steps count up: they are no constants, or each would be compiled again."""

        def step(x, p, g, number):
            noise = Noise(seed, range(2**31, 2**31 + 4), number, "philox")
            y = langevin_step(x, g, noise=noise, drift=0.1, scale=0.7, box=(-1, 1), stream=3)
            langevin_step(x, g, noise=noise, drift=0.1, scale=0.7, keep=0.9, momentum=p, move=0.1, inplace=True)
            return (y + x) * 2 - p

        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(step, fullgraph=True, backend=counter)
        with torch.no_grad():
            for number in range(2, 7):
                mine, theirs = [self.x.clone(), self.p.clone()], [self.x.clone(), self.p.clone()]
                assert torch.equal(compiled(*mine, self.g, number), step(*theirs, self.g, number))
                assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
        assert counter.frame_count <= 2

    def test_blocks_are_not_drawn_in_a_graph(self):
        torch._dynamo.reset()
        compiled = torch.compile(lambda x: langevin_step(x, noise=Noise(0, range(4)), scale=1.0), fullgraph=True, backend="eager")
        with pytest.raises(torch._dynamo.exc.Unsupported):
            compiled(self.x)

    def test_a_tensor_that_others_need_is_not_overwritten_unseen(self, recorded):
        """A kernel writes to memory; the operator tells autograd."""
        x = self.x.clone()
        weight = torch.ones(4, 3, requires_grad=True)
        loss = (weight * x).sum()
        with torch.no_grad():
            langevin_step(x, noise=Noise(0, range(4), kind="philox"), scale=1.0, inplace=True)
        assert len(recorded.calls) == 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


class TestChoice:
    """Which implementation runs."""

    x, g = points(4, 3, count=2, dtype=torch.float32)
    noise = Noise(5, range(10, 14), step=2, kind="philox")

    def step(self, x=None, g=None, noise=None, **options):
        x, g = self.x if x is None else x, self.g if g is None else g
        return langevin_step(x, g, noise=noise or self.noise, drift=0.1, scale=0.5, **options)

    def test_the_environment_names_a_kernel_or_torch(self, recorded, monkeypatch):
        y = self.step()
        assert recorded.calls == [(5, 2, 10, 0)]
        monkeypatch.setenv(SWITCH, "torch")
        assert torch.equal(self.step(), y)
        monkeypatch.setenv(SWITCH, "")
        assert torch.equal(self.step(), y)
        assert len(recorded.calls) == 1

    def test_what_stands_in_another_order_is_put_in_order(self, recorded):
        wide = torch.randn(3, 4)
        x, g = wide.T, torch.randn(1, 3).expand(4, 3)
        assert torch.equal(self.step(x, g), self.step(x.contiguous(), g.contiguous()))
        images = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
        assert torch.equal(self.step(images, images), self.step(images.contiguous(), images.contiguous()))
        ordered, count = x.contiguous(), len(recorded.calls)
        assert self.step(x, g, inplace=True) is x and torch.equal(x, self.step(ordered, g.contiguous(), inplace=True))
        assert len(recorded.calls) == count + 1

    @pytest.mark.parametrize("inplace", [False, True])
    def test_momenta_and_seeds_reach_the_kernel(self, recorded, inplace, monkeypatch):
        for seed in (-1, 2**31 + 5, 2**63, 2**64 - 1):
            options = {"noise": Noise(seed, range(4), kind="philox"), "momentum": self.g, "move": 0.1, "keep": 0.9, "box": (-1, 1)}
            inputs = [self.x.clone(), self.x.clone()]
            y, q = langevin_step(*inputs, **{**options, "momentum": self.g.clone()}, drift=0.1, scale=0.5, inplace=inplace)
            assert recorded.calls[-1].seed == seed % 2**64
            with monkeypatch.context() as patch:
                patch.delenv(SWITCH)
                expected = langevin_step(self.x, self.x, **options, drift=0.1, scale=0.5)
            assert torch.equal(y, expected[0]) and torch.equal(q, expected[1])

    def test_no_points_are_no_step(self, recorded):
        assert self.step(torch.zeros(0, 3), torch.zeros(0, 3), Noise(0, range(0), kind="philox")).shape == (0, 3)
        assert self.step(torch.zeros(4, 0), torch.zeros(4, 0)).shape == (4, 0)
        assert not recorded.calls

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"noise": Noise(0, range(4))}, "it draws Philox noise, and the noise is 'blocks'"),
            ({"noise": Noise(0, (1, 2, 3, 9), kind="philox")}, "the ids of the chains are not consecutive"),
            ({"x": x.double(), "g": x.double()}, "it takes no float64"),
            ({"g": g.double()}, "differ in dtype or device"),
        ],
    )
    def test_a_kernel_that_was_asked_for_and_cannot_run_is_told(self, recorded, options, message):
        with pytest.raises(OptionError, match=f"{SWITCH} names the kernel 'recorded', which cannot run here: .*{message}.*Unset it"):
            self.step(**options)

    def test_unknown_and_unfit_kernels_are_told(self, monkeypatch):
        monkeypatch.setenv(SWITCH, "tritn")
        with pytest.raises(PluginNotFound, match=r"No plug-in offers the kernel 'tritn'\. Did you mean 'triton'"):
            self.step()
        monkeypatch.setenv(SWITCH, "other")
        with pytest.raises(PluginLoadError, match="a subclass of Kernel, got the class Other"):
            ce.register("kernel", "other", type("Other", (), {"available": lambda self: True}))
        with ce.register("kernel", "other", lambda: 3), pytest.raises(PluginLoadError, match="should make a Kernel, it made"):
            self.step()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_triton_without_a_gpu_is_told(self, monkeypatch):
        monkeypatch.setenv(SWITCH, "triton")
        with pytest.raises(OptionError, match=r"names the kernel 'triton', which cannot run here: (torch finds no GPU|Triton is not)"):
            self.step()

    def test_on_another_device_the_first_kernel_runs_that_does_not_refuse_and_torch_says_once_why(self, monkeypatch, caplog):
        monkeypatch.delenv(SWITCH, raising=False)
        kernel, meta = Recorded(), torch.zeros(4, 3, device="meta")
        with ce.register("kernel", "recorded", lambda: kernel), caplog.at_level(logging.WARNING, "composable_energy.kernels"):
            assert dispatch.kernel_for(meta, [meta], self.noise) is kernel
            for _ in range(3):
                assert dispatch.kernel_for(meta.double(), [], self.noise) is None
        told = [record.message for record in caplog.records]
        assert sum("run in torch, without a fused kernel (recorded: it takes no float64)" in line for line in told) == 1


def test_the_kit_passes_the_reference_and_catches_what_is_wrong():
    class Wrong(Recorded):
        def __init__(self, **changed):
            super().__init__()
            self.changed = changed

        def langevin_step(self, x, gradients, momentum, numbers, counter, out, out_momentum):
            numbers = numbers._replace(**{k: v for k, v in self.changed.items() if k in numbers._fields})
            if self.changed.get("chain"):
                counter = counter._replace(chain=0)
            if self.changed.get("spill"):
                out.as_strided((1,), (1,), out.storage_offset() + out.numel()).fill_(0.0)
            if self.changed.get("greedy") and out is not x:
                x.add_(1.0)
            if self.changed.get("hide"):
                x = x.nan_to_num(0.0)
            super().langevin_step(x, gradients, momentum, numbers, counter, out, out_momentum)

    shapes = [(3, 2), (5,), (2, 7)]
    check_kernel(Recorded(), shapes=shapes)
    for faults, caught in (
        ({"drift": 0.0}, {"step", "momentum"}),
        ({"low": None}, {"step", "momentum"}),
        ({"scale": 2**0.5}, {"noise", "step", "momentum"}),
        ({"move": 0.0}, {"momentum"}),
        ({"chain": True}, {"noise", "step", "momentum", "chains"}),
        ({"spill": True}, {"bounds"}),
        ({"greedy": True}, {"inputs", "chains"}),
        ({"hide": True}, {"nan"}),
    ):
        failed = set()
        for check in kernel_checks(Wrong(**faults), shapes=shapes):
            try:
                check()
            except AssertionError:
                failed.add(check.name)
        assert caught <= failed, faults
