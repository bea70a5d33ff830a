"""`sample`: chunks and resumed runs give the same chains; shapes, the trace and callbacks; guarantees for authors of samplers."""

import copy
import functools
import pickle
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, energy_and_gradient
from composable_energy_mcmc import MALA, Annealed, Langevin
from tests.refusals import refusals
from tests.sampling_runs import F64, Bowl, Decoder, Latent, Network


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [Langevin(0.1), MALA(tuning_steps=10)], ids=repr)
def test_chunks_and_resumed_runs_draw_the_same_bits(sampler):
    draw = functools.partial(Bowl().sample, (20, 3), sampler=sampler, steps=12, dtype=F64)
    whole, trace = draw(seed=4, trace=2)
    assert torch.equal(whole, draw(seed=4)) and all(torch.equal(whole, draw(seed=4, batch_size=size)) for size in (1, 16))
    assert torch.equal(whole[6:], Bowl().sample((14, 3), sampler=sampler, steps=12, seed=4, first_chain=6, dtype=F64))
    assert not torch.isclose(whole, draw(seed=5)).any()
    for size in (None, 7):
        _, part = draw(seed=4, steps=5, trace=True, batch_size=size)
        x, rest = Bowl().sample(20, resume=pickle.loads(pickle.dumps(part)), steps=7, trace=2, batch_size=size)
        assert torch.equal(x, whole) and torch.equal(rest.energies, trace.energies[5:]) and rest.steps == 12
        assert torch.equal(rest.points, trace.points[2:]) and rest.point_steps == trace.point_steps[2:]


def test_a_resumed_run_changes_nothing():
    _, trace = Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2, seed=0, trace=True)
    for given in ({"sampler": "hmc"}, {"seed": 1}, {"init": torch.zeros(3, 2)}, {"step_size": 0.2}, {"first_chain": 1}):
        with pytest.raises(OptionError, match=f"leave out {next(iter(given))}"):
            Bowl().sample((3, 2), resume=trace, **given)
    with pytest.raises(OptionError, match="leave out shape"):
        Bowl().sample((4, 2), resume=trace)
    with pytest.raises(OptionError, match="resume takes the Trace"):
        Bowl().sample((4, 2), resume=3)


def test_an_annealed_run_resumes_to_its_end():
    sampler = Annealed(levels=10)
    _, trace = Bowl().sample((4, 3), sampler=sampler, steps=4, seed=0, trace=True)
    x, trace = Bowl().sample((4, 3), resume=trace, trace=True)
    assert torch.equal(x, Bowl().sample((4, 3), sampler=sampler, seed=0)) and trace.steps == 10
    with pytest.raises(OptionError, match="takes 10 steps: 10 are done, and 1 were asked for"):
        Bowl().sample((4, 3), resume=trace)


@pytest.mark.slow
def test_chunks_get_their_own_rows_of_conditions():
    centred = ce.as_energy(lambda x, c: (x - c).square().sum(1) * 50)
    targets = torch.arange(10.0)[:, None].expand(10, 2)
    draw = functools.partial(centred.given(c=targets).sample, (10, 2), sampler=Langevin(0.01), steps=60, seed=0)
    x = draw()
    assert (x - targets).abs().max() < 0.6
    for size in (1, 3):
        assert torch.equal(x, draw(batch_size=size))
    tuned = centred.given(c=targets).sample((10, 2), sampler=MALA(tuning_steps=10), steps=40, seed=0)
    assert (tuned - targets).abs().max() < 0.6


def test_latent_energies_are_decoded_at_the_end():
    decoder = Decoder()
    decoder.seen.clear()
    decoder.train()
    energy = Latent(decoder)
    draw = functools.partial(energy.sample, sampler=Langevin(0.1), steps=3, seed=0)
    latent = functools.partial(energy.latents.sample, sampler=Langevin(0.1), steps=3, seed=0)
    x, z = draw(300), latent(300)
    assert x.shape == (300, 3, 2, 2) and z.shape == (300, 4) and not x.requires_grad
    assert decoder.seen == [1, 32, 268]  # the first batch shows how large decoded points are
    assert torch.equal(draw((300, 3, 2, 2)), x) and torch.equal(latent((300, 4)), z)
    decoder.eval()
    with torch.no_grad():
        assert torch.allclose(decoder(z), x, atol=1e-6)
    decoder.event_shape = torch.Size([3, 2, 2])
    decoder.seen.clear()
    assert draw(2).shape == (2, 3, 2, 2) and decoder.seen == [2]
    wrong = r"decodes to points of shape \(3, 2, 2\): ask for \(5, 3, 2, 2\) or 5, got \(5, 3, 4, 4\); `.latent"
    with pytest.raises(ShapeError, match=wrong):
        draw((5, 3, 4, 4))
    with pytest.raises(ShapeError, match=r"Latent has points of shape \(4,\)"):
        latent((5, 3, 2, 2))
    with pytest.raises(ShapeError, match=r"init must have the shape \(5, 4\)"):
        draw(5, init=torch.zeros(4, 4))


