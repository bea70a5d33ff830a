"""`sample`: chunks, resumed runs, shapes, the trace, guarantees for authors of samplers; options, and an error for each that is wrong."""

import copy
import functools
import math
import pickle
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, DtypeError, ExpressionError, OptionError, ShapeError, UngroundedError
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, energy_and_gradient, sample
from composable_energy_mcmc import HMC, MALA, Annealed, ChEES, Langevin
from tests.factories import quadratic
from tests.refusals import refusals, refused
from tests.sampling_runs import F64, Bowl, Decoder, Network

BOWL, WHOLE = Bowl(), "must be a whole number of at least"
NEEDS = ce.as_energy(lambda x, sigma, y: x.square().sum(1))
UNBOUND = r"depends on sigma, y, which is not bound: bind .*\.at\(sigma\).* or the annealed .*given\(y="
FLAT = ce.as_energy(lambda x, c: c.square().sum(1), name="flat").given(c=torch.zeros(4, 2))
LATENT = ce.as_energy(lambda image: image.flatten(1).sum(1)).pull_back(Decoder())


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
        refused(OptionError, f"leave out {next(iter(given))}", Bowl().sample, (3, 2), resume=trace, **given)
    refused(OptionError, "leave out shape", Bowl().sample, (4, 2), resume=trace)


def test_an_annealed_run_resumes_to_its_end():
    sampler = Annealed(levels=10)
    _, trace = Bowl().sample((4, 3), sampler=sampler, steps=4, seed=0, trace=True)
    x, trace = Bowl().sample((4, 3), resume=trace, trace=True)
    assert torch.equal(x, Bowl().sample((4, 3), sampler=sampler, seed=0)) and trace.steps == 10
    refused(OptionError, "takes 10 steps: 10 are done, and 1 were asked for", Bowl().sample, (4, 3), resume=trace)


@pytest.mark.slow
def test_chunks_get_their_own_rows_of_conditions():
    centred = ce.as_energy(lambda x, c: (x - c).square().sum(1) * 50)
    targets = torch.arange(10.0)[:, None].expand(10, 2)
    draw = functools.partial(centred.given(c=targets).sample, (10, 2), sampler=Langevin(0.01), steps=60, seed=0)
    x = draw()
    assert (x - targets).abs().max() < 0.6
    for size in (1, 3):
        assert torch.equal(x, draw(batch_size=size))
    assert (centred.given(c=targets).sample((10, 2), sampler=MALA(tuning_steps=10), steps=40, seed=0) - targets).abs().max() < 0.6


def test_latent_energies_are_decoded_at_the_end():
    decoder = Decoder()
    decoder.seen.clear()
    decoder.train()
    energy = ce.as_energy(quadratic, decoder=decoder, event_shape=(4,), name="latent")
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
    refused(ShapeError, wrong, draw, (5, 3, 4, 4))
    refused(ShapeError, r"latent has points of shape \(4,\)", latent, (5, 3, 2, 2))
    refused(ShapeError, r"init must have the shape \(5, 4\)", draw, 5, init=torch.zeros(4, 4))
    for decoder, got in ((torch.nn.LSTM(4, 2), "tuple"), (torch.nn.Flatten(0), r"shape \(\d+,\)")):
        odd = ce.as_energy(quadratic, decoder=decoder, event_shape=(4,))
        refused(ShapeError, f"gave {got} for points", odd.sample, 3, sampler=Langevin(0.1), steps=3, seed=0)


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
    assert energy.sample((3,), sampler=sampler, steps=1).shape == (3,)


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
    shapes = {name: array.shape for name, array in record["sample_stats"].items()}
    assert shapes == dict.fromkeys(("lp", "diverging", "acceptance_rate"), (5, 2))
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
    acceptance: object = None

    def init(self, energy, x, noise):
        return self.kind(x, *energy_and_gradient(energy, x), torch.linspace(0.5, 1, x.shape[1]))

    def step(self, energy, state, noise):
        x = state.x + state.scales * noise.normal(state.x)
        height = x[:, 0].double()
        scalars = {"level": 0.1 * noise.step, "height": height, "positive": torch.where(height > 0, height, torch.nan)}
        told = {"wide": x} if self.wide else {**scalars, "mean": height.mean().item()}
        return self.kind(x, *energy_and_gradient(energy, x), state.scales), Info(self.acceptance, scalars=told)


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
    ({"wide": True}, r"'wide' of Walk has shape \(5, 4\) for 5 chains"),
    *(({"acceptance": rate}, "'acceptance' of Walk has shape") for rate in (torch.tensor(0.5), torch.ones(5, 1), 0.5)),
    ({"kind": Unscaled}, r"Unscaled.scales has shape \(4,\) in a state of 5 chains.*write `scales: Tensor = field\(metadata="),
    call=lambda options: Bowl().sample((5, 4), sampler=Walk(**options), steps=3),
    error=ShapeError,
)


