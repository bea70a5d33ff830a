"""Checkpoints, traces and kept tuning belong to an energy by its values: another energy is refused, or tuned anew."""

import pytest
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.sampling import Noise
from composable_energy_mcmc import HMC, Annealed, Langevin

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


def refused(first: ce.Energy, second: ce.Energy, file, **call) -> None:
    """Draws from one energy, and sees the checkpoint refused for another but not for the same."""
    drawn = draw(first, observers=[ce.sampling.Checkpoint(file)], **call)
    before = file.read_bytes()
    with pytest.raises(OptionError, match=REFUSED + "Give another path, or delete it to begin anew"):
        draw(second, observers=[ce.sampling.Checkpoint(file)], **call)
    assert file.read_bytes() == before
    assert torch.equal(draw(first, observers=[ce.sampling.Checkpoint(file)], **call), drawn)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_complete_checkpoint_of_another_energy_is_refused(tmp_path, sampler):
    refused(at(0.0), at(50.0), tmp_path / "c", sampler=sampler, **{"steps": None, **SAMPLERS[sampler]})


@pytest.mark.parametrize("every", [0, 3600])
def test_a_broken_off_checkpoint_of_another_energy_is_refused(tmp_path, every):
    checkpoint = ce.sampling.Checkpoint(tmp_path / "c", every)
    call = {"steps": 9, "observers": [checkpoint]}
    with pytest.raises(ZeroDivisionError):
        draw(at(0.0), steps=9, observers=[ce.sampling.Stop(lambda step, state, info: 1 / (3 - step)), checkpoint])
    with pytest.raises(OptionError, match=REFUSED):
        draw(at(50.0), **call)
    assert torch.equal(draw(at(0.0), **call), draw(at(0.0), steps=9))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1), (torch.float32, 3000)])
def test_a_weight_that_changed_by_one_percent_is_seen(tmp_path, dtype, size):
    term = ce.as_energy(lambda x: (x - 1).square().sum(1) / 2 + x[:, 0].cos(), name="term")
    base = at(0.0, 3.0)
    refused(base & 0.1 * term, base & 0.101 * term, tmp_path / "c", shape=(5, size), dtype=dtype)


def test_energies_that_differ_only_where_the_chains_came_to_are_reported_apart(tmp_path):
    def walled(height: float) -> ce.Energy:
        return ce.as_energy(lambda x: -5 * x[:, 0] + height * (x[:, 0] - 1).relu().square(), name="walled")

    for broken in (False, True):
        call = {"init": torch.zeros(10, 2), "steps": 20}
        file = tmp_path / f"{broken}"
        watch = [ce.sampling.Stop(lambda step, state, info: 1 / (15 - step))] if broken else []
        try:
            draw(walled(10.0), observers=[*watch, ce.sampling.Checkpoint(file)], **call)
        except ZeroDivisionError:
            assert broken
        with pytest.raises(OptionError, match=REFUSED):
            draw(walled(20.0), observers=[ce.sampling.Checkpoint(file)], **call)


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
    refused(Tilted(0.0), Tilted(0.01), tmp_path / "c")
    _, trace = draw(Tilted(0.0), trace=True)
    with pytest.raises(OptionError, match=r"another energy than .*, the gradient was"):
        Tilted(0.01).sample((10, 2), resume=trace, steps=1)


@pytest.mark.full
@pytest.mark.parametrize(("sampler", "size"), [("langevin", 30), ("annealed", None)])
def test_one_condition_of_many_chains_is_seen(tmp_path, sampler, size):
    conditional = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1) / 2, name="conditional")
    y = torch.linspace(-1, 1, 100)
    other = y.clone()
    other[93] += 0.01
    call = {"sampler": sampler, "batch_size": size, "shape": (100, 2), "steps": None, **SAMPLERS[sampler]}
    refused(conditional.given(y=y), conditional.given(y=other), tmp_path / "c", **call)
    _, trace = draw(conditional.given(y=y), trace=True, **call)
    with pytest.raises(OptionError, match=REFUSED):
        conditional.given(y=other).sample((100, 2), resume=trace, steps=1)