def test_shapes_dtypes_and_starts_are_followed():
    sampler, energy = Langevin(0.1), Bowl()
    init = torch.randn(3, 2, dtype=F64, requires_grad=True)
    before = init.detach().clone()
    x = energy.sample((3, 2), sampler=sampler, steps=3, seed=0, init=init)
    assert x.dtype == F64 and not x.requires_grad and torch.equal(init.detach(), before) and init.grad is None
    assert torch.equal(x, energy.sample(3, sampler=sampler, steps=3, seed=0, init=init))
    assert energy.sample(torch.Size([3, 2]), sampler=sampler, steps=1, dtype=torch.float16).dtype == torch.float16
    assert ce.as_energy(torch.distributions.Normal(torch.zeros(2, dtype=F64), 1.0)).sample(3, sampler=sampler, steps=1).dtype == F64
    assert Network(torch.float32).sample(3, sampler=sampler, steps=1).dtype == torch.float32
    single = energy.sample((3,), sampler=sampler, steps=1)
    assert single.shape == (3,)


def test_the_trace_tells_what_was_done():
    x, trace = Bowl().sample((5, 3), sampler=MALA(0.5), steps=12, seed=3, trace=4, burn_in=3, batch_size=2)
    assert trace.energies.shape == trace.acceptance.shape == (12, 5)
    torch.testing.assert_close(trace.energies[-1], Bowl()(x))
    assert trace.point_steps == [7, 11] and trace.points.shape == (2, 5, 3)
    torch.testing.assert_close(trace.energies[10], Bowl()(trace.points[1]))
    assert (trace.seed, trace.noise, trace.steps, trace.shape) == (3, "numpy", 12, (5, 3))
    assert trace.chains == range(5) and not trace.diverged.any()
    assert repr(trace).startswith("Trace(MALA(step_size=0.5") and repr(trace).endswith("seed=3, steps=12, shape=(5, 3))")
    record = trace.to_dict()
    assert record["posterior"]["x"].shape == (5, 2, 3)
    assert {name: array.shape for name, array in record["sample_stats"].items()} == dict.fromkeys(
        ("lp", "diverging", "acceptance_rate"), (5, 2)
    )
    assert record["attrs"]["seed"] == 3 and "MALA" in record["attrs"]["sampler"]
    _, trace = Bowl().sample((5, 3), sampler=Langevin(0.5), steps=12, trace=True)
    assert trace.points is None and trace.acceptance is None
    assert trace.to_dict()["posterior"] == {} and trace.to_dict()["sample_stats"]["lp"].shape == (5, 12)


def test_a_callback_sees_all_chains_and_stops_early(capsys):
    seen = []

    def callback(step: int, state: State, info: Info) -> bool:
        seen.append((step, state.x.shape, info.acceptance.shape))
        torch.testing.assert_close(state.energy, Bowl()(state.x))
        return step == 4

    options = {"sampler": MALA(0.5), "seed": 3, "observers": [ce.sampling.Progress(), ce.sampling.Stop(callback)]}
    x, trace = Bowl().sample((5, 3), steps=12, batch_size=2, trace=True, **options)
    assert seen == [(step, (5, 3), (5,)) for step in (1, 2, 3, 4)]
    assert trace.steps == 4 and torch.equal(x, Bowl().sample((5, 3), sampler=MALA(0.5), steps=4, seed=3))
    printed = capsys.readouterr()
    assert printed.out == "" and "mala" in printed.err
    Bowl().sample((5, 3), sampler=MALA(0.5), steps=2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("answer", "steps"),
    [(lambda now: torch.tensor(now == 4), 4), (lambda now: torch.full((3,), now == 4), 4), (np.float64(4).__eq__, 4), (torch.ones, 9)],
)
def test_a_callback_stops_by_whatever_a_comparison_gives_and_by_nothing_else(answer, steps):
    watch = [ce.sampling.Stop(lambda step, state, info: answer(step))]
    assert Bowl().sample((3, 2), sampler=Langevin(0.1), steps=9, trace=True, observers=watch)[1].steps == steps


def test_a_third_party_s_start_and_tuning_are_used():
    @dataclass(frozen=True)
    class Far(Langevin):
        traits = Traits(start=lambda self, like, noise: noise.normal(like) + 100)

        def tune(self, energy, x, noise):
            assert x.shape == (64, 2) and (x > 90).all() and len(noise.chains) == 64
            return replace(self, step_size=1e-12), x

    x, trace = Bowl().sample((5, 2), sampler=Far(), steps=3, seed=0, batch_size=2, trace=True)
    torch.testing.assert_close(x, Noise(0, range(5)).child("start").normal(x) + 100)
    assert trace.sampler == Far(1e-12)


HOLE = ce.as_energy(lambda x: torch.where(x[:, 0] > 2, torch.nan, x.square().sum(1) / 2))


