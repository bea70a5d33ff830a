"""Tests of the kernel: the conformance kit, its name, a run with it."""

import torch
from my_plugin import MyPlugin

import composable_energy as ce
from composable_energy.sampling import Noise
from composable_energy.testing import parametrize_with_checks
from composable_energy_triton.testing import kernel_checks


@parametrize_with_checks(kernel_checks(MyPlugin))
def test_the_kernel_conforms(check):
    check()


def test_it_has_a_name():
    assert isinstance(ce.get("kernel", "my-plugin"), MyPlugin)


def test_samplers_use_it(monkeypatch):
    steps = []
    monkeypatch.setenv("COMPOSABLE_ENERGY_KERNEL", "my-plugin")
    monkeypatch.setattr(MyPlugin, "refusal", lambda kernel, x: steps.append(x.shape) or "")
    E = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
    sampler, noise = ce.get("sampler", "langevin")(step_size=0.5), Noise(seed=0, chains=range(4000), kind="philox")
    with torch.no_grad():
        state = sampler.init(E, torch.zeros(4000, 2), noise)
        for step in range(1, 41):
            state, _ = sampler.step(E, state, noise.at(step))
    x = state.x
    assert steps
    assert abs(x.var().item() * (1 - 0.5 / 4) - 1) < 5 * (2 / 8000) ** 0.5  # the variance of Langevin at this step size
