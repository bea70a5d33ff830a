"""The driver: the same chains whatever the chunks, stops and resumes; what is asked for is what comes back."""

import functools
import pickle
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import (
    DeviceError,
    DtypeError,
    ExpressionError,
    OptionError,
    ShapeError,
    UngroundedError,
)
from composable_energy.sampling import Info, Noise, Sampler, State, energy_and_gradient, sample
from composable_energy.sampling.request import resolve_noise
from composable_energy_mcmc import HMC, MALA, Annealed, ChEES, Langevin

F64 = torch.float64
SAMPLERS = [Langevin(0.1), MALA(0.3), HMC(0.3, leapfrogs=4), Annealed(levels=30, corrector_steps=1)]


class Bowl(ce.Energy):
    """A unit Gaussian; at a noise level, with the noise added. Elementwise, so chunks change no bit."""

    def forward(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        return x.square().reshape(len(x), -1).sum(1) / (2 * (1 + sigma**2))


class Network(ce.Energy):
    def __init__(self, dtype: torch.dtype = F64) -> None:
        super().__init__()
        self.event_shape = torch.Size([12])
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)).to(dtype)
        for parameter in self.net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype) / 3

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1) + x.square().sum(1) / 2


def same(a, b):
    return torch.equal(a, b)


# Who else draws --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["blocks", "philox"])
@pytest.mark.parametrize("sampler", [*SAMPLERS, MALA(tuning_steps=10), HMC(tuning_steps=10)], ids=repr)
def test_chunks_change_no_bit_of_elementwise_energies(sampler, noise):
    draw = functools.partial(Bowl().sample, (70, 3), sampler=sampler, steps=5, noise=noise)
    whole = draw(seed=4)
    assert same(whole, draw(seed=4)) and all(same(whole, draw(seed=4, batch_size=size)) for size in (1, 7, 64))
    assert same(whole[:5], Bowl().sample((5, 3), sampler=sampler, steps=5, seed=4, noise=noise))
    assert same(whole[6:], Bowl().sample((64, 3), sampler=sampler, steps=5, seed=4, noise=noise, first_chain=6))
    assert not torch.isclose(whole, draw(seed=5)).any()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_chunks_change_networks_by_the_rounding_of_a_product(sampler):
    draw = functools.partial(Network().sample, 70, sampler=sampler, steps=12, seed=4)
    whole = draw()
    assert whole.dtype == F64
    for size in (1, 7, 64):
        assert (draw(batch_size=size) - whole).abs().max() < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [*SAMPLERS, HMC(tuning_steps=10)], ids=repr)
@pytest.mark.parametrize("size", [None, 7])
def test_a_resumed_run_is_one_long_run(sampler, size):
    long, long_trace = Bowl().sample((20, 3), sampler=sampler, steps=30, seed=0, trace=2)
    _, trace = Bowl().sample((20, 3), sampler=sampler, steps=11, seed=0, trace=True, batch_size=size)
    trace = pickle.loads(pickle.dumps(trace))
    x, rest = Bowl().sample(20, resume=trace, steps=19, trace=2, batch_size=size)
    assert same(x, long) and same(rest.energies, long_trace.energies[11:]) and rest.steps == 30
    assert same(rest.points, long_trace.points[5:]) and rest.point_steps == long_trace.point_steps[5:]


def test_an_annealed_run_resumes_to_its_end():
    sampler = Annealed(levels=10)
    _, trace = Bowl().sample((4, 3), sampler=sampler, steps=4, seed=0, trace=True)
    x, trace = Bowl().sample((4, 3), resume=trace, trace=True)
    assert same(x, Bowl().sample((4, 3), sampler=sampler, seed=0)) and trace.steps == 10
    with pytest.raises(OptionError, match="takes 10 steps: 10 are done, and 1 were asked for"):
        Bowl().sample((4, 3), resume=trace)


