"""Runs that are broken off: checkpoints end as unbroken runs do, files of other calls are refused, Ctrl-C keeps what was done."""

import os
from dataclasses import dataclass, replace

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy.errors import ExpressionError, FileFormatError, OptionError, SamplingDiverged, SamplingInterrupted
from composable_energy.files import read_record, write_record
from composable_energy.sampling import Info, Sampler, State, energy_and_gradient
from composable_energy_mcmc import HMC, Annealed, Langevin
from tests.factories import Ring, quadratic
from tests.refusals import refused
from tests.sampling_runs import BOWL, Network, broken_off, kept, same

LANGEVIN = {"sampler": "langevin", "step_size": 0.1}
HOLE = ce.as_energy(lambda x: torch.where(x[:, 0] > 1.2, torch.nan, x.square().sum(1) / 2))
LOSSES = {"sampler": "langevin", "step_size": 0.2, "steps": 20, "seed": 1, "init": torch.zeros(40, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "size"),
    [
        ({"sampler": "underdamped", "step_size": 0.1}, 4),
        ({"sampler": "chees", "tuning_steps": 20}, 4),
        ({"sampler": "annealed", "levels": 12}, None),
    ],
)
def test_a_run_that_was_broken_off_ends_as_if_it_had_not_been(tmp_path, sampler, size):
    energy, file = Network(), tmp_path / "deep" / "run.safetensors"
    call = dict(steps=12, seed=3, trace=3, burn_in=1, batch_size=size, **sampler)
    whole = energy.sample(10, **call)
    for step in (3, 9):
        broken_off(energy, 10, step, file, **call)
    same(whole, kept(energy, 10, file, **call))
    assert [path.name for path in file.parent.iterdir()] == ["run.safetensors"]
    same(whole, kept(energy, 10, file, **call))  # it is done: nothing is left to do


def test_losses_survive_a_break_and_a_divergence_leaves_a_file_that_another_policy_goes_on_from(tmp_path):
    call = {**LOSSES, "trace": True, "on_divergence": "keep"}
    with pytest.warns(SamplingWarning, match="diverged"):
        whole = HOLE.sample((40, 2), **call)
        assert whole[1].diverged.any()
        for step in (4, 11):
            broken_off(HOLE, (40, 2), step, tmp_path / "c", **call)
        same(whole, kept(HOLE, (40, 2), tmp_path / "c", **call))
        refused(SamplingDiverged, None, kept, HOLE, (40, 2), tmp_path / "raised", **LOSSES)
        assert torch.equal(whole[0], kept(HOLE, (40, 2), tmp_path / "raised", on_divergence="keep", **LOSSES))


def test_more_steps_go_on_from_a_finished_run(tmp_path):
    call = {**LANGEVIN, "trace": True, "seed": 0}
    kept(BOWL, (5, 3), tmp_path / "c", steps=10, **call)
    same(BOWL.sample((5, 3), steps=25, **call), kept(BOWL, (5, 3), tmp_path / "c", steps=25, **call))
    refused(OptionError, "25 steps are done already, 10 were asked for", kept, BOWL, (5, 3), tmp_path / "c", steps=10, **call)


def test_a_trace_that_is_resumed_has_checkpoints_too(tmp_path):
    _, trace = BOWL.sample((5, 3), seed=0, steps=10, trace=True, **LANGEVIN)
    call = {"resume": trace, "steps": 10, "trace": True}
    broken_off(BOWL, (5, 3), 14, tmp_path / "c", **call)
    same(BOWL.sample((5, 3), **call), kept(BOWL, (5, 3), tmp_path / "c", **call))


def test_a_seed_that_nobody_gave_is_kept(tmp_path):
    broken_off(BOWL, (5, 3), 5, tmp_path / "c", steps=10, **LANGEVIN)
    first, second = (kept(BOWL, (5, 3), tmp_path / "c", steps=10, **LANGEVIN) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, BOWL.sample((5, 3), steps=10, **LANGEVIN))


