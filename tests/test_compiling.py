"""`sample(compile=True)` draws the points of single eager steps up to rounding, whoever looks on, and sees a changed energy."""

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor as Pool
from typing import ClassVar

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.sampling import Info, Sampler, State
from composable_energy_mcmc import HMC, MALA, ChEES, Langevin
from composable_energy_mcmc.metric import Metric
from tests.factories import DTYPE, LEAVES, Affine, Noisy, needs_compiler
from tests.processes import run_code

pytestmark = [pytest.mark.full, needs_compiler, pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")]


PAIR = ce.as_energy(torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3)), name="zero") | ce.as_energy(
    torch.distributions.MultivariateNormal(torch.ones(3), torch.eye(3) / 2), name="one"
)
RADIUS = 5.0  # that `Scaled` reads, and a test changes
CALL = {"steps": 21, "seed": 3, "init": torch.zeros(20, 3)}
ONE_STEP = {"batch_size": 2}  # of more chains: functions take one step, and not eight, which compile for eight times as long


def single_steps(why):
    """Returns a context in which a call warns that only its gradient is compiled."""
    return pytest.warns(RuntimeWarning, match=f"gradient alone is compiled, because .*{why}")


def both(energy, shape, **options):
    """Returns points and trace without compilation and with it."""
    return [energy.sample(shape, trace=1, compile=compile, **options) for compile in (False, True)]


def assert_draws_same(energy, shape, **options):
    (plain, wanted), (fast, trace) = both(energy, shape, **options)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trace.points, wanted.points, rtol=1e-4, atol=1e-4)
    if wanted.acceptance is not None:
        torch.testing.assert_close(trace.acceptance, wanted.acceptance, rtol=1e-3, atol=1e-3)


@dataclasses.dataclass(frozen=True, eq=False)
class Counted(Sampler):
    """Langevin steps that count how often they are called."""

    scale: float = 0.3
    calls: ClassVar[list[int]] = []

    def init(self, energy, x, noise):
        return State(x, *energy.with_gradient(x))

    def step(self, energy, state, noise):
        self.calls.append(1)
        x = noise.add_normal_(state.x - 0.05 * state.grad, self.scale)
        return State(x, *energy.with_gradient(x)), Info(scalars={"height": x.sum(1), "length": 0.3})


def test_points_and_infos_are_those_of_single_steps_or_of_a_compiled_gradient_where_steps_differ():
    assert_draws_same(PAIR, (20, 3), sampler=HMC(0.3, 2, jitter=False), **ONE_STEP, **CALL)
    with single_steps("noise"):
        assert_draws_same(PAIR, (20, 3), sampler=ChEES(0.2, 1.1, Metric(torch.tensor([0.5, 1.0, 2.0]))), **CALL)


def test_every_kind_of_node_is_compiled():
    event = (LEAVES["event"] | ~LEAVES["red"]) & LEAVES["warm"]
    energy = (
        event
        & LEAVES["density"]
        & 2.0 * LEAVES["tilt"]
        & ce.any_of(LEAVES["ring"], ce.negate(LEAVES["relative"]), weights=[1, 1])
        & Noisy().given(sigma=0.5)
    )
    assert_draws_same(energy, (20, 2), sampler=Langevin(0.02), steps=9, seed=1, dtype=DTYPE, **ONE_STEP)
    positive = ce.as_energy(torch.distributions.LogNormal(torch.zeros(3), torch.ones(3)))
    assert_draws_same(positive, (20, 3), sampler=MALA(0.2), steps=9, seed=1, init=torch.full((20, 3), 1.5), **ONE_STEP)


def test_batches_conditions_of_chains_and_tuned_samplers_draw_the_same():
    head = ce.GaussianHead(Affine(4, 3), LEAVES["distribution"], dims=2)
    points = torch.linspace(-1, 1, 12, dtype=DTYPE).reshape(6, 2)
    energy = LEAVES["red"] & head(points) & Noisy().given(sigma=torch.linspace(0.1, 2, 6, dtype=DTYPE))
    options = {"seed": 3, "sampler": Langevin(0.05), "steps": 20, "dtype": DTYPE}
    assert_draws_same(energy, (6, 2), **options)
    with single_steps("conditions of its own"):
        assert_draws_same(energy, (6, 2), batch_size=4, **options)
    annealed = {"sampler": "annealed", "levels": 5, "sigma_max": 2.0, "sigma_min": 0.1, "corrector_steps": 1, "seed": 0}
    with single_steps("schedule"):
        assert_draws_same(Noisy(), (4, 2), dtype=DTYPE, **annealed)