@pytest.mark.parametrize(
    "given",
    [
        {"sampler": "hmc"},
        {"seed": 1},
        {"init": torch.zeros(3, 2)},
        {"step_size": 0.2},
        {"best_of": 2},
        {"first_chain": 1},
        {"noise": "philox"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_resumed_run_changes_nothing(given):
    _, trace = Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2, seed=0, trace=True)
    with pytest.raises(OptionError, match=f"leave out {next(iter(given))}"):
        Bowl().sample((3, 2), resume=trace, **given)
    with pytest.raises(OptionError, match="leave out shape"):
        Bowl().sample((4, 2), resume=trace)
    with pytest.raises(OptionError, match="resume takes the Trace"):
        Bowl().sample((4, 2), resume=3)


def test_a_resumed_run_keeps_its_dtype():
    _, trace = Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2, dtype=F64, trace=True)
    assert Bowl().sample((3, 2), resume=trace, steps=1).dtype == F64


def test_a_seed_that_nobody_gave_is_told():
    x, trace = Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2, trace=True)
    assert same(x, Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2, seed=trace.seed))
    assert not same(x, Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2))


def test_chunks_get_their_own_rows_of_conditions():
    centred = ce.as_energy(lambda x, c: (x - c).square().sum(1) * 50)
    targets = torch.arange(10.0)[:, None].expand(10, 2)
    draw = functools.partial(centred.given(c=targets).sample, (10, 2), sampler=Langevin(0.01), steps=60, seed=0)
    x = draw()
    assert (x - targets).abs().max() < 0.6
    for size in (1, 3):
        assert same(x, draw(batch_size=size))
    best = draw(best_of=3, batch_size=4)
    assert (best - targets).abs().max() < 0.6
    assert ((best - targets).square().sum(1) <= (x - targets).square().sum(1) + 1).all()
    tuned = centred.given(c=targets).sample((10, 2), sampler=HMC(tuning_steps=40), steps=40, seed=0)
    assert (tuned - targets).abs().max() < 0.6


# What comes back -------------------------------------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    seen: ClassVar[list[int]] = []  # of all copies: sampling decodes with one

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Dropout(0.5))

    def forward(self, z: Tensor) -> Tensor:
        self.seen.append(len(z))
        return self.net(z).view(-1, 3, 2, 2)


class Latent(ce.Energy):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.event_shape = torch.Size([4])
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        return z.square().sum(1) / 2


def test_latent_energies_are_decoded_at_the_end():
    decoder = Decoder()
    decoder.seen.clear()
    decoder.train()
    energy = Latent(decoder)
    draw = functools.partial(energy.sample, sampler=Langevin(0.1), steps=3, seed=0)
    x, z = draw(300), draw(300, latents=True)
    assert x.shape == (300, 3, 2, 2) and z.shape == (300, 4) and not x.requires_grad
    assert decoder.seen == [1, 128, 128, 44]
    assert same(draw((300, 3, 2, 2)), x) and same(draw((300, 4), latents=True), z)
    decoder.eval()
    with torch.no_grad():
        assert torch.allclose(decoder(z), x, atol=1e-6)
    decoder.event_shape = torch.Size([3, 2, 2])
    decoder.seen.clear()
    assert draw(2).shape == (2, 3, 2, 2) and decoder.seen == [2]
    with pytest.raises(
        ShapeError, match=r"decodes to points of shape \(3, 2, 2\): ask for \(5, 3, 2, 2\) or 5, got \(5, 3, 4, 4\); latents"
    ):
        draw((5, 3, 4, 4))
    with pytest.raises(ShapeError, match=r"Latent has points of shape \(4,\)"):
        draw((5, 3, 2, 2), latents=True)
    with pytest.raises(ShapeError, match=r"init must have the shape \(5, 4\)"):
        draw(5, init=torch.zeros(4, 4))


def test_an_image_energy_joins_latent_ones():
    energy = Latent(Decoder()) & ce.as_energy(lambda image: image.square().flatten(1).sum(1), event_shape=(3, 2, 2))
    x, trace = energy.sample((6, 3, 2, 2), sampler=Langevin(0.05), steps=4, seed=0, trace=1, batch_size=4)
    assert x.shape == (6, 3, 2, 2) and trace.points.shape == (4, 6, 4)


