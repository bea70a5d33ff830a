"""The stages of `base-and-attributes`: the mixture of codes, the balanced network, the adversarial decoder, and what a run measures."""

import json
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import composable_energy as ce
from composable_energy.sampling.noise import Noise
from composable_energy.testing import check_energy
from composable_energy_image import Autoencoder, MixtureHeads
from composable_energy_image.adversarial import AdversarialDecoder, AdversarialReconstruction
from composable_energy_image.attributes import AttributeReader, draw_events
from composable_energy_image.base_and_attributes import base_and_attributes
from composable_energy_image.code_energy import CodeEnergy, CodeNetwork
from composable_energy_image.code_mixture import CodeMixture, divide_components
from composable_energy_image.data import Labels, Pictures
from composable_energy_image.label_columns import find_common_combinations
from composable_energy_image.reconstruction import picture_loss
from composable_energy_training import Batch
from plugins.image.tests.picture_files import pictures_of

GROUPS = torch.tensor([0, 0, 2, 3])


def gaussians() -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances of four Gaussians of three numbers, in float64."""
    torch.manual_seed(0)
    roots = torch.randn(4, 3, 3, dtype=torch.float64)
    return torch.rand(4, dtype=torch.float64).softmax(0), torch.randn(4, 3, dtype=torch.float64), roots @ roots.mT + 0.1 * torch.eye(3)


def mixture(module: CodeMixture) -> CodeMixture:
    """Writes these Gaussians into a module, in the groups above."""
    weights, means, covariances = gaussians()
    variances, axes = torch.linalg.eigh(covariances)
    module.double().log_weights.copy_(weights.log())
    module.means.copy_(torch.einsum("jd,jde->je", means, axes))
    module.variances.copy_(variances)
    module.axes.copy_(axes.transpose(0, 1).flatten(1))
    module.groups.copy_(GROUPS)
    return module


def density(sigma: float, rows: Tensor | None = None) -> MixtureSameFamily:
    """The distribution of these Gaussians, or some of them, with noise."""
    weights, means, covariances = (some if rows is None else some[rows] for some in gaussians())
    noisy = MultivariateNormal(means, covariances + sigma**2 * torch.eye(3, dtype=torch.float64))
    return MixtureSameFamily(Categorical(weights), noisy)


class TestMixture:
    @pytest.mark.parametrize("sigma", [0.05, 1.0, 4.0])
    def test_the_energy_is_that_of_the_gaussians_with_noise(self, sigma):
        z = 2 * torch.randn(20, 3, dtype=torch.float64)
        torch.testing.assert_close(mixture(CodeMixture(3, 4))(z, sigma=sigma), -density(sigma).log_prob(z))

    @pytest.mark.parametrize("sigma", [0.05, 1.0])
    def test_heads_are_the_posterior_of_groups_and_unseen_ones_are_rare(self, sigma):
        heads = MixtureHeads(5, code=3, components=4)
        mixture(heads.mixture)
        z, weights = 2 * torch.randn(20, 3, dtype=torch.float64), gaussians()[0]
        found = heads(z, sigma).softmax(1)
        for group in (0, 2, 3):
            rows = group == GROUPS
            own = weights[rows].sum() * (density(sigma, rows).log_prob(z) - density(sigma).log_prob(z)).exp()
            torch.testing.assert_close(found[:, group], own, rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(found[:, [1, 4]], torch.full((20, 2), 1e-6, dtype=torch.float64), rtol=1e-5, atol=0)

    def test_levels_may_differ_by_row(self):
        energy, z = mixture(CodeMixture(3, 4)), torch.randn(2, 3, dtype=torch.float64)
        both = energy(z, sigma=torch.tensor([0.1, 2.0], dtype=torch.float64))
        torch.testing.assert_close(both, torch.cat([energy(z[:1], sigma=0.1), energy(z[1:], sigma=2.0)]))

    def test_a_fit_finds_the_density_of_each_group(self):
        """Twenty thousand draws: a held-out log likelihood within 0.02 nats of that of the truth, and the shares of the groups."""
        torch.manual_seed(1)
        weights, means, covariances = gaussians()
        means = 3 * means
        rows = torch.multinomial(weights, 20_500, replacement=True)
        codes = means[rows] + torch.einsum(
            "nij,nj->ni", torch.linalg.cholesky(covariances)[rows], torch.randn(20_500, 3, dtype=torch.float64)
        )
        groups = GROUPS[rows]
        groups[:100] = -1  # of unknown attributes
        found = CodeMixture(3, 4)
        counts = {0: 2, 2: 1, 3: 1}
        found.fit(codes[:20_000].float(), groups[:20_000], counts, seed=0)
        truth = MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))
        gap = (found.double()(codes[20_000:], sigma=1e-3) + truth.log_prob(codes[20_000:])).mean()
        assert abs(float(gap)) < 0.02
        assert found.groups.tolist() == [0, 0, 2, 3]
        shares = torch.zeros(4).index_add(0, found.groups, found.log_weights.exp().float())
        torch.testing.assert_close(shares, groups[100:20_000].bincount(minlength=4) / 19_900, rtol=1e-5, atol=1e-6)

    def test_few_rows_give_one_round_gaussian(self):
        found = CodeMixture(3, 2)
        codes = torch.cat([torch.randn(300, 3), torch.full((1, 3), 5.0)])
        found.fit(codes, torch.tensor([0] * 300 + [1]), {0: 1, 1: 1}, seed=0)
        assert found.variances[1].unique().numel() == 1 and float(found.variances[1, 0]) > 0.2
        torch.testing.assert_close(found(codes[-1:], sigma=0.1).isfinite(), torch.tensor([True]))

    def test_components_are_divided_in_proportion(self):
        groups = torch.tensor([0] * 3000 + [1] * 900 + [2] * 100 + [-1] * 50)
        assert divide_components(groups, 40) == {0: 20, 1: 6, 2: 1}

    @pytest.mark.slow
    def test_base_and_heads_keep_the_contract(self):
        base = ce.get("energy", "code-base", size=16, code=3, components=4)
        heads = ce.get("encoder", "code-mixture-heads", outputs=5, code=3, components=4)
        for module in (base.net, heads.mixture):  # pyright: ignore[reportAttributeAccessIssue]
            mixture(module).float()
        for energy in (base, ce.ClassifierEnergy(heads, [0, 3], base, labels=5)):
            check_energy(energy, torch.randn(5, 3))


class TestCombinations:
    def test_few_and_frequent_ones_are_found(self):
        values = torch.arange(600) % 3
        labels = {"kind": Labels(values, ("x", "y", "z")), "round": Labels((values == 1).long(), ("no", "yes"))}
        found = find_common_combinations(labels)
        assert found is not None and len(found[0]) == 6 and found[1].unique().tolist() == [0, 3, 4]
        labels["round"].values[:5] = -1
        found = find_common_combinations(labels)
        assert found is not None and found[1][:5].tolist() == [-1] * 5

    @pytest.mark.parametrize("count", [400, 0])
    def test_rare_or_no_ones_are_not(self, count):
        labels = {f"a{k}": Labels(torch.arange(count) // 2**k % 2, ("no", "yes")) for k in range(2)}
        assert find_common_combinations(labels) is None
        assert find_common_combinations({}) is None


class TestBalancedNetwork:
    def test_its_output_is_scaled_down_as_the_noise_grows(self):
        torch.manual_seed(0)
        plain, balanced = CodeNetwork(8, width=16, blocks=1), CodeNetwork(8, width=16, blocks=1, balanced=True)
        for parameter in plain.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        balanced.load_state_dict(plain.state_dict())
        z, zero = torch.randn(5, 8), CodeNetwork(8, width=16, blocks=1)
        for sigma in (0.05, 1.0, 4.0):
            parts = [(energy(z, sigma=sigma) - zero(z, sigma=sigma)).detach() for energy in (plain, balanced)]
            assert float(parts[0].abs().min()) > 1e-4
            torch.testing.assert_close(parts[1] / parts[0], torch.full((5,), (1 + sigma**2) ** -0.5), rtol=1e-2, atol=0)


class TestAdversarialDecoder:
    def decoder(self) -> AdversarialDecoder:
        torch.manual_seed(0)
        model = AdversarialDecoder(Autoencoder(16, 1, code=4, features=8), torch.randn(30, 4)).double()
        model.eval()  # so that spectral norms stand still between the two losses that are compared
        return model

    def test_decoder_and_discriminator_descend_their_own_losses(self):
        model, images = self.decoder(), torch.rand(6, 1, 16, 16, dtype=torch.float64)
        batch = Batch(images, {}, Noise(0, range(6), step=1))
        objective = AdversarialReconstruction(4, noise=0.05, weight=0.5)
        loss = objective.loss(model, batch)
        assert model.draws.dtype == torch.float64 and loss.value.dtype == torch.float64
        decoder = [*model.autoencoder.at_4.parameters()]
        critic = [*model.discriminator.parameters()]
        found = torch.autograd.grad(loss.value, [*decoder, *critic])
        noise = batch.noise.normal(torch.empty(6, 4, dtype=torch.float64))[:3] * 0.05
        rows = (batch.noise.child("draws").uniform(images)[:3] * 30).long()
        decoded = model(images[:3], noise, rows)
        scores, maps = model.discriminator(decoded)
        real, targets = model.discriminator(images)
        own = torch.autograd.grad(
            (1 + model.discriminator(decoded.detach())[0]).relu().mean() + (1 - real).relu().mean(), critic, retain_graph=True
        )
        matching = sum((ours[:3] - theirs[:3].detach()).abs().mean() for ours, theirs in zip(maps, targets, strict=True))
        theirs = torch.autograd.grad(picture_loss(decoded[:3].contiguous(), images[:3]) + 0.3 * matching - 0.5 * scores.mean(), decoder)
        for ours, expected in zip(found, [*theirs, *own], strict=True):
            torch.testing.assert_close(ours, expected)

    def test_the_encoder_stands_still_and_draws_are_no_weights(self):
        model = self.decoder()
        assert not any(parameter.requires_grad for parameter in model.autoencoder.encoder.parameters())
        assert "draws" not in model.state_dict()


class TestReport:
    def test_an_attribute_that_the_decoder_loses_is_named(self, caplog):
        """The decoder draws nothing, so what is read from pictures is the same for all."""
        torch.manual_seed(0)
        base = CodeEnergy(16, 1, code=2, width=8, blocks=0)
        coder = base.autoencoder
        for parameter in coder.to_pixels.parameters():
            torch.nn.init.zeros_(parameter)
        values = torch.arange(200) % 2
        codes = torch.stack([2.0 * values - 1, torch.zeros(200)], 1)
        labels = {"large": Labels(values, ("no", "yes"))}
        heads = torch.nn.Linear(2, 1)
        with torch.no_grad():
            heads.weight.copy_(torch.tensor([[9.0, 0.0]]))
            heads.bias.zero_()
        measured = AttributeReader(coder.eval(), heads, labels, None).measure(codes, labels)
        assert measured["held_out_accuracy"]["large"] == 1.0 and measured["reconstruction_accuracy"]["large"] == 0.5
        assert "The decoder loses large: it is read right from 1.00 of the codes of held-out pictures, but from 0.50" in caplog.text

    def test_drawn_events_are_read_in_codes_and_pictures(self, caplog):
        torch.manual_seed(0)
        base = CodeEnergy(16, 1, code=2, components=1).eval()
        for parameter in base.autoencoder.to_pixels.parameters():
            torch.nn.init.zeros_(parameter)
        event = ce.ClassifierEnergy(lambda z: 9 * (z[:, :1] - 0.5), 1, base, name="large", columns=0)
        pictures, found = draw_events([base, event], 32)
        assert [some.shape for some in pictures] == [(32, 1, 16, 16)] * 2
        assert found.keys() == {"large"} and found["large"]["codes"] > 0.9
        empty = base.autoencoder.encode(torch.full((1, 1, 16, 16), 0.5))
        assert math.isclose(found["large"]["pictures"], float((-event.evidence(empty)).exp().detach()), rel_tol=1e-4)
        assert "Drawn pictures lose large: its mean probability is" in caplog.text


@pytest.mark.full
def test_a_run_with_few_combinations_has_a_mixture_and_goes_on_where_it_stopped(tmp_path):
    """Base and heads are one density: the posterior of an event is the density of its components over that of all."""
    pictures = pictures_of(500)
    pictures = Pictures.from_tensors(pictures.images(torch.arange(500)), {"bright": pictures.labels["bright"].values})
    changes = {"small.below": 0, "training.precision": "float32", "model.code": 8, "model.features": 8, "model.components": 4}
    changes |= {"decoder.draws": 32}
    for stage in ("autoencoder", "decoder"):
        changes |= {f"{stage}.steps": 3, f"{stage}.batch_size": 8}
    recipe = base_and_attributes().with_changes(changes)
    out = recipe.train(pictures, tmp_path / "run")
    base, bright = ce.load(out / "base"), ce.load(out / "bright")
    report = json.loads((out / "report.json").read_text())
    assert set(report["stages"]) == {"autoencoder", "base", "decoder"} and report["draws"].keys() == {"bright"}
    net = base.net  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(net, CodeMixture) and net.groups.unique().tolist() == [0, 1]
    z = torch.randn(6, 8)
    own = net.log_joint(z, 0.05)[:, net.groups == 1].logsumexp(1)
    torch.testing.assert_close(bright(z), -own)
    (out / "report.json").unlink()
    recipe.train(pictures, out)
    torch.testing.assert_close(ce.load(out / "bright")(z), bright(z))
