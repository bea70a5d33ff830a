"""Processes that are killed or interrupted leave a checkpoint to resume from."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.checkpoint_runs import safe_metadata

PROGRAM = """
import os, random, signal, sys, time, warnings
warnings.simplefilter("ignore")  # forking is fine here: the parent computes nothing, so it has one thread
import torch
import composable_energy as ce

torch.set_num_threads(1)
kills, folder = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
energy = ce.as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 2)
calls = [
    dict(sampler="langevin", step_size=0.1, steps=200, trace=50),
    dict(sampler="mala", step_size=0.5, steps=150, trace=True, batch_size=3),
    dict(sampler="underdamped", step_size=0.1, steps=200, trace=True, batch_size=4),
]

def run(number, out, **options):
    child = os.fork()
    if child == 0:
        points, trace = energy.sample((7, 2), seed=5, **calls[number], **options)
        torch.save((points, trace.energies, trace.points), out)
        os._exit(0)
    return child

random.seed(0)
for number in range(len(calls)):
    path, killed = f"{folder}/{number}", 0
    assert os.waitpid(run(number, path + ".whole"), 0)[1] == 0
    while True:
        child = run(number, path + ".pt", checkpoint=path, checkpoint_every=0)
        if killed < kills:
            time.sleep(random.uniform(0.0, 0.08))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            break
        killed += 1
    assert status == 0, "the child failed"
    one, two = torch.load(path + ".whole"), torch.load(path + ".pt")
    print(killed, all(a is b or torch.equal(a, b) for a, b in zip(one, two)))
"""


@pytest.mark.full
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_thirty_kills_change_no_bit(tmp_path):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAM), "10", tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    assert [equal for _, equal in told] == ["True"] * 3
    assert sum(int(killed) for killed, _ in told) == 30
    assert not list(tmp_path.glob(".*"))  # what a killed writing left is gone


SLOW = """
import itertools, signal, sys, time, torch
import composable_energy as ce

signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that a shell runs in the background inherits that it is ignored

calls = itertools.count()

def slow(x):
    if next(calls) == 10:
        print("begin", flush=True)
    time.sleep(0.02)
    return x.square().sum(1) / 2

ce.as_energy(slow).sample((6, 3), sampler="langevin", step_size=0.1, steps=10_000, seed=0, progress=True, checkpoint=sys.argv[1])
"""


@pytest.mark.full
@pytest.mark.skipif(os.name != "posix", reason="sends an interrupt as a terminal does")
def test_an_interrupt_from_the_keyboard_returns_at_once_and_leaves_a_checkpoint(tmp_path):
    running = subprocess.Popen([sys.executable, "-c", SLOW, tmp_path / "c"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None and running.stdout.readline() == "begin\n"
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=30)  # the steps that were asked for take 200 s
    assert running.returncode != 0 and "KeyboardInterrupt" in told
    steps = json.loads(safe_metadata(tmp_path / "c")["composable_energy_checkpoint"])["steps"]
    assert 0 < steps < 10_000
