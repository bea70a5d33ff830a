"""Which kernel takes a step, and the kit that checks kernels."""

import logging

import pytest
import torch
import torch._dynamo.testing

import composable_energy as ce
from composable_energy.errors import OptionError, PluginNotFound
from composable_energy.kernels import dispatch, langevin_step
from composable_energy.noise import Noise
from composable_energy.testing import SkipCheck, check_kernel, kernel_checks
from tests.recorded_kernel import SWITCH, Recorded, points


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
    def test_a_kernel_that_was_asked_for_and_cannot_run_is_reported(self, recorded, options, message):
        with pytest.raises(OptionError, match=f"{SWITCH} names the kernel 'recorded', which cannot run here: .*{message}.*Unset it"):
            self.step(**options)

    def test_unknown_kernels_are_reported(self, monkeypatch):
        monkeypatch.setenv(SWITCH, "tritn")
        with pytest.raises(PluginNotFound, match=r"No plug-in offers the kernel 'tritn'\. Did you mean 'triton'"):
            self.step()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_triton_without_a_gpu_is_reported(self, monkeypatch):
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


@pytest.mark.slow
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
        ({"drift": 0.0}, {"step"}),
        ({"low": None}, {"step"}),
        ({"scale": 2**0.5}, {"noise"}),
        ({"move": 0.0}, {"momentum"}),
        ({"chain": True}, {"noise"}),
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
            except SkipCheck:
                continue
        assert caught <= failed, faults
