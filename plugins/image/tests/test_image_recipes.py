"""The packaged recipes: the numbers of the papers, two steps of each, and the stages of `base-and-attributes`."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

import composable_energy as ce
import composable_energy_training as training
from composable_energy.errors import OptionError
from composable_energy.sampling.noise import Noise
from composable_energy.testing import check_energy
from composable_energy_image import Autoencoder, MixtureHeads
from composable_energy_image.adversarial import AdversarialDecoder, AdversarialReconstruction, PictureReader
from composable_energy_image.attributes import AttributeReader, draw_events
from composable_energy_image.base_and_attributes import base_and_attributes, resolve_weights
from composable_energy_image.code_energy import CodeEnergy, CodeNetwork
from composable_energy_image.code_mixture import CodeMixture
from composable_energy_image.data import Labels, Pictures
from composable_energy_image.label_columns import JointLabels, find_combinations
from composable_energy_image.mixture_fitting import describes, divide_components, find_possible, fit_mixture
from composable_energy_image.reconstruction import picture_loss
from plugins.image.tests.picture_files import RANDOM, pictures_of, random_pixels, write_celeba, write_cifar, write_mnist
from tests.refusals import refused

OPTIMIZER = ("rate", "betas", "clip")

# What the papers and their released code say: K, step a, noise, the largest gradient; Adam's rate, betas and the clip of gradients; the
# weight of squared energies, pictures in a batch, the share of fresh chains. JEM's are those for pictures in [0, 1].
NUMBERS = {
    "igebm-cifar10": ((60, 10.0, 0.005, 0.01), (3e-4, [0.0, 0.999], "adam"), (1.0, 128, 0.05)),
    "igebm-cifar10-unconditional": ((60, 10.0, 0.005, 0.01), (3e-4, [0.0, 0.999], "adam"), (1.0, 128, 0.05)),
    "igebm-imagenet32": ((60, 10.0, 0.005, 0.01), (3e-4, [0.0, 0.999], "adam"), (1.0, 32, 0.05)),
    "igebm-imagenet128": ((50, 100.0, 0.005, None), (3e-4, [0.0, 0.999], "adam"), (1.0, 16, 0.05)),
    "igebm-dsprites": ((20, 500.0, 0.005, None), (3e-4, [0.0, 0.999], "adam"), (1.0, 256, 0.05)),
    "compositional-celeba": ((60, 100.0, 0.001, None), (3e-4, [0.0, 0.99], "adam"), (1.0, 16, 0.05)),
    "compositional-scenes": ((60, 100.0, 0.001, None), (3e-4, [0.0, 0.99], "adam"), (1.0, 16, 0.05)),
    "improved-cd-cifar10": ((40, 100.0, 0.001, None), (2e-4, [0.0, 0.9], 0.5), (1.0, 128, 0.001)),
    "improved-cd-celeba": ((40, 500.0, 0.001, None), (2e-4, [0.0, 0.9], 0.5), (1.0, 128, 0.001)),
    "jem-cifar10": ((20, 1.0 / 4, 0.01 / 2, None), (1e-4, [0.9, 0.999], None), (0.0, 64, 0.05)),
}
GROUPS = torch.tensor([0, 0, 2, 3])


@pytest.mark.parametrize("name", NUMBERS)
def test_settings_are_those_of_the_papers(name: str):
    (steps, step, noise, most), optimizer, (l2, batch_size, fresh) = NUMBERS[name]
    written = ce.get("recipe", name).resolved_settings()
    objective, chains, run = written["objective"], written["chains"], written["training"]
    assert (chains["steps"], chains["step"], chains["noise"], chains.get("max_gradient")) == (steps, step, noise, most)
    assert chains["clamp"] == (None if name.startswith("jem") else [0.0, 1.0])
    assert tuple(written["optimizer"][key] for key in OPTIMIZER) == optimizer
    assert (objective["l2"], run["batch_size"], objective["fresh"], objective["buffer"]) == (l2, batch_size, fresh, 10_000)
    assert run["ema"] == (0.99 if name.startswith("improved") else None) and written["sampling"]["step"] == step


def imagenet(folder: Path) -> None:
    for i, name in enumerate(["n01440764", "n01443537", "n01484850"] * 2):
        (folder / name).mkdir(exist_ok=True)
        picture(48, 40).save(folder / name / f"{i}.jpg")


def archive(size: int, channels: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        images = RANDOM.integers(0, 2, (6, size, size, channels), dtype=np.uint8) * 255
        np.savez(folder / "all.npz", images=images, shape=np.arange(6) % 3)

    return write


def pictures(folder: Path) -> None:
    for i in range(6):
        picture(40, 40).save(folder / f"{i}.png")


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(random_pixels(height, width, 3))


FEW = {"training.batch_size": 2, "training.steps": 2}
CHAINS = {**FEW, "objective.buffer": 8, "chains.steps": 2}
CASES = {
    "igebm-cifar10": (write_cifar, {"model.width": 4}),
    "igebm-cifar10-unconditional": (write_cifar, {"model.width": 4}),
    "igebm-imagenet32": (imagenet, {"model.width": 4, "model.labels": 3}),
    "igebm-imagenet128": (imagenet, {"model.width": 4, "model.labels": 3, "model.size": 32, "data.size": 32}),
    "igebm-mnist": (lambda folder: write_mnist(folder, side=(28, 28)), {"model.width": 4}),
    "igebm-dsprites": (archive(64, 1), {"model.width": 4}),
    "compositional-celeba": (write_celeba, {"model.width": 4, "model.size": 32, "data.size": 32}),
    "compositional-scenes": (archive(64, 3), {"model.width": 4, "model.size": 32, "data.size": 32}),
    "improved-cd-cifar10": (write_cifar, {"model.width": 8}),
    "improved-cd-celeba": (write_celeba, {"model.width": 8, "model.size": 66, "data.size": 66}),
    "jem-cifar10": (write_cifar, {"model.width": 1, "model.depth": 10}),
    "cd-small": (pictures, {"model.width": 4}),
    "improved-cd-small": (pictures, {"model.width": 4}),
    "denoising-small": (pictures, {"model.width": 8, "sheets.n": 2}),
}


def test_each_packaged_recipe_has_a_case():
    folder = Path(__file__).parents[1] / "composable_energy_image" / "recipes"
    assert {file.stem for file in folder.glob("*.toml")} - {"attribute", "base-and-attributes"} == set(CASES)
    for name in CASES:
        recipe = ce.get("recipe", name)
        assert recipe.name == name
        assert "ne core" in recipe.cost and "one GPU" in recipe.cost  # what it takes of both, or that it was not measured


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_two_steps_on_data_of_the_recipes_own_format(name: str, tmp_path: Path):
    write, changes = CASES[name]
    (tmp_path / "data").mkdir()
    recipe = ce.get("recipe", name).with_changes({**(FEW if name == "denoising-small" else CHAINS), **changes})
    untrained = recipe.energy()  # pyright: ignore[reportAttributeAccessIssue]
    write(tmp_path / "data")
    energy = ce.load(recipe.run(next((tmp_path / "data").glob("*.npz"), tmp_path / "data"), tmp_path / "out"))
    parameters = list(zip(energy.parameters(), untrained.parameters(), strict=True))
    assert any(not torch.equal(trained, before) for trained, before in parameters)
    assert all(trained.isfinite().all() for trained, _ in parameters)
    bound = energy.given(y=0) if energy.required_conditions else energy
    draws = bound.sample(2, seed=0, **({"levels": 2} if name == "denoising-small" else {"steps": 2}))
    assert draws.shape[1:] == energy.event_shape and draws.isfinite().all() and (tmp_path / "out" / "log.csv").is_file()
    assert (tmp_path / "out" / "samples" / "step-00000002.png").is_file()


@pytest.mark.parametrize(
    ("table", "kind", "steps"),
    [
        ('name = "energy-discrepancy"\nvariance = 0.1', training.EnergyDiscrepancy, None),
        ('name = "energy-matching"\ntemperature = 0.1\nwarm_up = 5\nsteps = 7', training.EnergyMatching, 7),
        ('name = "diffusion-recovery-likelihood"\nsigma_min = 0.1\nsigma_max = 1.0\nsteps = 7', training.DiffusionRecoveryLikelihood, 7),
    ],
)
def test_a_recipe_may_name_an_objective_with_chains_of_its_own(table: str, kind: type, steps: int | None, tmp_path: Path):
    text = f'about = "An energy"\n[model]\nname = "igebm-mnist"\nwidth = 4\n[objective]\n{table}\n[training]\nsteps = 1\nbatch_size = 2\n'
    (tmp_path / "mine.toml").write_text(text)
    pictures = Pictures(np.zeros((2, 1, 28, 28), np.uint8), {}, "nothing")
    objective = training.open_recipe(tmp_path / "mine.toml").trainer(pictures).objective  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(objective, kind) and getattr(objective, "steps", None) == steps


@pytest.mark.parametrize(("noise", "kind"), [("gaussian", training.GaussianNoise), ("flow", training.FlowNoise)])
def test_a_recipe_fits_the_noise_of_noise_contrastive_estimation(noise: str, kind: type, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(training.FlowNoise, "fit", partial(training.FlowNoise.fit, steps=5))
    text = (
        'about = "An energy"\n[model]\nname = "energy-unet"\nsize = 16\nchannels = 1\nwidth = 8\n'
        '[preparation]\ndequantize = "uniform"\n'
        f'[objective]\nname = "noise-contrastive"\nnoise = "{noise}"\nratio = 2\n'
        "[training]\nsteps = 1\nbatch_size = 2\n"
    )
    (tmp_path / "mine.toml").write_text(text)
    pictures = Pictures(np.random.default_rng(0).integers(0, 255, (40, 1, 16, 16), np.uint8), {}, "noise")
    recipe = training.open_recipe(tmp_path / "mine.toml")
    objective = recipe.trainer(pictures).objective  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(objective, training.NoiseContrastive) and isinstance(objective.noise, kind) and objective.ratio == 2
    images = pictures.images(torch.arange(40))
    assert objective.noise.log_prob(images).mean() > objective.noise.log_prob(1 - 2 * images).mean()
    refused(OptionError, r"objective\.noise takes 'gaussian' or 'flow'", recipe.with_changes, {"objective.noise": "uniform"})


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
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances + sigma**2 * torch.eye(3, dtype=torch.float64)))


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
        torch.testing.assert_close(found[:, [1, 4]], torch.full((20, 2), -60.0, dtype=torch.float64).exp(), rtol=1e-5, atol=0)

    def test_a_fit_finds_the_density_of_each_group(self):
        """Twenty thousand draws: a held-out log likelihood within 0.02 nats of that of the truth, and the shares of the groups."""
        torch.manual_seed(1)
        weights, means, covariances = gaussians()
        means = 3 * means
        rows = torch.multinomial(weights, 20_500, replacement=True)
        roots = torch.linalg.cholesky(covariances)[rows]
        codes = means[rows] + torch.einsum("nij,nj->ni", roots, torch.randn(20_500, 3, dtype=torch.float64))
        groups = GROUPS[rows]
        groups[:100] = -1  # of unknown attributes
        found = fit_mixture(codes[:20_000].float(), groups[:20_000], torch.arange(4)[:, None], 4, seed=0)
        truth = MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))
        assert abs(float((found.double()(codes[20_000:], sigma=1e-3) + truth.log_prob(codes[20_000:])).mean())) < 0.02
        assert found.groups.unique().tolist() == [0, 2, 3]
        shares = torch.zeros(4, dtype=torch.float64).index_add(0, found.groups, found.log_weights.exp())
        torch.testing.assert_close(shares, groups[100:20_000].bincount(minlength=4) / 19_900, rtol=1e-5, atol=1e-6, check_dtype=False)

    def test_combinations_without_pictures_have_the_sum_of_the_effects(self):
        """Codes of four attributes whose effects add up; one combination of three values has no picture, two values never meet."""
        torch.manual_seed(0)
        table = JointLabels({"a": 5, "b": 2, "c": 2, "d": 2}).table
        effects = [2 * torch.randn(count, 6) for count in (5, 2, 2, 2)]
        means = torch.stack([some[table[:, place]] for place, some in enumerate(effects)]).sum(0)
        spread = torch.tensor([[1.0] * 3 + [0.4] * 3, [0.4] * 3 + [1.0] * 3])[table[:, 3]]  # by the last attribute
        allowed = ((table[:, 0] != 4) | (table[:, 1] == 0)) & ~(table[:, 1:] == 1).all(1)
        rows = allowed.nonzero()[:, 0][torch.randint(int(allowed.sum()), (4000,))]
        mixture = fit_mixture(means[rows] + spread[rows] * torch.randn(4000, 6), rows, table, 1, seed=0)
        unseen = (table == torch.tensor([2, 1, 1, 1])).all(1).nonzero()[0, 0]
        assert mixture.log_weights.exp()[mixture.groups == unseen].sum() * 4000 == pytest.approx(0.5, rel=0.01)
        assert not torch.isin(mixture.groups, ((table[:, 0] == 4) & (table[:, 1] == 1)).nonzero()[:, 0]).any()
        assert len(mixture.variances) == 2 and len(mixture.log_weights) == 2 * 18
        z = means[unseen] + spread[unseen] * torch.randn(2000, 6)
        own = mixture.log_joint(z, 0.05).masked_fill(mixture.groups != unseen, -torch.inf).logsumexp(1)
        assert abs(float((own - math.log(0.5 / 4000) - Normal(means[unseen], spread[unseen]).log_prob(z).sum(1)).mean())) < 0.3

    def test_shared_covariances_are_those_of_their_components(self):
        weights, means, covariances = gaussians()
        shared = covariances[[0, 0, 1, 1]]
        variances, axes = torch.linalg.eigh(covariances[:2])
        found = CodeMixture(3, 4, frames=2).double()
        found.log_weights.copy_(weights.log())
        found.means.copy_((means.view(2, 2, 3) @ axes).flatten(0, 1))
        found.variances.copy_(variances)
        found.axes.copy_(axes.transpose(0, 1).flatten(1))
        z, levels = 2 * torch.randn(20, 3, dtype=torch.float64), torch.linspace(0.1, 2, 20, dtype=torch.float64)
        for sigma in (0.3, levels):
            noise = torch.as_tensor(sigma, dtype=torch.float64).expand(20)[:, None, None, None].square() * torch.eye(3)
            truth = MixtureSameFamily(Categorical(weights.expand(20, 4)), MultivariateNormal(means.expand(20, 4, 3), shared + noise))
            torch.testing.assert_close(found(z, sigma=sigma), -truth.log_prob(z))
        refused(OptionError, "4 components do not divide into 3 frames", CodeMixture, 3, 4, frames=3)

    def test_many_combinations_have_one_component_each(self):
        """Twelve attributes that tell nothing of covariances: 4,095 combinations in one group of several modes."""
        torch.manual_seed(0)
        table = JointLabels({f"a{i}": 2 for i in range(12)}).table
        codes, rows = torch.randn(6000, 3), torch.randint(1, len(table), (6000,))
        found = fit_mixture(codes, rows, table, 128, seed=0)
        assert len(found.groups) == len(found.groups.unique()) == 4096

    def test_modes_of_few_rows_share_the_spread_within_modes(self):
        """Eight narrow clusters far apart, of 25 rows in twelve dimensions; with the spread of all rows in each the gap is 7.7 nats."""
        torch.manual_seed(0)
        narrow = Independent(Normal(3 * torch.randn(8, 12), torch.full((8, 12), 0.3)), 1)
        truth = MixtureSameFamily(Categorical(torch.ones(8)), narrow)
        found = fit_mixture(truth.sample((200,)), torch.zeros(200, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64), 8, seed=0)
        held_out = truth.sample((2000,))
        assert float((found(held_out, sigma=1e-3) + truth.log_prob(held_out)).mean()) < 2.5
        codes = torch.randn(2200, 12)  # of which one Gaussian says as much
        plain = fit_mixture(codes[:200], torch.zeros(200, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64), 8, seed=0)
        assert describes(found, held_out[:1000], held_out[1000:]) and not describes(plain, codes[:200], codes[200:])

    def test_few_rows_share_the_spread_of_all(self):
        codes = torch.cat([torch.randn(300, 3), torch.full((1, 3), 5.0)])
        found = fit_mixture(codes, torch.tensor([0] * 300 + [1]), torch.arange(2)[:, None], 1, seed=0)
        assert found.groups.tolist() == [0, 1] and 0.7 < float(found.variances.min()) < float(found.variances.max()) < 1.3

    def test_combinations_are_possible_where_each_pair_of_values_is(self):
        table = JointLabels({"a": 2, "b": 2, "c": 2}).table
        seen = (table.sum(1) < 3) & ~((table[:, 0] == 1) & (table[:, 1] == 1))
        assert find_possible(table, seen.double()).tolist() == seen.tolist() and find_possible(table, (table.sum(1) < 3).double()).all()
        assert find_possible(table[:2, 2:], torch.tensor([1.0, 0.0])).tolist() == [True, False]

    def test_components_are_divided_in_proportion(self):
        assert divide_components(torch.tensor([0] * 3000 + [1] * 900 + [2] * 100), 40, 150) == {0: 20, 1: 6, 2: 1}

    @pytest.mark.slow
    def test_base_and_heads_keep_the_contract(self):
        base = ce.get("energy", "code-base", size=16, code=3, components=4)
        heads = ce.get("encoder", "code-mixture-heads", outputs=5, code=3, components=4)
        for module in (base.net, heads.mixture):  # pyright: ignore[reportAttributeAccessIssue]
            mixture(module).float()
        for energy in (base, ce.ClassifierEnergy(heads, [0, 3], base, labels=5)):
            check_energy(energy, torch.randn(5, 3))


class TestCombinations:
    def test_known_ones_are_found(self):
        values = torch.arange(600) % 3
        labels = {"kind": Labels(values, ("x", "y", "z")), "round": Labels((values == 1).long(), ("no", "yes"))}
        labels["round"].values[:5] = -1
        found = find_combinations(labels)
        assert found is not None and len(found[0]) == 6 and found[1].unique().tolist() == [-1, 0, 3, 4]
        assert found[1][:5].tolist() == [-1] * 5

    def test_many_or_unknown_ones_are_not(self):
        yes_no = {f"a{k}": Labels(torch.arange(400) // 2**k % 2, ("no", "yes")) for k in range(13)}
        assert find_combinations(yes_no) is None and find_combinations({}) is None
        yes_no = {"a0": yes_no["a0"]}
        assert find_combinations(yes_no) is not None
        yes_no["a0"].values[:50] = -1
        assert find_combinations(yes_no) is None


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
        coder = Autoencoder(16, 1, code=4, features=8)
        model = AdversarialDecoder(coder, torch.randn(30, 4), PictureReader(coder, 1), {"bright": torch.arange(30) % 2}).double()
        model.eval()  # so that spectral norms stand still between the two losses that are compared
        return model

    def test_decoder_and_discriminator_descend_their_own_losses(self):
        model, images = self.decoder(), torch.rand(6, 1, 16, 16, dtype=torch.float64)
        batch = training.Batch(images, {"bright": torch.tensor([0, 1, -1, 0, 0, 0])}, Noise(0, range(6), step=1))
        loss = AdversarialReconstruction({"bright": 2}, noise=0.05, weight=0.5, reading=0.2).loss(model, batch)
        assert model.draws.dtype == torch.float64 and loss.value.dtype == torch.float64
        decoder = [*model.autoencoder.at_4.parameters()]
        critic = [*model.discriminator.parameters()]
        found = torch.autograd.grad(loss.value, [*decoder, *critic])
        noise = batch.noise.normal(torch.empty(6, 4, dtype=torch.float64))[:3] * 0.05
        rows = (batch.noise.child("draws").uniform(images)[:3] * 30).long()
        decoded = model(images[:3], noise, rows)
        scores, maps = model.discriminator(decoded)
        real, targets = model.discriminator(images)
        hinge = (1 + model.discriminator(decoded.detach())[0]).relu().mean() + (1 - real).relu().mean()
        own = torch.autograd.grad(hinge, critic, retain_graph=True)
        matching = sum((ours[:3] - theirs[:3].detach()).abs().mean() for ours, theirs in zip(maps, targets, strict=True))
        values = torch.cat([torch.tensor([0, 1]), rows % 2])  # the third picture has none
        odds = model.reader(decoded[[0, 1, 3, 4, 5]].clamp(0, 1))[:, 0]
        reading = torch.where(values == 1, -odds, odds).exp().log1p().mean()
        picture = picture_loss(decoded[:3].contiguous(), images[:3])
        theirs = torch.autograd.grad(picture + 0.3 * matching - 0.5 * scores.mean() + 0.2 * reading, decoder)
        assert not any(weight.requires_grad for weight in model.reader.parameters())
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
        coder = CodeEnergy(16, 1, code=2, width=8, blocks=0).autoencoder
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
        assert [some.shape for some in pictures] == [(32, 1, 16, 16)] * 2 and found.keys() == {"large"} and found["large"]["codes"] > 0.9
        empty = base.autoencoder.encode(torch.full((1, 1, 16, 16), 0.5))
        assert math.isclose(found["large"]["pictures"], float((-event.evidence(empty)).exp().detach()), rel_tol=1e-4)
        assert "Drawn pictures lose large: its mean probability is" in caplog.text


@pytest.mark.full
def test_a_run_with_few_combinations_is_a_mixture_and_resumes(tmp_path):
    """Base and heads are one density: the posterior of an event is the density of its components over that of all.

    Attributes have more weight there, if there are ten pictures of a combination.
    """
    pictures = pictures_of(500)
    pictures = Pictures.from_tensors(pictures.images(torch.arange(500)), {"bright": pictures.labels["bright"].values})
    changes = {"small.below": 0, "training.precision": "float32", "model.code": 8, "model.features": 8}
    changes |= {"model.components": 4, "decoder.draws": 32, "decoder.passes": 0}
    for stage in ("autoencoder", "reader", "decoder"):
        changes |= {f"{stage}.steps": 3, f"{stage}.batch_size": 8}
    recipe = base_and_attributes().with_changes(changes)
    out = recipe.train(pictures, tmp_path / "run")
    base, bright = ce.load(out / "base"), ce.load(out / "bright")
    report = json.loads((out / "report.json").read_text())
    assert set(report["stages"]) == {"autoencoder", "base", "reader", "decoder"} and report["draws"].keys() == {"bright"}
    assert [report["stages"][stage]["steps"] for stage in ("autoencoder", "decoder")] == [1, 1]
    net = base.net  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(net, CodeMixture) and net.groups.unique().tolist() == [0, 1]
    z = torch.randn(6, 8)
    torch.testing.assert_close(bright(z), -net.log_joint(z, 0.05)[:, net.groups == 1].logsumexp(1))
    (out / "report.json").unlink()
    torch.testing.assert_close(ce.load(recipe.train(pictures, out) / "bright")(z), bright(z))
    weights = {"autoencoder.naming": 2.0, "decoder.reading": 1.5, "decoder.adversarial": 0.4}
    assert [resolve_weights(recipe.settings, (None, torch.arange(99) % n), 2)["autoencoder"]["naming"] for n in (9, 10)] == [2.0, 0.05]
    explicit = recipe.with_changes(weights).train(pictures, tmp_path / "explicit")
    assert all(torch.equal(own, other) for own, other in zip(base.buffers(), ce.load(explicit / "base").buffers(), strict=True))
    assert all(torch.equal(own, other) for own, other in zip(base.parameters(), ce.load(explicit / "base").parameters(), strict=True))