def test_the_points_do_not_depend_on_who_looks_on_and_where_a_call_is_resumed(tmp_path):
    call, seen = {"sampler": MALA(0.3), "compile": True, **CALL}, []
    wanted, trace = PAIR.sample((20, 3), trace=1, **call)

    def look(step, state, info):
        seen.append(state.x)
        info.scalars.clear()

    assert torch.equal(PAIR.sample((20, 3), observers=[ce.sampling.Stop(look)], **call), wanted)
    assert torch.equal(torch.stack(seen), trace.points)
    part = PAIR.sample((20, 3), observers=[ce.sampling.Checkpoint(tmp_path / "c")], **{**call, "steps": 5})
    assert torch.equal(part, trace.points[4])
    assert torch.equal(PAIR.sample((20, 3), observers=[ce.sampling.Checkpoint(tmp_path / "c")], **call), wanted)


def test_steps_are_compiled_once_and_not_taken_one_by_one():
    chains, energy = 4000, PAIR & ce.as_energy(lambda x: x.exp().sum(1) / 8, event_shape=(3,))
    call = {**CALL, "init": torch.zeros(chains, 3), "sampler": Counted(), "trace": True}
    wanted, record = energy.sample((chains, 3), **call)
    for calls in (1 + 1, 0):  # one step for the checks, and one that is recorded
        Counted.calls.clear()
        with torch.profiler.profile() as profile:
            found, trace = energy.sample((chains, 3), compile=True, **call)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        assert trace.scalars["height"] == pytest.approx(record.scalars["height"], rel=1e-3, abs=1e-3)
        assert trace.scalars["length"] == record.scalars["length"] and len(Counted.calls) == calls
    assert sum(one.count for one in profile.key_averages() if one.key == "aten::exp") < CALL["steps"]  # the steps run compiled


class Cliff(ce.Energy):
    """A plane that ends: its energy is not a number beyond 2."""

    def forward(self, x):
        return torch.where(x[:, 0] > 2.0, torch.nan, -x.sum(1))


@pytest.mark.filterwarnings("ignore:.*some chains have stopped")
def test_chains_that_diverge_end_at_the_same_step_and_the_others_go_on():
    (wanted, record), (found, trace) = both(Cliff(), (20, 3), **{**CALL, "sampler": Langevin(0.05), "steps": 60, "on_divergence": "keep"})
    assert 0 < trace.diverged.sum() < 20
    torch.testing.assert_close(found, wanted)
    assert torch.equal(trace.diverged_at, record.diverged_at)