def test_shapes_dtypes_and_starts_are_followed():
    sampler, energy = Langevin(0.1), Bowl()
    init = torch.randn(3, 2, dtype=F64, requires_grad=True)
    before = init.detach().clone()
    x = energy.sample((3, 2), sampler=sampler, steps=3, seed=0, init=init)
    assert x.dtype == F64 and not x.requires_grad and same(init.detach(), before) and init.grad is None
    assert same(x, energy.sample(3, sampler=sampler, steps=3, seed=0, init=init))
    assert energy.sample(torch.Size([3, 2]), sampler=sampler, steps=1, dtype=torch.float16).dtype == torch.float16
    assert ce.as_energy(torch.distributions.Normal(torch.zeros(2, dtype=F64), 1.0)).sample(3, sampler=sampler, steps=1).dtype == F64
    assert Network(torch.float32).sample(3, sampler=sampler, steps=1).dtype == torch.float32
    single = energy.sample((3,), sampler=sampler, steps=1)
    assert single.shape == (3,)


@pytest.mark.slow
def test_the_trace_tells_what_was_done():
    x, trace = Bowl().sample((5, 3), sampler=MALA(0.5), steps=12, seed=3, trace=4, burn_in=3, batch_size=2)
    assert trace.energies.shape == trace.acceptance.shape == (12, 5)
    torch.testing.assert_close(trace.energies[-1], Bowl()(x))
    assert trace.point_steps == [7, 11] and trace.points.shape == (2, 5, 3)
    torch.testing.assert_close(trace.energies[10], Bowl()(trace.points[1]))
    assert (trace.seed, trace.noise, trace.steps, trace.shape, trace.best_of) == (3, "blocks", 12, (5, 3), 1)
    assert trace.kept.tolist() == [0, 1, 2, 3, 4] and not trace.diverged.any()
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


def test_the_best_of_several_has_the_lowest_evidence():
    base = Bowl()
    energy = base & ce.as_energy(lambda x: 0.5 * x.square().sum(1) + (x[:, 0] - 1).square()).relative_to(base)
    x, trace = energy.sample((6, 2), sampler=HMC(0.3), steps=10, seed=0, best_of=4, trace=1)
    everything = trace.points[-1]
    evidence = energy.evidence(everything).view(6, 4)
    assert trace.kept.tolist() == (evidence.argmin(1) + torch.arange(0, 24, 4)).tolist()
    assert same(x, everything[trace.kept]) and trace.best_of == 4
    assert same(x, energy.sample((6, 2), sampler=HMC(0.3), steps=10, seed=0, best_of=4, batch_size=5))


def test_the_best_of_noise_levels_is_judged_at_the_last():
    x, trace = Bowl().sample((3, 2), sampler=Annealed(levels=4), seed=0, best_of=5, trace=1)
    chosen = Bowl()(trace.points[-1], sigma=0.05).view(3, 5).amin(1)
    torch.testing.assert_close(Bowl()(x, sigma=0.05), chosen)


def test_a_callback_sees_all_chains_and_stops_early(capsys):
    seen = []

    def callback(step: int, state: State, info: Info) -> bool:
        seen.append((step, state.x.shape, info.acceptance.shape))
        torch.testing.assert_close(state.energy, Bowl()(state.x))
        return step == 4

    x, trace = Bowl().sample((5, 3), sampler=MALA(0.5), steps=12, seed=3, callback=callback, batch_size=2, trace=True, progress=True)
    assert seen == [(step, (5, 3), (5,)) for step in (1, 2, 3, 4)]
    assert trace.steps == 4 and same(x, Bowl().sample((5, 3), sampler=MALA(0.5), steps=4, seed=3))
    printed = capsys.readouterr()
    assert printed.out == "" and "mala" in printed.err
    Bowl().sample((5, 3), sampler=MALA(0.5), steps=2)
    assert capsys.readouterr() == ("", "")


# Which sampler ---------------------------------------------------------------------------------------------------------------------------


class Still(Sampler):
    """Not a dataclass; stays where it is."""

    default_steps = 2

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def init(self, energy, x, noise):
        return State(x * self.scale, *energy_and_gradient(energy, x))

    def step(self, energy, state, noise):
        return state, Info()


def named(monkeypatch, **samplers):
    import composable_energy.registry as registry

    monkeypatch.setattr(registry, "get_sampler", samplers.__getitem__)