def test_a_checkpoint_of_another_call_is_reported(tmp_path):
    call = {**LANGEVIN, "steps": 3, "seed": 0}
    kept(BOWL, (4, 3), tmp_path / "c", **call)
    for other, told in (
        ({"seed": 1}, "seed was 0, is 1"),
        ({"step_size": 0.2}, r"sampler was 'Langevin\(step_size=0.1.*, is 'Langevin\(step_size=0.2"),
        ({"init": torch.ones(4, 3, dtype=torch.float64)}, "init was None, is '"),
        ({"trace": 5}, "trace was False, is 5"),
    ):
        refused(OptionError, f"belongs to another call.*{told}.*give another path", kept, BOWL, (4, 3), tmp_path / "c", **{**call, **other})


def test_damaged_files_other_files_and_other_versions_are_reported_and_left_alone(tmp_path):
    file, call = tmp_path / "c", {**LANGEVIN, "steps": 3, "seed": 0}
    kept(BOWL, (4, 3), file, **call)
    whole = file.read_bytes()
    for content in (whole[:-7], b"", b"not a checkpoint", safetensors.torch.save({"a": torch.zeros(1)})):
        file.write_bytes(content)
        refused(FileFormatError, r"is damaged, or no record(.|\n)*give another path", kept, BOWL, (4, 3), file, **call)
        assert file.read_bytes() == content
    write_record(file, "checkpoint", 2, {}, {})
    refused(FileFormatError, r"has version 2, .* reads 4: use the version that wrote it.* another path", kept, BOWL, (4, 3), file, **call)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, *tmp_path.glob("pipe")):
        refused(FileFormatError, "give another path", kept, BOWL, (4, 3), other, **call)


@dataclass(frozen=True)
class Noted(State):
    note: object = None


@dataclass(frozen=True)
class Pulled(Sampler):
    """Draws around a point, and keeps a note in its state."""

    towards: torch.Tensor
    note: object = None

    def init(self, energy, x, noise):
        return Noted(x, *energy_and_gradient(energy, x), note=self.note)

    def step(self, energy, state, noise):
        x = self.towards + 0.1 * noise.normal(state.x)
        energies, grad = energy_and_gradient(energy, x)
        return replace(state, x=x, energy=energies, grad=grad), Info()


ONE = torch.ones(3, dtype=torch.float64)


def test_options_that_are_tensors_are_compared_to_the_bit(tmp_path):
    for towards in (ONE, ONE.clone()):
        kept(BOWL, (4, 3), tmp_path / "c", sampler=Pulled(towards), steps=3, seed=0)
    refused(OptionError, "sampler was", kept, BOWL, (4, 3), tmp_path / "c", sampler=Pulled(ONE + 1e-9), steps=3, seed=0)


@pytest.mark.parametrize("note", [None, 3, 2.5, "text", True])
def test_what_a_state_may_hold(tmp_path, note):
    call = {"sampler": Pulled(ONE, note), "steps": 6, "seed": 0, "trace": True}
    broken_off(BOWL, (4, 3), 3, tmp_path / "c", **call)
    again = kept(BOWL, (4, 3), tmp_path / "c", **call)
    same(BOWL.sample((4, 3), **call), again)
    assert again[1].state.note == note


def test_what_a_state_may_not_hold(tmp_path):
    refused(ExpressionError, "note is a list: a checkpoint holds", kept, BOWL, (4, 3), tmp_path / "c", sampler=Pulled(ONE, []), steps=6)


CALL = {**LANGEVIN, "seed": 3}


def interrupting(step):
    """Returns a callback that presses Ctrl-C at a step."""

    def callback(now, state, info):
        if now == step:
            raise KeyboardInterrupt

    return callback


def interrupting_energy(calls):
    """Returns a bowl that presses Ctrl-C in one of its evaluations."""
    left = [calls]

    def energy(x):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return quadratic(x)

    return ce.as_energy(energy)