class Stray(ce.Energy):
    """An energy that cannot be compiled, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        if self.way == "decides":
            return x.square().sum(1) * (2 if x.sum() > 0 else 1)
        self.way += "."  # remembers calls
        return x.square().sum(1) * len(self.way)


@pytest.mark.parametrize(("way", "reason"), [("decides", "cannot be traced"), ("counts", "else")])
def test_what_cannot_be_compiled_runs_as_it_is_and_says_why_once(way, reason):
    with pytest.warns(RuntimeWarning, match=reason) as raised:
        Stray(way).sample((3, 2), sampler=Langevin(0.01), steps=4, seed=0, compile=True)
    assert [one.filename for one in raised if issubclass(one.category, RuntimeWarning)] == [__file__]


def test_the_checks_of_distributions_reject_points_there_too():
    data = torch.tensor([0.3, 1.2, 2.0], dtype=DTYPE)
    energy = ce.as_energy(lambda x: -torch.distributions.Gamma(x[:, :1], x[:, 1:]).log_prob(data).sum(1), event_shape=(2,))
    assert_draws_same(energy, (8, 2), **{"sampler": MALA(0.5), "steps": 30, "seed": 0, "init": torch.ones(8, 2, dtype=DTYPE), **ONE_STEP})
    with pytest.raises(ValueError, match="concentration"):  # also after the compiler was used
        energy(-torch.ones(1, 2, dtype=DTYPE))


class Scaled(ce.Energy):
    """Numbers that are no tensors, in the object, its class, a part and the module, and a weight."""

    power = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.part = nn.Identity()
        vars(self.part)["shift"] = 0.0

    def forward(self, x):
        bowl = self.weight * (x - self.part.shift).abs().pow(self.power).sum(1)
        return torch.where(x.norm(dim=1) > RADIUS, 2 * bowl, bowl)


@pytest.fixture
def compilations(monkeypatch):
    """Returns how often a call compiles, without code of the machine; its draws are checked."""
    count, original = [], torch.compile
    traced = {"fullgraph": True, "dynamic": False, "backend": "aot_eager"}
    monkeypatch.setattr(torch, "compile", lambda function, **options: (count.append(1), original(function, **traced))[1])

    def counted(energy):
        count.clear()
        assert_draws_same(energy, (4, 2), sampler=Langevin(0.05), steps=9, seed=0, init=torch.ones(4, 2), **ONE_STEP)
        return len(count)

    return counted


def test_calls_keep_what_was_compiled_and_see_what_was_changed(compilations, monkeypatch):
    energy = Scaled()
    assert compilations(energy) == 1 and compilations(energy) == 0
    for change in (
        lambda: setattr(energy.part, "shift", 0.5),
        lambda: monkeypatch.setattr(sys.modules[__name__], "RADIUS", 4.0),  # no point is there
        lambda: monkeypatch.setattr(Scaled, "power", 4),
    ):
        change()
        assert compilations(energy) == 1
    energy.weight.data.mul_(1.5)  # functions read tensors where they are
    assert compilations(energy) == 0
    energy.weight = nn.Parameter(torch.tensor(2.0))
    assert compilations(energy) == 1


def test_changes_in_closures_and_weights_of_nodes_are_seen(compilations):
    numbers, weights = {"scale": 1.0}, [torch.tensor(1.0), torch.tensor(1.0)]
    curve = ce.as_energy(lambda x: numbers["scale"] * x.square().sum(1), event_shape=(2,))
    normal = ce.as_energy(torch.distributions.Independent(torch.distributions.Normal(torch.ones(2), 1.0), 1))
    energy = ce.any_of(curve, normal, weights=weights)
    assert compilations(energy) == 1
    numbers["scale"] = 2.0
    assert compilations(energy) == 1
    weights[1].fill_(4.0)
    assert compilations(energy) <= 1


def test_nothing_is_written_into_the_energy_or_left_behind_by_threads_at_once():
    def state():
        configs = torch._dynamo.config, torch._inductor.config  # pyright: ignore[reportAttributeAccessIssue]
        return *(config.get_config_copy() for config in configs), torch.is_grad_enabled()

    energy = Scaled() & 2.0 * ce.as_energy(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0)))
    before, parts = state(), [(part, dict(vars(part))) for part in energy.modules()]
    list(Pool(4).map(lambda w: assert_draws_same(w * energy, (4, 2), sampler=Langevin(0.1), steps=9, seed=0, **ONE_STEP), (1, 2, 3, 4)))
    assert all(vars(part).keys() == known.keys() and all(vars(part)[n] is known[n] for n in known) for part, known in parts)
    assert all(p.requires_grad and p.grad is None for p in energy.parameters() if p.is_floating_point()) and state() == before


def test_a_machine_without_a_compiler_is_reported_what_to_install(tmp_path):
    code = (
        "import torch, composable_energy as ce\n"
        "E = ce.as_energy(lambda x: x.square().sum(1).sin())\n"
        "E.sample((3, 2), sampler='langevin', step_size=0.1, steps=1, compile=True, allow_improper=True)"
    )
    done = run_code(code, CXX=str(tmp_path / "none"), TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert "OptionError: " in done.stderr and "apt install g++" in done.stderr