def test_a_sampler_is_a_name_a_class_or_an_instance(monkeypatch):
    named(monkeypatch, langevin=Langevin)
    draws = [
        Bowl().sample((3, 2), sampler="langevin", step_size=0.3, steps=3, seed=0),
        Bowl().sample((3, 2), sampler=Langevin, step_size=0.3, steps=3, seed=0),
        Bowl().sample((3, 2), sampler=Langevin(0.3), steps=3, seed=0),
        Bowl().sample((3, 2), sampler=Langevin(0.1), step_size=0.3, steps=3, seed=0),
    ]
    assert all(same(draw, draws[0]) for draw in draws)
    x = torch.ones(3, 2)
    assert same(Bowl().sample((3, 2), sampler=Still, scale=2.0, init=x), 2 * x)
    assert same(Bowl().sample((3, 2), sampler=Still(3.0), init=x), 3 * x)


@pytest.mark.parametrize(
    "answer", [lambda now: now == 4, lambda now: torch.tensor(now == 4), lambda now: torch.full((3,), now == 4), np.float64(4).__eq__]
)
def test_a_callback_stops_by_whatever_a_comparison_gives(answer):
    _, trace = Bowl().sample((3, 2), sampler=Langevin(0.1), steps=9, trace=True, callback=lambda step, state, info: answer(step))
    assert trace.steps == 4


def test_a_callback_stops_by_nothing_else():
    _, trace = Bowl().sample((3, 2), sampler=Langevin(0.1), steps=3, trace=True, callback=lambda step, state, info: state.energy)
    assert trace.steps == 3


def test_a_sampler_of_noise_levels_is_not_recommended_at_a_level():
    energy = Bowl()
    energy.recommended = ce.Recommendation("annealed", {"levels": 5})
    with pytest.raises(OptionError, match=r"recommends annealed\(levels=5\), which sets sigma itself, and here that is bound"):
        (energy & energy).at(0.1).sample((2, 2))
    assert (energy & energy).at(0.1).sample((2, 2), sampler="hmc", steps=2).shape == (2, 2)
    assert (energy.at(0.1) & energy).sample((2, 2)).shape == (2, 2)
    plain = ce.as_energy(lambda x: x.square().sum(1))
    plain.recommended = energy.recommended
    assert plain.sample((2, 2)).shape == (2, 2)


