"""Third-party functions: proposals that raise, models with other outputs, distributions of other libraries."""

import functools
import warnings

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy.errors import DtypeError, ExpressionError, LiftError, SamplingDiverged, ShapeError
from composable_energy_mcmc import MALA, ChEES, Langevin

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

F64 = torch.float64


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", [str(error.__cause__)]))


def half(x: torch.Tensor) -> torch.Tensor:
    """A half-normal density by a decomposition that fails left of 0."""
    root = torch.linalg.cholesky(x[:, :, None] * torch.eye(1, dtype=x.dtype))
    return root[:, 0, 0] ** 4 / 2


HALF = ce.as_energy(half, name="half")
ONES = torch.ones(200, 1, dtype=F64)


class TestProposalsThatRaise:
    @pytest.mark.slow
    @pytest.mark.parametrize("sampler", [MALA(tuning_steps=8), ChEES(0.5, 1.0)])
    def test_they_are_rejected_and_the_rest_follows_the_density(self, sampler):
        with pytest.warns(SamplingWarning, match="errors: The energy raised an exception or was NaN at .*LinAlgError"):
            x, trace = HALF.sample((80, 1), sampler=sampler, steps=30, init=2 * ONES[:80], seed=0, trace=True)
        assert trace.errors > 0 and "LinAlgError" in trace.first_error and (x > 0).all()
        assert "errors" in {warning.kind for warning in trace.warnings()} and "which were rejected" in str(trace.summary())
        expected = (2 / torch.pi) ** 0.5
        assert abs(x.mean() - expected) < 4 * (1 - expected**2) ** 0.5 / 80**0.5

    @pytest.mark.slow
    def test_draws_do_not_depend_on_the_batch_where_the_function_raises(self):
        options = {"sampler": MALA(0.8), "steps": 20, "seed": 0}
        whole = HALF.sample((40, 1), init=ONES[:40], **options)
        assert torch.equal(whole, HALF.sample((40, 1), init=ONES[:40], batch_size=7, **options))

    def test_chains_with_conditions_of_their_own_keep_their_rows(self):
        def shifted(x, y):
            if (x < y[:, None]).any():
                raise ValueError("below")
            return (x[:, 0] - y) * 50

        low = torch.arange(6, dtype=F64)
        x, trace = (
            ce.as_energy(shifted).given(y=low).sample((6, 1), sampler=MALA(4e-4), steps=60, init=low[:, None] + 0.01, seed=0, trace=True)
        )
        assert trace.errors > 0 and ((x[:, 0] >= low) & (x[:, 0] < low + 0.5)).all()

    def test_a_sampler_that_cannot_reject_reports_a_divergence(self):
        with pytest.raises(SamplingDiverged, match=r"the energy raised an exception, first .*LinAlgError"):
            HALF.sample((40, 1), sampler=Langevin(0.5), steps=50, init=ONES[:40], seed=0)

    def test_what_fails_everywhere_is_raised_as_it_is(self):
        def broken(x):
            raise KeyError("nothing works")

        with pytest.raises(KeyError, match="nothing works") as caught:
            ce.as_energy(broken).sample((5, 2), seed=0)
        assert "in the energy broken at points of shape (64, 2)" in notes(caught.value)
        assert "tuned, by 64 pilot chains of shape (64, 2)" in notes(caught.value)

    def test_what_fails_everywhere_after_a_while_is_raised_too(self):
        calls = []

        def tired(x):
            calls.append(1)
            if len(calls) > 10:
                raise OSError("connection lost")
            return x.square().sum(1) / 2

        energy = ce.as_energy(tired)
        with pytest.raises(OSError, match="connection lost") as caught:
            (energy & energy).sample((5, 2), sampler=MALA(0.5), steps=50, seed=0)
        assert "in the energy tired, a term of tired & tired, at points of shape (5, 2)" in notes(caught.value)
        assert "mala was at step" in notes(caught.value)