def test_an_interrupt_carries_the_points_and_the_trace_of_the_steps_so_far():
    energy = ce.as_energy(quadratic)
    with pytest.raises(KeyboardInterrupt) as caught:
        energy.sample((5, 3), steps=100, observers=[ce.sampling.Stop(interrupting(40))], **CALL)
    error = caught.value
    assert isinstance(error, SamplingInterrupted) and not isinstance(error, Exception)
    assert torch.equal(error.points, energy.sample((5, 3), steps=40, **CALL)) and error.trace.steps == 40
    assert "after 40 of 100 steps" in str(error) and "resume=error.trace, steps=60" in str(error)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_an_interrupted_call_is_continued_to_the_same_bits(batch_size):
    """Ctrl-C in an evaluation in the middle of a step, or of a batch of it."""
    call = {"batch_size": batch_size, "trace": 2}
    with pytest.raises(SamplingInterrupted) as caught:
        interrupting_energy(31).sample((6, 3), steps=30, **CALL, **call)
    before = caught.value.trace
    assert 0 < before.steps < 30 and len(before.energies) == before.steps and before.point_steps == list(range(2, before.steps + 1, 2))
    points, trace = ce.as_energy(quadratic).sample((6, 3), steps=30 - before.steps, resume=before, **call)
    whole, record = ce.as_energy(quadratic).sample((6, 3), steps=30, **CALL, **call)
    assert torch.equal(points, whole) and torch.equal(torch.cat([before.energies, trace.energies]), record.energies)


def test_an_interrupt_a_stop_and_an_observer_that_fails_at_the_end_still_write_the_checkpoint(tmp_path):
    energy, failing = ce.as_energy(quadratic), ce.sampling.Observer()
    failing.on_end = lambda *_: 1 / 0
    call, checkpoint = {**CALL, "steps": 20}, ce.sampling.Checkpoint(tmp_path / "chains")
    refused(SamplingInterrupted, None, energy.sample, (5, 3), observers=[ce.sampling.Stop(interrupting(7)), checkpoint], **call)
    refused(ZeroDivisionError, None, energy.sample, (5, 3), observers=[failing, checkpoint], **call)
    assert read_record(tmp_path / "chains", "checkpoint", 4)[0]["steps"] == 20
    assert torch.equal(energy.sample((5, 3), observers=[checkpoint], **call), energy.sample((5, 3), **call))
    watched = [ce.sampling.Stop(lambda step, state, info: step == 8), ce.sampling.Checkpoint(tmp_path / "stopped")]
    for steps, observers in ((8, watched), (8, watched), (20, watched[1:])):  # the same again; and on, without the stop
        assert torch.equal(energy.sample((5, 3), observers=observers, **call), energy.sample((5, 3), **{**call, "steps": steps}))


@pytest.mark.parametrize("energy", [interrupting_energy(10), BOWL & ~interrupting_energy(550)], ids=["tuning", "chains for a level"])
def test_an_interrupt_before_the_chains_start_stays_as_it_is(energy):
    """It has no points: those of a call for the level of `~` are of another energy."""
    with pytest.raises(KeyboardInterrupt) as caught:
        energy.sample((5, 3), seed=0)
    assert type(caught.value) is KeyboardInterrupt


REFUSED = r"another energy than .*: where chain \d+ was, the (energy|gradient|evidence).* was .* and is .* now\. .*"
SAMPLERS = {
    "langevin": {"step_size": 0.1, "steps": 3},
    "underdamped": {"step_size": 0.1, "steps": 3},
    "mala": {"step_size": 0.1, "steps": 3},
    "hmc": {"step_size": 0.1, "steps": 3},
    "chees": {"tuning_steps": 10, "steps": 3},
    "annealed": {"levels": 4},
    "tempering": {"levels": 3, "mean": 0.0, "scale": 3.0, "steps": 3},
    "smc": {"levels": 3, "mean": 0.0, "scale": 3.0},
}