def test_points_that_a_sampler_returns_keep_their_shape():
    step, init = lambda self, energy, state, noise: (state, Info()), lambda self, energy, x, noise: State(x[1:], x[1:, 0], x[1:])
    wider = lambda self, energy, state, noise: (replace(state, x=state.x[..., None]), Info())
    for methods, message in (({"step": wider}, r"of shape \(5, 4, 1\) for"), ({"init": init, "step": step}, r"of shape \(4, 4\) for")):
        kind = dataclass(frozen=True)(type("Mine", (Sampler,), methods))
        refused(ShapeError, message, Bowl().sample, (5, 4), sampler=kind(), steps=2, seed=0)


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


class Still(Sampler):
    """Not a dataclass; stays where it is."""

    traits = Traits(steps=2)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def init(self, energy, x, noise):
        return State(x * self.scale, *energy_and_gradient(energy, x))

    def step(self, energy, state, noise):
        return state, Info()


def draw(energy=BOWL, shape=(3, 2), **options):
    return energy.sample(shape, **{"sampler": Langevin(0.1), "steps": 3, "seed": 0, **options})


def test_a_sampler_is_a_name_a_class_or_an_instance():
    wanted = draw(sampler=Langevin(0.3))
    for sampler in ("langevin", Langevin, Langevin(0.1)):
        assert torch.equal(draw(sampler=sampler, step_size=0.3), wanted)
    x = torch.ones(3, 2)
    assert torch.equal(Bowl().sample((3, 2), sampler=Still, scale=2.0, init=x), 2 * x)
    assert torch.equal(Bowl().sample((3, 2), sampler=Still(3.0), init=x), 3 * x)


@pytest.mark.slow
def test_a_sampler_of_noise_levels_is_not_recommended_at_a_level():
    energy = Bowl()
    energy.recommended = ce.Recommendation("annealed", {"levels": 5})
    refused(OptionError, r"recommends annealed\(levels=5\), which sets sigma itself, and here", (energy & energy).at(0.1).sample, (2, 2))
    assert (energy & energy).at(0.1).sample((2, 2), sampler="hmc", steps=2).shape == (2, 2)
    assert (energy.at(0.1) & energy).sample((2, 2)).shape == (2, 2)


@pytest.mark.slow
def test_without_a_sampler_it_is_what_the_energy_recommends():
    trace = Bowl().sample((3, 2), steps=1, trace=True)[1]
    assert isinstance(trace.sampler, ChEES) and trace.sampler.step_size is not None
    needs = ce.as_energy(lambda x, sigma: x.square().sum(1) / (1 + 2 * sigma**2))
    assert isinstance(needs.sample((3, 2), trace=True)[1].sampler, Annealed)
    a, b, c = Bowl(), Bowl(), Bowl()
    a.recommended = ce.Recommendation("langevin", {"step_size": 0.2}, threads=3)
    threads = []
    watch = [ce.sampling.Stop(lambda *_: threads.append(torch.get_num_threads()))]
    x, trace = (a & b).sample((3, 2), steps=2, seed=0, trace=True, observers=watch)
    assert trace.sampler == Langevin(0.2) and threads == [3, 3] and torch.get_num_threads() == 1
    draw(a & b, steps=1, observers=watch)
    assert threads[-1] == 3  # they are a matter of the networks, whatever the sampler
    assert torch.equal(x, draw(a & b, sampler=Langevin(0.2), steps=2))
    assert (a & b).sample((3, 2), steps=1, step_size=0.1, trace=True)[1].sampler == Langevin(0.1)
    c.name, c.recommended = "c", ce.Recommendation("hmc", {"leapfrogs": 2})
    settings = r"different settings: .*Bowl recommends langevin\(step_size=0.2\); c recommends .*hmc\(leapfrogs=2\)"
    refused(OptionError, settings, (a & b & c).sample, (3, 2))
    assert draw(a & b & c, steps=1).shape == (3, 2)


