"""The step of samplers: its formula, and the operator of torch."""

import math

import pytest
import torch
import torch._dynamo.testing

from composable_energy.errors import OptionError, ShapeError
from composable_energy.kernels import dispatch, langevin_step, normal, operators
from composable_energy.noise import Noise
from tests.recorded_kernel import SWITCH, points


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

    @pytest.mark.slow
    @pytest.mark.parametrize("momentum", [False, True])
    @pytest.mark.parametrize("operator", [operators.step, operators.step_])
    def test_it_keeps_what_torch_asks_of_operators(self, operator, momentum):
        p = self.p if momentum else None
        torch.library.opcheck(operator, (self.x, [self.g], p, [1.0], 0.1, 0.1, 0.9, 0.2, -1.0, 1.0, -1, 3, 0, 0))

    @pytest.mark.full
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