def test_without_a_sampler_it_is_what_the_energy_recommends(monkeypatch):
    named(monkeypatch, langevin=Langevin, chees=ChEES, hmc=HMC, annealed=Annealed)
    trace = Bowl().sample((3, 2), steps=1, trace=True)[1]
    assert isinstance(trace.sampler, ChEES) and trace.sampler.step_size is not None
    needs = ce.as_energy(lambda x, sigma: x.square().sum(1) / (1 + sigma**2))
    assert isinstance(needs.sample((3, 2), trace=True)[1].sampler, Annealed)
    a, b, c = Bowl(), Bowl(), Bowl()
    a.recommended = ce.Recommendation("langevin", {"step_size": 0.2}, threads=3)
    threads = []
    x, trace = (a & b).sample((3, 2), steps=2, seed=0, trace=True, callback=lambda *_: threads.append(torch.get_num_threads()))
    assert trace.sampler == Langevin(0.2) and threads == [3, 3] and torch.get_num_threads() == 1
    (a & b).sample((3, 2), sampler=Langevin(0.1), steps=1, seed=0, callback=lambda *_: threads.append(torch.get_num_threads()))
    assert threads[-1] == 3  # they are a matter of the networks, whatever the sampler
    assert same(x, (a & b).sample((3, 2), sampler=Langevin(0.2), steps=2, seed=0))
    assert (a & b).sample((3, 2), steps=1, step_size=0.1, trace=True)[1].sampler == Langevin(0.1)
    c.name, c.recommended = "c", ce.Recommendation("hmc", {"leapfrogs": 2})
    with pytest.raises(
        OptionError, match=r"different settings: .*Bowl recommends langevin\(step_size=0.2\); c recommends .*hmc\(leapfrogs=2\)"
    ):
        (a & b & c).sample((3, 2))
    assert (a & b & c).sample((3, 2), sampler=Langevin(0.1), steps=1).shape == (3, 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"stepsize": 0.1, "step_size": 0.1},
            OptionError,
            "no option stepsize; it takes step_size, temperature, clamp, metric, max_gradient, max_bias. Did you mean step_size",
        ),
        ({"step_size": 0.1, "batch_siz": 2}, OptionError, "Did you mean batch_size"),
        (
            {"step_size": 0.1, "zzz": 2},
            OptionError,
            "no option zzz; it takes step_size, .*, max_bias.$",
        ),
        (
            {"sampler": Langevin(temperature=0.0)},
            OptionError,
            "At temperature 0 there is no bias to tune a step size for",
        ),
        ({"sampler": Still, "speed": 2}, OptionError, "Still has no option speed; it takes scale"),
        ({"sampler": Still(), "scale": 2}, OptionError, "Still is an instance with its options; give scale to its constructor"),
        ({"sampler": 3}, OptionError, "A sampler is a name, a subclass of Sampler or an instance of one, got 3"),
        ({"sampler": dict}, OptionError, "A sampler is a name"),
        ({"steps": 0}, OptionError, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, OptionError, "steps must be a whole number of at least 1, got 2.5"),
        ({"steps": True}, OptionError, "steps must be a whole number of at least 1, got True"),
        ({"batch_size": 0}, OptionError, "batch_size must be a whole number of at least 1"),
        ({"best_of": 0}, OptionError, "best_of must be a whole number of at least 1"),
        ({"burn_in": -1}, OptionError, "burn_in must be a whole number of at least 0"),
        ({"trace": 0}, OptionError, "trace must be a whole number of at least 1"),
        ({"first_chain": -1}, OptionError, "first_chain must be a whole number of at least 0"),
        ({"first_chain": 2**32 - 1}, OptionError, r"ids of chains stay below 2\^32"),
        ({"seed": "x"}, OptionError, "seed must be a whole number of at least -9223372036854775808, got 'x'"),
        ({"noise": "torch"}, OptionError, "noise is 'blocks' or 'philox', got 'torch'"),
        ({"on_divergence": "ignore"}, OptionError, "on_divergence is 'raise', 'drop', 'restart' or 'keep', got 'ignore'"),
        ({"shape": 0}, ShapeError, "positive number of points .* got 0"),
        ({"shape": (0, 2)}, ShapeError, r"all positive, got \(0, 2\)"),
        ({"shape": ()}, ShapeError, "positive number of points"),
        ({"shape": 2.5}, ShapeError, "a number of points or .* got 2.5"),
        ({"shape": "ab"}, ShapeError, "a number of points or .* got 'ab'"),
        ({"shape": True}, ShapeError, "positive number of points"),
        ({"shape": 3}, ShapeError, r"Bowl does not say the shape of its points: ask for \(n, \*shape\), got 3"),
        ({"init": torch.zeros(3, 3)}, ShapeError, r"init has points of shape \(3,\)"),
        ({"init": torch.zeros(4, 2)}, ShapeError, r"init must have the shape \(3, 2\) of the points, got \(4, 2\)"),
        ({"init": torch.zeros(3, 2, dtype=torch.int64)}, DtypeError, "init must be a floating tensor, got torch.int64"),
        ({"init": [[0.0, 0.0]] * 3}, DtypeError, "init must be a floating tensor, got list"),
        ({"init": torch.zeros(3, 2), "dtype": F64}, DtypeError, "init is torch.float32, requested is torch.float64"),
        ({"init": torch.zeros(3, 2), "device": "meta"}, DeviceError, "init is on cpu, requested is meta"),
        ({"dtype": torch.int64}, DtypeError, "floating dtype, got torch.int64"),
    ],
)
def test_what_does_not_fit_is_told(options, error, message):
    options = {"shape": (3, 2), "sampler": Langevin, **options}
    if options["sampler"] is Langevin and "needs" not in message and "step_size" not in options:
        options["step_size"] = 0.1
    with pytest.raises(error, match=message):
        Bowl().sample(options.pop("shape"), **options)


def test_densities_that_are_none_are_told():
    bowl, tilt = Bowl(), ce.as_energy(lambda x: x.square().sum(1))
    with pytest.raises(UngroundedError, match=r"nothing grounds ~Bowl.* `&`.*relative_to.*allow_improper=True"):
        (2 * ~bowl).sample((3, 2), sampler=Langevin(0.1))
    with pytest.raises(UngroundedError, match="has no lower bound"):
        (bowl - tilt).sample((3, 2), sampler=Langevin(0.1))
    assert (~bowl).sample((3, 2), sampler=Langevin(0.1), steps=3, allow_improper=True).shape == (3, 2)
    needs = ce.as_energy(lambda x, sigma, y: x.square().sum(1))
    with pytest.raises(
        ExpressionError, match=r"depends on sigma, y, which is not bound: bind .*\.at\(sigma\).* or the annealed .*given\(y="
    ):
        needs.sample((3, 2), sampler=Langevin(0.1))
    with pytest.raises(ExpressionError, match="depends on y"):
        needs.sample((3, 2), sampler=Annealed())
    with pytest.raises(ShapeError, match="latent points; set its `event_shape`"):
        ce.as_energy(lambda image: image.flatten(1).sum(1)).pull_back(Decoder()).sample(3, sampler=Langevin(0.1))