test_what_does_not_fit_is_reported_with_what_was_got = refusals(
    (
        {"sampler": Langevin, "stepsize": 0.1, "step_size": 0.1},
        OptionError,
        "no option stepsize; it takes step_size, temperature, clamp, metric, max_gradient, max_bias. Did you mean step_size",
    ),
    ({"zzz": 2}, OptionError, r"no option zzz; it takes step_size, .*, max_bias\."),
    ({"sampler": Langevin(temperature=0.0)}, OptionError, "At temperature 0 there is no bias to tune a step size for"),
    ({"sampler": Still, "speed": 2}, OptionError, "Still has no option speed; it takes scale"),
    ({"sampler": Still(), "scale": 2}, OptionError, "Still is an instance with its options; give scale to its constructor"),
    ({"sampler": 3}, OptionError, "A sampler is a name, a subclass of Sampler or an instance of one, got 3"),
    ({"sampler": dict}, OptionError, "A sampler is a name"),
    ({"sampler": "nothing"}, ComposableEnergyError, "No plug-in offers the sampler 'nothing'. Known: annealed"),
    ({"steps": "3"}, OptionError, f"steps {WHOLE} 1, got '3'"),
    ({"steps": True}, OptionError, f"steps {WHOLE} 1, got True"),
    ({"batch_size": 0}, OptionError, f"batch_size {WHOLE} 1"),
    ({"burn_in": -1}, OptionError, f"burn_in {WHOLE} 0"),
    ({"steps": 4, "burn_in": 4}, OptionError, "burn_in=4 keeps no point of 4 steps"),
    ({"trace": None}, OptionError, f"trace {WHOLE} 1, got None"),
    ({"first_chain": -1}, OptionError, f"first_chain {WHOLE} 0"),
    ({"first_chain": 2**32 - 1}, OptionError, r"ids of chains stay below 2\^32"),
    ({"observers": 3}, OptionError, r"observers is a list of observers, .*got 3 in it"),
    ({"allow_improper": "no"}, OptionError, "allow_improper must be True or False, got 'no'"),
    ({"compile": "yes"}, OptionError, "compile must be True or False, got 'yes'"),
    ({"on_divergence": ["keep"]}, OptionError, r"on_divergence is 'raise' or 'keep', got \['keep'\]"),
    ({"resume": {}}, OptionError, r"resume takes the Trace that .* returned, got dict"),
    ({"dtype": "float32"}, DtypeError, "dtype must be a dtype of torch, such as torch.float32, got 'float32'"),
    ({"dtype": torch.complex64}, DtypeError, "floating dtype, got torch.complex64"),
    ({"init": np.zeros((3, 2))}, DtypeError, "init must be a floating tensor, got ndarray"),
    ({"init": torch.zeros(3, 2, dtype=torch.int64)}, DtypeError, "init must be a floating tensor, got torch.int64"),
    ({"init": torch.zeros(3, 2), "dtype": F64}, DtypeError, "init is torch.float32, requested is torch.float64"),
    ({"init": torch.zeros(3, 2).to_sparse()}, DtypeError, r"init must be a dense tensor, got torch.sparse_coo; use `.to_dense\(\)`"),
    ({"init": torch.zeros(3, 2, 1)}, ShapeError, r"init has points of shape \(2, 1\): ask for \(3, 2, 1\) or 3, got \(3, 2\)"),
    ({"init": torch.zeros(4, 2)}, ShapeError, r"init must have the shape \(3, 2\) of the points, got \(4, 2\)"),
    ({"init": torch.zeros(())}, ShapeError, r"init has points of shape \(\)"),
    ({"shape": (3, "2")}, ShapeError, r"shape is a number of points or .* got \(3, '2'\)"),
    ({"shape": torch.tensor([3, 2])}, ShapeError, "shape is a number of points or"),
    ({"shape": (10**9, 1000)}, OptionError, "points of shape .* need at least 8 TB of memory"),
    ({"shape": (0, 2)}, ShapeError, r"all positive, got \(0, 2\)"),
    ({"shape": ()}, ShapeError, "positive number of points"),
    ({"shape": 3}, ShapeError, r"Bowl does not say the shape of its points: ask for \(n, \*shape\), got 3"),
    *[({"seed": seed}, OptionError, f"seed {WHOLE} -9223372036854775808, got ") for seed in (1.0, "1", True, math.nan, -(2**63) - 1)],
    ({"seed": torch.tensor([1, 2])}, OptionError, f"seed {WHOLE}"),
    ({"energy": 2 * ~BOWL}, UngroundedError, r"nothing grounds ~Bowl.* `&`.*relative_to.*allow_improper=True"),
    ({"energy": BOWL - ce.as_energy(lambda x: x.square().sum(1))}, UngroundedError, "has no lower bound.* write what is left"),
    ({"energy": NEEDS}, ExpressionError, UNBOUND),
    ({"energy": NEEDS, "sampler": Annealed()}, ExpressionError, "depends on y"),
    ({"energy": LATENT, "shape": 3}, ShapeError, "latent points; set its `event_shape`"),
    ({"energy": FLAT, "shape": (4, 2), "batch_size": 3}, ExpressionError, r"^flat.given\(c=.*has no gradient"),  # inside a chunk
    ({"seed": 2**64}, OptionError, r"seed must be below 2\^64, got 18446744073709551616: another seed would draw the same"),
    call=lambda options: draw(**options),
)


