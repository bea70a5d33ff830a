"""Several threads sample and train one energy at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

import composable_energy as ce
from composable_energy_mcmc import Langevin
from tests.captured_networks import GROUND, WAYS, network


def test_two_threads_that_sample_one_energy_never_evaluate_in_training_mode():
    modes = set()

    class Watched(nn.Module):
        def forward(self, x):
            modes.add((self.training, torch.is_grad_enabled()))
            return x.square().sum(1)

    watched = Watched()
    energy = ce.as_energy(watched)

    def draw(seed):
        return energy.sample((5, 2), sampler=Langevin(0.1), steps=100, seed=seed)

    serial = [draw(seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(draw, range(2)))
    assert modes == {(False, True)} and watched.training
    assert all(map(torch.equal, serial, together))


def test_a_thread_that_trains_gets_all_gradients_while_others_sample():
    net = network()
    energy = WAYS["registered"](net) & GROUND
    x, stop, without = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), threading.Event(), []

    def backward():
        net.zero_grad()
        torch.nn.functional.mse_loss(net[4](net[3](net[0](x))), x[:, :1]).backward()
        return [p.grad for p in (*net[0].parameters(), *net[4].parameters())]

    alone = [grad.clone() for grad in backward()]

    def draw(seed):
        while not stop.is_set():
            energy.sample((5, 2), sampler=Langevin(0.1), steps=3, seed=seed)

    with ThreadPoolExecutor(2) as pool:
        draws = [pool.submit(draw, seed) for seed in range(2)]
        try:
            for _ in range(100):
                grads = backward()
                without.append(any(grad is None or not torch.equal(grad, one) for grad, one in zip(grads, alone, strict=True)))
        finally:
            stop.set()
        assert all(done.result() is None for done in draws)
    assert not any(without) and net.training


def test_threads_inside_an_operation_are_those_of_before_after_calls_at_once():
    energy = ce.as_energy(lambda x: x.square().sum(1))
    energy.recommended = ce.Recommendation("langevin", {"step_size": 0.1}, threads=2)
    assert torch.get_num_threads() == 1
    inside = threading.Barrier(3)

    def draw(seed):
        seen = []

        def callback(*_):
            seen.append(torch.get_num_threads())
            inside.wait(60)

        energy.sample((3, 2), steps=1, seed=seed, observers=[ce.sampling.Stop(callback)])
        return seen, torch.get_num_threads()

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(draw, range(3))) == [([2], 1)] * 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
    seen = []
    energy.sample(
        (3, 2),
        steps=2,
        observers=[ce.sampling.Stop(lambda step, *_: step == 1 and energy.sample((3, 2), steps=1) is seen.append(torch.get_num_threads()))],
    )
    assert seen == [2] and torch.get_num_threads() == 1