def at(centre: float, scale: float = 1.0) -> ce.Energy:
    return ce.as_energy(lambda x: ((x - centre) / scale).square().sum(1) / 2, name="normal")


def draw(energy: ce.Energy, shape=(10, 2), **call):
    return energy.sample(shape, **{"sampler": Langevin(0.1), "steps": 3, "seed": 0, **call})


def refused_for_another(first: ce.Energy, second: ce.Energy, file, **call) -> None:
    """Draws from one energy, and sees the checkpoint refused for another but not for the same."""
    drawn, before = draw(first, observers=[ce.sampling.Checkpoint(file)], **call), file.read_bytes()
    refused(OptionError, REFUSED + "Give another path, or", draw, second, observers=[ce.sampling.Checkpoint(file)], **call)
    assert file.read_bytes() == before and torch.equal(draw(first, observers=[ce.sampling.Checkpoint(file)], **call), drawn)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_complete_checkpoint_of_another_energy_is_refused(tmp_path, sampler):
    refused_for_another(at(0.0), at(50.0), tmp_path / "c", sampler=sampler, **{"steps": None, **SAMPLERS[sampler]})


@pytest.mark.parametrize("every", [0, 3600])
def test_a_broken_off_checkpoint_of_another_energy_is_refused(tmp_path, every):
    checkpoint = ce.sampling.Checkpoint(tmp_path / "c", every)
    call = {"steps": 9, "observers": [checkpoint]}
    stop = ce.sampling.Stop(lambda step, state, info: 1 / (3 - step))
    refused(ZeroDivisionError, None, draw, at(0.0), steps=9, observers=[stop, checkpoint])
    refused(OptionError, REFUSED, draw, at(50.0), **call)
    assert torch.equal(draw(at(0.0), **call), draw(at(0.0), steps=9))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1), (torch.float32, 3000)])
def test_a_weight_that_changed_by_one_percent_is_seen(tmp_path, dtype, size):
    term, base = ce.as_energy(lambda x: (x - 1).square().sum(1) / 2 + x[:, 0].cos(), name="term"), at(0.0, 3.0)
    refused_for_another(base & 0.1 * term, base & 0.101 * term, tmp_path / "c", shape=(5, size), dtype=dtype)


def test_energies_that_differ_only_where_the_chains_came_to_are_reported_apart(tmp_path):
    walled = lambda height: ce.as_energy(lambda x: -5 * x[:, 0] + height * (x[:, 0] - 1).relu().square(), name="walled")
    for broken in (False, True):
        call, file = {"init": torch.zeros(10, 2), "steps": 20}, tmp_path / f"{broken}"
        watch = [ce.sampling.Stop(lambda step, state, info: 1 / (15 - step))] if broken else []
        try:
            draw(walled(10.0), observers=[*watch, ce.sampling.Checkpoint(file)], **call)
        except ZeroDivisionError:
            assert broken
        refused(OptionError, REFUSED, draw, walled(20.0), observers=[ce.sampling.Checkpoint(file)], **call)


class Tilted(ce.Energy):
    """A bowl that tells a gradient of its own."""

    def __init__(self, tilt: float) -> None:
        super().__init__()
        self.tilt = tilt

    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(1) / 2

    def with_gradient(self, x: Tensor, **conditions) -> tuple[Tensor, Tensor]:
        return self(x), x + self.tilt


def test_a_gradient_that_changed_alone_is_seen(tmp_path):
    refused_for_another(Tilted(0.0), Tilted(0.01), tmp_path / "c")
    call = {"resume": draw(Tilted(0.0), trace=True)[1], "steps": 1}
    refused(OptionError, r"another energy than .*, the gradient was", Tilted(0.01).sample, (10, 2), **call)