def test_an_energy_without_gradient_is_told():
    with pytest.raises(ExpressionError, match="has no gradient at its points: it is constant, or detaches"):
        ce.as_energy(lambda x: x.detach().square().sum(1)).sample((3, 2), sampler=Langevin(0.1))


@dataclass(frozen=True)
class Counting(Sampler):
    """Uses hooks, and a state with rows and a shared number of its own."""

    shift: float | None = None

    def start(self, like, noise):
        return noise.normal(like) + 100

    def tune(self, energy, x, noise):
        assert x.shape == (64, 2) and (x > 90).all() and len(noise.chains) == 64
        return replace(self, shift=float(energy(x).mean() * 0 + 1)), x

    def init(self, energy, x, noise):
        return Counted(x, *energy_and_gradient(energy, x), torch.zeros(len(x)), torch.zeros(()))

    def step(self, energy, state, noise):
        x = state.x + self.shift
        moved = Counted(x, *energy_and_gradient(energy, x), state.age + 1, state.total + 1)
        return moved, Info(scalars={"age": float(moved.total)})


@dataclass(frozen=True)
class Counted(State):
    age: Tensor
    total: Tensor


def test_samplers_may_have_a_start_a_tuning_and_a_state_of_their_own():
    first = Bowl().sample((5, 2), sampler=Counting(), steps=3, seed=0, batch_size=2)
    torch.testing.assert_close(first, Noise(0, range(5)).child("start").normal(first) + 103)
    _, trace = Bowl().sample((5, 2), sampler=Counting(), steps=2, seed=0, batch_size=3, trace=True)
    assert trace.sampler == Counting(1.0) and trace.scalars == {"age": [1.0, 2.0]}
    assert [(len(ids), state.age.tolist(), float(state.total)) for ids, _, state in trace.states] == [
        (3, [2.0] * 3, 2.0),
        (2, [2.0] * 2, 2.0),
    ]
    assert same(first, Bowl().sample((5, 2), resume=trace, steps=1, batch_size=4))


def test_the_best_of_several_resumes():
    given = {"sampler": Langevin(0.1), "seed": 0, "best_of": 3}
    whole = Bowl().sample((4, 2), steps=5, **given)
    _, trace = Bowl().sample((4, 2), steps=3, trace=True, **given)
    assert same(whole, Bowl().sample((4, 2), steps=2, resume=trace))


def test_noise_is_philox_where_blocks_cannot_be_drawn():
    assert resolve_noise(None, torch.device("cuda")) == resolve_noise("philox", torch.device("cuda")) == "philox"
    assert resolve_noise(None, torch.device("cpu")) == "blocks" and resolve_noise("philox", torch.device("cpu")) == "philox"
    with pytest.raises(OptionError, match="'blocks' is drawn on the CPU, the points are on cuda"):
        resolve_noise("blocks", torch.device("cuda"))


def test_an_error_inside_a_chunk_names_the_energy():
    energy = ce.as_energy(lambda x, c: c.square().sum(1), name="flat").given(c=torch.zeros(4, 2))
    with pytest.raises(ExpressionError, match=r"^flat.given\(c=.*has no gradient"):
        energy.sample((4, 2), sampler=Langevin(0.1), batch_size=3)


def test_what_is_no_energy_is_lifted_or_told():
    drawn = sample(lambda x: x.square().sum(1) / 2, (3, 2), sampler=Langevin(0.1), steps=2, seed=0)
    assert same(drawn, Bowl().sample((3, 2), sampler=Langevin(0.1), steps=2, seed=0))
    with pytest.raises(TypeError, match="An energy is a callable"):
        sample(3, (3, 2))