def test_whole_numbers_of_any_type_are_seeds_and_all_differ():
    draws = [draw(seed=seed) for seed in (0, 1, 2**32, 2**63, 2**64 - 2, -(2**63) + 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    assert torch.equal(draw(seed=np.int64(3)), draw(seed=3)) and torch.equal(draw(seed=torch.tensor(3)), draw(seed=3))
    assert torch.equal(draw(seed=-1), draw(seed=2**64 - 1))  # as in torch


def test_other_objects_are_lifted_or_refused():
    assert torch.equal(sample(lambda x: x.square().sum(1) / 2, (3, 2), sampler=Langevin(0.1), steps=3, seed=0), draw())
    refused(TypeError, "An energy is a callable", sample, 3, (3, 2))


class Changing(ce.Energy):
    """A bowl that returns something else from some call on."""

    def __init__(self, calls: int, change) -> None:
        super().__init__()
        self.left, self.change = calls, change

    def forward(self, x):
        self.left -= 1
        energies = x.square().sum(1) / 2
        return self.change(energies) if self.left < 0 else energies


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda e: e[:, None], ShapeError, r"returned energies of shape \(4, 1\) for points of shape \(4, 2\); expected \(4,\).*squeeze"),
        (lambda e: e.sum(), ShapeError, r"returned energies of shape \(\) .*not over the batch"),
        (lambda e: e[:2], ShapeError, r"returned energies of shape \(2,\)"),
        (lambda e: e.long(), DtypeError, "must return a floating tensor of energies, got torch.int64"),
        (lambda e: e.detach(), ComposableEnergyError, "has no gradient at its points"),
    ],
    ids=["column", "sum", "fewer", "integers", "detached"],
)
def test_an_energy_that_changes_its_output_is_reported_and_leaves_what_was_drawn(change, error, message, tmp_path):
    """The checkpoint has the last whole step, from which the mended energy goes on to the bits of an unbroken run."""
    run = functools.partial(draw, shape=(4, 2), sampler=HMC(0.3, leapfrogs=3), steps=9)
    keep, seen = ce.sampling.Checkpoint(tmp_path / "run", 1e9), []
    refused(error, message, run, Changing(16, change), observers=[keep])
    watch = ce.sampling.Stop(lambda step, state, info: seen.append(step))
    assert torch.equal(run(Changing(10**6, change), observers=[watch, keep]), run(Changing(10**6, change)))
    assert seen[0] > 4 and seen[-1] == 9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
@pytest.mark.parametrize("sampler", [Langevin(0.1), HMC(0.3, leapfrogs=3)], ids=repr)
def test_gradients_that_are_not_finite_are_treated_as_the_policy_says(sampler):
    """The energy is finite everywhere and its slope is not, beyond a radius."""

    def kinked(x):
        square = x.square().sum(1)
        return square / 2 + 1e-3 * torch.where(square > 8, square - square.detach(), 1.0).abs().sqrt()

    run = functools.partial(draw, ce.as_energy(kinked), (40, 2), sampler=sampler, steps=60, init=torch.zeros(40, 2))
    with pytest.raises(ce.errors.SamplingDiverged) as raised:
        run()
    assert raised.value.samples.shape == (40, 2) and raised.value.samples.isfinite().all() and raised.value.diverged.any()
    x, trace = run(trace=True, on_divergence="keep")
    assert trace.diverged.any() and x.isfinite().all() and x.square().sum(1).max() <= 8


def test_without_any_sampler_the_error_says_what_to_install(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("composable_energy.registry.registry.scan", lambda group: [])
        patch.setattr(sys, "path", [*sys.path, "another"])
        for sampler in (None, "langevin"):
            with pytest.raises(ce.errors.PluginNotFound, match=r"No sampler is installed.*composable-energy-mcmc, or pass an instance"):
                ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0)).sample((3, 2), sampler=sampler)


test_wrong_arguments_of_observers_are_refused = refusals(
    ("Progress", ["no"], "Progress takes a function of what runs, what is done and the total, or nothing for bars, got 'no'"),
    ("Stop", [3], "Stop takes a function of a step, a state and an info, got 3"),
    ("Checkpoint", [True], "Checkpoint takes the path of a file, got True"),
    *[("Checkpoint", ["c", every], "Checkpoint takes a number of seconds, at least 0, as `every`") for every in ("1", -1, math.nan)],
    call=lambda observer, given: getattr(ce.sampling, observer)(*given),
    error=OptionError,
)