@pytest.mark.full
@pytest.mark.parametrize(("sampler", "size"), [("langevin", 30), ("annealed", None)])
def test_one_condition_of_many_chains_is_seen(tmp_path, sampler, size):
    conditional = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1) / 2, name="conditional")
    y = torch.linspace(-1, 1, 100)
    other = y.clone()
    other[93] += 0.01
    call = {"sampler": sampler, "batch_size": size, "shape": (100, 2), "steps": None, **SAMPLERS[sampler]}
    refused_for_another(conditional.given(y=y), conditional.given(y=other), tmp_path / "c", **call)
    _, trace = draw(conditional.given(y=y), trace=True, **call)
    refused(OptionError, REFUSED, conditional.given(y=other).sample, (100, 2), resume=trace, steps=1)


def noisy(centre: float, low: float = 0.0) -> ce.Energy:
    return ce.as_energy(lambda x, sigma: (x - centre + low * (sigma < 0.2)[:, None]).square().sum(1) / (2 * (1 + sigma**2)), name="noisy")


@pytest.mark.parametrize("other", [noisy(0.01), noisy(0.0, low=0.01)], ids=["all levels", "low levels"])
def test_energies_at_noise_levels_that_the_sampler_binds_are_compared(tmp_path, other):
    call = {"sampler": Annealed(levels=4), "steps": None}
    refused_for_another(noisy(0.0), other, tmp_path / "c", **call)
    _, trace = draw(noisy(0.0), trace=True, **{**call, "steps": 2})
    refused(OptionError, REFUSED + "give them as `init`", other.sample, (10, 2), resume=trace)
    assert torch.equal(noisy(0.0).sample((10, 2), resume=trace), draw(noisy(0.0), **call))


def test_a_checkpoint_of_another_trace_is_refused(tmp_path):
    traces = [draw(at(0.0), trace=True, init=torch.full((10, 2), value))[1] for value in (0.0, 1.0)]
    at(0.0).sample((10, 2), resume=traces[0], steps=3, observers=[ce.sampling.Checkpoint(tmp_path / "c")])
    observers = [ce.sampling.Checkpoint(tmp_path / "c")]
    refused(OptionError, "belongs to another call .resumed was", at(0.0).sample, (10, 2), resume=traces[1], steps=3, observers=observers)


@pytest.mark.full
@pytest.mark.parametrize(("sampler", "dtype"), [("langevin", torch.float32), ("chees", torch.float32), ("annealed", torch.float64)])
def test_rounding_under_other_batch_sizes_is_the_same_energy(tmp_path, dtype, sampler):
    net = nn.Sequential(nn.Linear(200, 200), nn.Softplus(), nn.Linear(200, 200), nn.Softplus(), nn.Linear(200, 1)).to(dtype).eval()
    network = ce.as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 2, name="network")
    call = {"sampler": sampler, "dtype": dtype, "shape": (10, 200), "steps": None, **SAMPLERS[sampler]}
    call["observers"] = [ce.sampling.Checkpoint(tmp_path / "c")]
    x = draw(network, **call)
    for size in (1, 7):
        parts = [network.with_gradient(some)[1] for some in x.split(size)]
        assert not torch.equal(network.with_gradient(x)[1], torch.cat(parts)) and torch.equal(draw(network, batch_size=size, **call), x)


@pytest.mark.full
def test_a_sampler_is_tuned_anew_after_an_attribute_of_the_energy_changed():
    energy, call = Ring(0.0), {"sampler": HMC(tuning_steps=60), "steps": 20, "trace": True}
    _, wide = draw(energy, **call)
    energy.weight = 1e4
    x, narrow = draw(energy, **call)
    assert narrow.acceptance.mean() > 0.4 and narrow.sampler.step_size != wide.sampler.step_size
    fresh, trace = draw(Ring(0.0, 2, 1e4), **{**call, "sampler": HMC(tuning_steps=60)})
    assert trace.sampler.step_size == narrow.sampler.step_size and torch.equal(fresh, x)