@dataclass(frozen=True)
class Scaled(State):
    scales: Tensor = field(metadata={"per_chain": False})


@dataclass(frozen=True)
class Unscaled(State):
    scales: Tensor


@dataclass(frozen=True)
class Walk(Sampler):
    """A walk in units that all chains share, as many as there are coordinates; it tells scalars of every kind."""

    option: object = None
    hidden: object = field(default=0, compare=False)
    kind: type = Scaled
    wide: bool = False

    def init(self, energy, x, noise):
        return self.kind(x, *energy_and_gradient(energy, x), torch.linspace(0.5, 1, x.shape[1]))

    def step(self, energy, state, noise):
        x = state.x + state.scales * noise.normal(state.x)
        height = x[:, 0].double()
        scalars = {"level": 0.1 * noise.step, "height": height, "positive": torch.where(height > 0, height, torch.nan)}
        told = {"wide": x} if self.wide else {**scalars, "mean": height.mean().item()}
        return self.kind(x, *energy_and_gradient(energy, x), state.scales), Info(scalars=told)


@pytest.mark.parametrize("size", [1, 4])
def test_scalars_are_those_of_all_chains_whatever_the_batch_size(size):
    seen = []
    watch = [ce.sampling.Stop(lambda step, state, info: seen.append(dict(info.scalars)))]
    _, trace = Bowl().sample((10, 2), sampler=Walk(), steps=4, seed=1, trace=1, batch_size=size, observers=watch)
    heights = trace.points[:, :, 0].double()
    assert trace.scalars["level"] == [0.1 * step for step in (1, 2, 3, 4)]
    for name in ("height", "mean"):
        assert trace.scalars[name] == pytest.approx(heights.mean(1).tolist(), abs=1e-12)
    assert trace.scalars["positive"] == pytest.approx(torch.where(heights > 0, heights, torch.nan).nanmean(1).tolist())
    assert seen == [{name: values[step] for name, values in trace.scalars.items()} for step in range(4)]


def test_scalars_of_chains_that_were_stopped_do_not_count():
    call = {"sampler": Walk(), "steps": 5, "seed": 0, "trace": 1, "on_divergence": "keep"}
    whole, parts = (HOLE.sample((30, 2), batch_size=size, **call)[1] for size in (None, 4))
    assert whole.diverged.any()
    for name, values in whole.scalars.items():
        assert parts.scalars[name] == pytest.approx(values)


@pytest.mark.parametrize(("chains", "size"), [(4, None), (4, 2), (5, 4)])  # as many chains, or rows, as coordinates
def test_a_tensor_that_all_chains_share_is_never_cut(chains, size):
    call = {"sampler": Walk(), "seed": 0, "trace": 1}
    whole, trace = Bowl().sample((chains, 4), steps=3, **call)
    parts, other = Bowl().sample((chains, 4), steps=3, batch_size=size, **call)
    assert torch.equal(whole, parts) and len(other.state.scales) == 4
    assert torch.equal(Bowl().sample((chains, 4), resume=trace, steps=2, batch_size=size), Bowl().sample((chains, 4), steps=5, **call)[0])
    start = torch.linspace(0, 1.9, chains)[:, None].repeat(1, 4)
    _, kept = HOLE.sample((chains, 4), steps=3, on_divergence="keep", batch_size=size, init=start, **call)
    assert 0 < kept.diverged.sum() < chains and torch.equal(kept.state.scales, torch.linspace(0.5, 1, 4))


test_scalars_and_tensors_that_have_no_rows_are_refused = refusals(
    ({"wide": True}, r"scalar 'wide' of Walk has shape \(5, 4\) for 5 chains"),
    ({"kind": Unscaled}, r"Unscaled.scales has shape \(4,\) in a state of 5 chains.*write `scales: Tensor = field\(metadata="),
    call=lambda options: Bowl().sample((5, 4), sampler=Walk(**options), steps=3),
    error=ShapeError,
)


VALUES = [
    *(torch.ones(2), torch.tensor([1.0, 2.0]), torch.ones(2, dtype=torch.float64), torch.ones(3), torch.ones(())),
    *(np.ones(2), np.arange(2.0), [torch.ones(2)], (torch.ones(2), 1), [1], {"a": torch.ones(2)}, {"a": 1}, 1, None, "text"),
]


@pytest.mark.parametrize("make", [Walk, lambda value: replace(Walk(0), option=value)])
def test_samplers_compare_by_value_whatever_their_options_are(make):
    for i, one in enumerate(VALUES):
        for j, other in enumerate(VALUES):
            left, right = make(one), make(copy.deepcopy(other))
            assert (left == right) is (i == j) and (left != right) is (i != j)
            assert i != j or hash(left) == hash(right)
    assert Walk(1, hidden=torch.ones(2)) == Walk(1, hidden=torch.zeros(2))
    assert Langevin(0.1) != MALA(0.1) and Langevin(0.1) == Langevin(0.1) and Langevin(0.1) != 0.1