class Output:
    def __init__(self, logits):
        self.logits = logits


class TestOutputs:
    @pytest.mark.parametrize(
        ("function", "error", "advice"),
        [
            (lambda x: Output(x), DtypeError, "It has `.logits`"),
            (lambda x: {"energy": x.sum(1)}, DtypeError, r"model\(x\)\['energy'\]"),
            (lambda x: (x.sum(1), None), DtypeError, r"model\(x\)\[0\]"),
            (lambda x: None, DtypeError, "lack a `return`"),
            (lambda x: x.numpy().sum(1), DtypeError, "NumPy"),
            (lambda x: x.sum(1) > 0, DtypeError, "truth values have no gradient"),
            (lambda x: torch.distributions.Normal(x, 1.0), DtypeError, "log_prob"),
            (lambda x: x, ShapeError, "ClassifierEnergy"),
        ],
    )
    def test_the_error_says_what_to_write(self, function, error, advice):
        with pytest.raises(error, match=advice):
            ce.as_energy(function)(torch.zeros(4, 2))

    def test_functions_without_a_gradient(self):
        bowl = ce.as_energy(lambda x: x.square().sum(1) / 2)
        cut = ce.as_energy(torch.no_grad()(lambda x: (x - 2).square().sum(1)), name="cut")
        with pytest.raises(ExpressionError, match="calls NumPy, which has no gradient"):
            ce.as_energy(lambda x: torch.from_numpy(x.numpy()).sum(1)).with_gradient(torch.zeros(4, 2))
        for sampler in (MALA(0.5), Langevin(0.1)):
            with pytest.raises(ExpressionError, match="cut changes with its points, but its result has no gradient"):
                (bowl & cut).sample((20, 2), sampler=sampler, steps=3, seed=0)
        wall = ce.as_energy(lambda x: torch.where(x[:, 0] > 0, 0.0, torch.inf))
        step = ce.as_energy(lambda x: (x[:, 0] > 1).float())
        assert (bowl & wall & step).sample((20, 2), sampler=MALA(0.5), steps=3, init=torch.ones(20, 2), seed=0).isfinite().all()

    def test_decoded_points_of_an_energy_of_latents(self):
        class Decoder(nn.Module):
            def forward(self, z):
                return z.repeat_interleave(2, 1)

            def encode(self, x):
                return x[:, ::2]

        energy = ce.as_energy(lambda z: z.square().sum(1), event_shape=(2,), decoder=Decoder())
        with pytest.raises(ShapeError, match=r"E\(E.decoder.encode\(x\)\)"):
            energy(torch.zeros(3, 4))
        with pytest.raises(ShapeError, match="which has no `encode`"):
            ce.as_energy(lambda z: z.square().sum(1), event_shape=(2,), decoder=nn.Linear(2, 4))(torch.zeros(3, 4))


class Net(nn.Module):
    def forward(self, x):
        return x.square().sum(1)

    def energy(self, x, factor=1.0):
        return factor * self(x)


class TestLifting:
    @pytest.mark.parametrize("method", ["score_samples", "logpdf", "log_prob"])
    def test_distributions_of_other_libraries(self, method):
        other = type("Other", (), {method: lambda self, x: x, "__call__": lambda self: 0.0})()
        with pytest.raises(LiftError, match=rf"obj.{method}\(x"):
            ce.as_energy(other)

    @pytest.mark.parametrize(
        ("make", "name"),
        [
            (lambda: functools.partial(Net().energy, factor=2.0), "energy"),
            (lambda: Net().energy, "energy"),
            (lambda: torch.jit.trace(Net(), torch.zeros(3, 2)), "Net"),
            (lambda: torch.compile(Net(), backend="eager"), "Net"),
        ],
    )
    def test_callables_of_other_kinds(self, make, name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            energy = ce.as_energy(make())
            assert str(energy) == name
            assert energy.sample((5, 2), sampler=MALA(0.1), steps=3, seed=0).isfinite().all()