def noisy(centre: float, low: float = 0.0) -> ce.Energy:
    return ce.as_energy(lambda x, sigma: (x - centre + low * (sigma < 0.2)[:, None]).square().sum(1) / (2 * (1 + sigma**2)), name="noisy")


@pytest.mark.parametrize("other", [noisy(0.01), noisy(0.0, low=0.01)], ids=["all levels", "low levels"])
def test_energies_at_noise_levels_that_the_sampler_binds_are_compared(tmp_path, other):
    call = {"sampler": Annealed(levels=4), "steps": None}
    refused(noisy(0.0), other, tmp_path / "c", **call)
    _, trace = draw(noisy(0.0), trace=True, **{**call, "steps": 2})
    with pytest.raises(OptionError, match=REFUSED + "give them as `init`"):
        other.sample((10, 2), resume=trace)
    assert torch.equal(noisy(0.0).sample((10, 2), resume=trace), draw(noisy(0.0), **call))


def test_a_checkpoint_of_another_trace_is_refused(tmp_path):
    traces = [draw(at(0.0), trace=True, init=torch.full((10, 2), value))[1] for value in (0.0, 1.0)]
    at(0.0).sample((10, 2), resume=traces[0], steps=3, observers=[ce.sampling.Checkpoint(tmp_path / "c")])
    with pytest.raises(OptionError, match=r"belongs to another call .resumed was"):
        at(0.0).sample((10, 2), resume=traces[1], steps=3, observers=[ce.sampling.Checkpoint(tmp_path / "c")])


@pytest.mark.full
@pytest.mark.parametrize(("sampler", "dtype"), [("langevin", torch.float32), ("chees", torch.float32), ("annealed", torch.float64)])
def test_rounding_under_other_batch_sizes_is_the_same_energy(tmp_path, dtype, sampler):
    def network() -> ce.Energy:
        noise = Noise(0, range(200))
        net = nn.Sequential(nn.Linear(200, 200), nn.Softplus(), nn.Linear(200, 200), nn.Softplus(), nn.Linear(200, 1)).to(dtype).eval()
        with torch.no_grad():
            for stream, layer in enumerate((net[0], net[2])):
                layer.weight.copy_(noise.normal(layer.weight, stream) / 10)
                layer.bias.zero_()
            net[4].weight.copy_(noise.normal(net[0].weight, 2)[:1])
            net[4].bias.zero_()
        return ce.as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 2, name="network")

    call = {"sampler": sampler, "dtype": dtype, "shape": (22, 200), "steps": None, **SAMPLERS[sampler]}
    call["observers"] = [ce.sampling.Checkpoint(tmp_path / "c")]
    x = draw(network(), **call)
    for size in (1, 7, 16):
        assert torch.equal(draw(network(), batch_size=size, **call), x)


class Bowl(ce.Energy):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return (x / self.scale).square().sum(1) / 2


@pytest.mark.full
def test_a_sampler_is_tuned_anew_after_an_attribute_of_the_energy_changed():
    energy, call = Bowl(1.0), {"sampler": HMC(tuning_steps=60), "steps": 20, "trace": True}
    _, wide = draw(energy, **call)
    energy.scale = 0.01
    x, narrow = draw(energy, **call)
    assert narrow.acceptance.mean() > 0.4
    assert narrow.sampler.step_size != wide.sampler.step_size
    fresh, trace = draw(Bowl(0.01), **{**call, "sampler": HMC(tuning_steps=60)})
    assert trace.sampler.step_size == narrow.sampler.step_size and torch.equal(fresh, x)


def test_a_tuned_sampler_is_not_tuned_again():
    evaluations = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return x.square().sum(1) / 2

    energy = ce.as_energy(counted)
    _, trace = draw(energy, sampler=HMC(tuning_steps=60), steps=1, trace=True)
    first = evaluations
    _, again = draw(energy, sampler=trace.sampler, steps=1, trace=True)
    assert again.sampler == trace.sampler and evaluations - first < first / 10
