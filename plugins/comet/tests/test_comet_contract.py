"""COMET's energies, parts, encoders and windows: the kit, saved models, masks of known components, and errors for bad options."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

import composable_energy as ce
from composable_energy.errors import DtypeError, FileFormatError, OptionError, ShapeError
from composable_energy.sampling import Noise
from composable_energy.testing import Check, check_energy, parametrize_with_checks, sampler_checks
from composable_energy_comet import Comet, Decomposition, component_scores, join_parts, load_comet, merge_components, save_comet
from composable_energy_comet.metrics import adjusted_rand_index
from composable_energy_comet.recipe import CometRecipe
from composable_energy_comet.train import OBJECTS, main, pictures
from composable_energy_image.data import Pictures
from composable_energy_training import Batch, open_recipe
from tests.refusals import refusals, refused

SIZE, PICTURES = 16, 4
KINDS = [
    *(("comet", "comet-conv"), ("comet", "comet-quadratic"), ("comet-global", "comet-conv"), ("comet-global", "comet-quadratic")),
    ("comet-window", "comet-window"),
]
SIDE, WINDOW, LATENT = 32, 8, 6
PIXEL = 2 / (SIDE - 1)


def made(name="comet", head="comet-conv", **options):
    head = head.removeprefix("comet-")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        form = {"window": 8, "encoder_filters": 8, "seen": SIZE} if head == "window" else {"head": head}
        options = {"size": SIZE, "components": 3, "latent": 4, "filters": 8, **form, **options}
        return ce.get("encoder", name, **options).eval().requires_grad_(False)


@pytest.fixture
def x():
    return torch.rand(PICTURES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), KINDS)
def test_parts_keep_the_contract(name, head, x):
    check_energy(made(name, head).decompose(x[:1])[1], x)


@pytest.mark.parametrize(("name", "head"), KINDS)
def test_parts_of_one_model_are_drawn_together(name, head, x):
    comet = made(name, head)
    parts = comet.decompose(x)
    assert (parts[0] & parts[2]).sample(PICTURES, seed=0).shape == x.shape
    assert comet.recombine(comet.decompose(x[:0])).shape == (0, *x.shape[1:])


@pytest.mark.parametrize("head", ["conv", "quadratic"])
def test_recombining_all_parts_of_a_picture_decodes_it(head, x):
    comet = made(head=head)
    parts = comet.decompose(x)
    assert torch.equal(comet.recombine(parts), comet.decode(comet.encode(x))) and comet.scores(x[:0]).shape == (0, 3, SIZE, SIZE)
    for joined in ([ce.all_of(*parts)], [1.0 * part for part in parts]):
        torch.testing.assert_close(comet.recombine(joined), comet.recombine(parts), atol=1e-3, rtol=0)
    assert torch.equal(comet.recombine(parts[::-1][:2]), comet.decode(comet.encode(x)[:, [2, 1]]))


def test_the_inner_descent_samples_what_decode_gives(x):
    """From the same start; the noise at the start has other keys."""
    comet = made(step=1e4)
    start = comet.energy.image.expand_as(x)
    sampled = join_parts(comet.decompose(x)).sample(PICTURES, init=start, seed=0)
    again, z = start, comet.encode(x)
    for _ in range(comet.energy.iterations):
        point = again.clone().requires_grad_()
        again = (point - torch.autograd.grad(comet.energy(point, z=z).sum(), point)[0]).detach().clamp(0, 1)
    assert torch.allclose(sampled, again, atol=1e-5) and not torch.allclose(again, start, atol=1e-2)


def test_what_is_swapped_comes_from_the_other_picture(x):
    comet = made()
    y, z = x.flip(0), comet.encode(x)
    assert torch.equal(comet.swap(x, y, [0, 1, 2]), comet.decode(comet.encode(y)))
    assert torch.equal(comet.swap(x, y, 1), comet.decode(torch.stack([z[:, 0], comet.encode(y)[:, 1], z[:, 2]], 1)))
    way = comet.interpolate(x, y, 1, n=3)
    assert way.shape == (3, *x.shape) and torch.equal(way[0], comet.decode(z)) and torch.equal(way[2], comet.swap(x, y, 1))


OTHERS = {"cells": 4, "inhibition": False, "cap": None, "seen": 16, "encoder_filters": 8}
OTHERS |= {"coordinates": "absolute", "start": "uniform", "iterations": 2}


@pytest.mark.parametrize(("name", "options"), [*((name, {"head": head}) for name, head in KINDS), ("comet", OTHERS)])
def test_a_saved_model_is_the_same(name, options, x, tmp_path):
    comet = made(name, **options)
    save_comet(comet, tmp_path)
    again = ce.get("encoder", name, weights=str(tmp_path))
    assert again.energy.config() == comet.energy.config() and torch.equal(again.encode(x), comet.encode(x))
    assert torch.equal(again.decode(again.encode(x)), comet.decode(comet.encode(x))) and not again.training
    save_comet(comet, tmp_path, half=True)
    assert torch.allclose(load_comet(tmp_path).encode(x), comet.encode(x), atol=0.01)


LARGE = torch.rand(PICTURES, 3, 32, 32)

test_pictures_and_options_that_do_not_fit_are_named = refusals(
    (lambda comet, x: comet.decompose(LARGE), ShapeError, r"pictures of shape \(B, 3, 16, 16\), got \(4, 3, 32, 32\)"),
    (lambda comet, x: comet.encode((x * 255).byte()), DtypeError, r"in \[0, 1\], got torch.uint8: write `x.float\(\) / 255`"),
    (lambda comet, x: comet.encode((x > 0.5) * 255.0), OptionError, r"Pictures must lie in \[0, 1\], got 0 to 255"),
    (lambda comet, x: comet.swap(x, x[:2], 0), ShapeError, "as many pictures as each other, got 4 and 2"),
    (lambda comet, x: comet.decompose(x)[0] & made(size=32).decompose(LARGE)[0], ShapeError, r"16, 16.*32, 32"),
    (lambda comet, x: comet.recombine([comet.decompose(y)[0] for y in (x, x[:2])]), ShapeError, "Parts are of 2 and 4 pictures"),
    (lambda comet, x: comet.recombine([]), OptionError, "There are no parts to join"),
    (lambda comet, x: made(components=0), OptionError, "components must be a whole number of at least 1, got 0"),
    (lambda comet, x: made(size=20), OptionError, "size must be 16, 32, 64 or another power of two.*got 20"),
    (lambda comet, x: made(seen=32), OptionError, "seen must be at most the size of pictures, 16, got 32"),
    (lambda comet, x: made(cells=5), OptionError, "a half or a quarter of the 16 pixels that the encoder reads, got 5"),
    (lambda comet, x: made(steps=3), OptionError, "does not take these options"),
    (lambda comet, x: made(inhibition="no"), OptionError, "inhibition must be True or False, got 'no'"),
    (lambda comet, x: comet.masks(x, merge=math.nan), OptionError, "merge must be a number, got nan"),
    (lambda comet, x: comet.decode(comet.encode(x).double()), DtypeError, r"are torch\.float32, got torch\.float64"),
    (lambda comet, x: comet.decode(comet.encode(x) / 0), OptionError, "Latents must be finite"),
    (lambda comet, x: comet.decode(comet.encode(x)[:, :0]), ShapeError, r"\(B, K, 7\), got \(4, 0, 7\)"),
    (lambda comet, x: ce.get("encoder", "comet-window", size=SIDE, window=12), OptionError, "window must be 8, 16, 32 or .*got 12"),
    (lambda comet, x: ce.get("encoder", "comet-window", size=SIDE, window=64), OptionError, "at most"),
    (lambda comet, x: ce.get("encoder", "comet-window", size=SIDE, components=1), OptionError, "components must be .* at least 2, got 1"),
    call=lambda x, use: use(made(), x),
    fixture="x",
)


def test_folders_that_are_no_models_are_named(tmp_path):
    refused(FileFormatError, r"nor a model that comes with the package \(.*sprites", load_comet, "spirits")
    save_comet(comet := made(), tmp_path)
    torch.nn.init.constant_(next(comet.encoder.parameters()), torch.nan)
    save_comet(comet, tmp_path / "nan")
    refused(FileFormatError, "has NaN in its tensor 'encoder", load_comet, tmp_path / "nan")
    (tmp_path / "comet.safetensors").write_bytes(b"nothing")
    refused(FileFormatError, "is damaged", load_comet, tmp_path)


def halves():
    """A quadratic energy of two components: red on the left, blue on the right."""
    energy = made(head="quadratic", components=2, latent=1, coordinates="absolute").energy
    energy.image.zero_()
    left = (torch.arange(SIZE) < SIZE // 2).float().expand(SIZE, SIZE)

    def decode_targets(z):
        signs = z[..., 0][:, :, None, None, None]
        color = torch.where(signs > 0, torch.tensor([1.0, 0, 0])[:, None, None], torch.tensor([0, 0, 1.0])[:, None, None])
        weight = torch.where(signs > 0, left, 1 - left) * 8 - 4
        return color.expand(*z.shape[:2], 3, SIZE, SIZE), weight.expand(*z.shape[:2], 1, SIZE, SIZE)

    energy.decode_targets = decode_targets
    return energy, left


@pytest.mark.parametrize("read", ["weight", "single"])
def test_readings_find_who_draws_what(read):
    energy, left = halves()
    z = torch.tensor([[[1.0], [-1.0]]])
    labels = merge_components(component_scores(energy, energy.minimum(z).clamp(0, 1), z, Noise(0, range(1)), read), None)
    assert float((labels[0] == (1 - left).long()).float().mean()) > 0.85  # pixels beside the border are blurred by the box


def test_components_with_like_scores_count_as_the_first():
    maps = torch.zeros(1, 4, 4, 4)
    maps[0, 0, :2], maps[0, 1, 2:], maps[0, 2, :2, :2], maps[0, 3, 2:] = 1.0, 1.0, 1.5, 0.9
    assert merge_components(maps, None).unique().tolist() == [0, 1, 2]
    labels = merge_components(maps, 0.6)
    assert labels.unique().tolist() == [0, 1] and labels[0, 0, 0] == 0 and labels[0, 3, 3] == 1


def test_looks_turn_away_from_what_earlier_ones_saw():
    """Of new weights, whose attention is nearly even, each look without inhibition sees the same place; with it the middles differ."""
    x = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    spread = {}
    for inhibition in (False, True):
        encoder = made(inhibition=inhibition).encoder
        with torch.no_grad():
            encoder.key.weight.mul_(20)  # so that attention has a place
        spread[inhibition] = float(encoder(x)[:, :, -3:-1].std(1).mean())
    assert spread[True] > 2 * spread[False]


SMALL = {"data.size": 16, "quadratic.steps": 4, "conv.steps": 4, "model.components": 2, "training.checkpoint_every": 2}


@pytest.fixture(scope="module")
def few():
    return pictures(24, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["comet", *(pytest.param(name, marks=pytest.mark.full) for name in ("comet-global", "comet-paper"))])
def test_recipes_are_found_by_name_and_make_their_models(name, few, tmp_path):
    recipe = open_recipe(name)
    assert isinstance(recipe, CometRecipe)
    recipe = recipe.with_changes({**SMALL, "quadratic.batch_size": 4, "conv.batch_size": 4, "conv.filters": 4, "quadratic.filters": 4})
    folder = recipe.train(few, tmp_path / name)
    model = load_comet(folder)
    x = few.images(torch.arange(3))
    assert model.decode(model.encode(x)).shape == x.shape and (tmp_path / name / "decomposition.png").exists()
    assert set(json.loads((tmp_path / name / "report.json").read_text())["stages"]) == {"quadratic", "conv"}
    assert recipe.train(few, tmp_path / name) == folder  # it is done


@pytest.mark.full
def test_the_recipe_of_windows_trains_the_attention_first(tmp_path):
    few = Pictures(ce.get("world", "colored-sprites", size=32).draw(12, seed=5).images, {}, "sprites")
    small = {"model.components": 3, "model.window": 8, "window.filters": 16, "quadratic.filters": 4, "quadratic.batch_size": 4}
    steps = {"quadratic.steps": 3, "window.steps": 3, "window.batch_size": 4, "window.rate": 1e-12, "data.size": 32}
    recipe = open_recipe("comet-window").with_changes(small | steps)
    found = load_comet(recipe.train(few, tmp_path))
    attention, whole = load_comet(tmp_path / "quadratic").encoder.state_dict(), found.encoder.state_dict()
    for name, value in attention.items():
        torch.testing.assert_close(whole[f"find.{name}"], value)
    assert load_comet(tmp_path / "quadratic").energy.size == 16 and found.energy.size == 32
    assert set(json.loads((tmp_path / "report.json").read_text())["stages"]) == {"quadratic", "window"}
    slow = load_comet(recipe.with_changes({"window.rate": 1e-3}).train(few, tmp_path / "slow")).encoder.state_dict()
    moved = {name: float((value - whole[name]).abs().max()) for name, value in slow.items()}
    assert 1e-5 < max(moved[f"find.{name}"] for name in attention) < 0.2 * max(moved.values())
    with pytest.raises(OptionError, match=r"quadratic.steps and window.steps are both 0"):
        recipe.with_changes({"quadratic.steps": 0, "window.steps": 0}).train(few, tmp_path / "none")


@pytest.mark.full
def test_the_script_makes_a_model(tmp_path):
    main(["--out", str(tmp_path), "--steps", "3", "--count", "20"])
    assert load_comet(tmp_path / "comet").energy.name == "comet-conv"


def test_what_the_shipped_model_finds():
    """The masks of the model that comes with the package, on pictures that nothing was trained on, and far above quadrants (.78)."""
    scenes = ce.get("world", "colored-sprites", size=32).draw(48, seed=9, masks=True)
    x = torch.nn.functional.avg_pool2d(torch.from_numpy(scenes.images).float() / 255, 2)
    labels = ce.get("encoder", "comet", weights="sprites").masks(x).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert float(adjusted_rand_index(torch.from_numpy(scenes.masks).long(), labels, foreground=True).mean()) > 0.85


@pytest.mark.full
def test_what_the_shipped_model_of_objects_finds():
    """Masks, reconstructions and the ground of the model of solids, on pictures that nothing was trained or chosen on."""
    scenes = ce.get("world", "objects", **OBJECTS).draw(32, seed=9, masks=True)
    x, truth = torch.from_numpy(scenes.images).float() / 255, torch.from_numpy(scenes.masks).long()
    comet = ce.get("encoder", "comet-window", weights="objects")
    z = comet.encode(x)
    assert float(adjusted_rand_index(truth, comet.masks(x), foreground=True).nanmean()) > 0.9
    assert float((comet.decode(z) - x).square().mean()) < 1e-3
    ground = (comet.decode(z[:, :1]) - x).abs().mean(1)
    assert float(ground[truth == 0].median()) < 0.02 < 0.1 < float(ground[truth > 0].mean())


def made_comet(**options):
    """A model of windows, on a ground of one color."""
    comet = made("comet-window", "window", size=SIDE, latent=LATENT, window=WINDOW, filters=16, seen=16, **options)
    comet.energy.image.copy_(torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(1)))
    return comet


def latents(*poses: tuple[float, float, float], seed: int = 0) -> torch.Tensor:
    """Returns latents of one picture, with shape (1, K, D), all with the same numbers before the pose."""
    numbers = torch.randn(LATENT, generator=torch.Generator().manual_seed(seed))
    return torch.stack([torch.cat([numbers, torch.tensor(pose)]) for pose in poses])[None]


REACH = WINDOW / (SIDE - 1)
MIDDLE = 0.0  # between pixels 15 and 16: the window covers whole pixels


def test_an_object_moves_with_its_window():
    energy = made_comet().energy
    pictures, weights = energy.decode_targets(latents((MIDDLE, MIDDLE, REACH), (MIDDLE + 5 * PIXEL, MIDDLE - 3 * PIXEL, REACH)))
    torch.testing.assert_close(pictures[0, 0].roll((5, -3), (1, 2)), pictures[0, 1], atol=1e-4, rtol=0)
    torch.testing.assert_close(weights[0, 0].roll((5, -3), (1, 2)), weights[0, 1], atol=1e-3, rtol=0)
    assert pictures[0, 0].std() > 1e-3


def test_an_object_shrinks_with_its_window():
    pictures, _ = made_comet().energy.decode_targets(latents((MIDDLE, MIDDLE, REACH), (MIDDLE, MIDDLE, 2 * REACH)))
    middle, half = SIDE // 2, WINDOW // 2
    small = pictures[0, 0, :, middle - half : middle + half, middle - half : middle + half]
    large = pictures[0, 1, :, middle - WINDOW : middle + WINDOW, middle - WINDOW : middle + WINDOW]
    line = torch.tensor([0.125, 0.75, 0.125])  # linear interpolation to twice the pixels, then means of two
    soft = F.conv2d(small[:, None], (line[:, None] * line)[None, None])[:, 0]
    torch.testing.assert_close(F.avg_pool2d(large, 2)[:, 1:-1, 1:-1], soft, atol=1e-4, rtol=0)


def test_outside_of_its_window_an_object_has_no_weight():
    _, weights = made_comet().energy.decode_targets(latents((MIDDLE, MIDDLE, REACH), (0.0, 0.0, 0.0)))
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    middle = SIDE // 2
    inside[middle - WINDOW // 2 : middle + WINDOW // 2, middle - WINDOW // 2 : middle + WINDOW // 2] = True
    share = weights.softmax(1)[0, 0, 0]
    assert share[inside].min() > 0.1 and share[F.max_pool2d(inside[None].float(), 3, 1, 1)[0] == 0].max() < 1e-4


def test_glimpses_cut_out_the_pixels_that_windows_paint():
    comet, x = made_comet(), torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    encoder, energy = comet.encoder, comet.energy
    centre = torch.tensor([[MIDDLE, MIDDLE], [MIDDLE + 4 * PIXEL, MIDDLE], [MIDDLE, MIDDLE - 2 * PIXEL], [MIDDLE, MIDDLE]])
    cut = encoder.crop(x, centre, torch.full((4, 1), REACH))
    first = SIDE // 2 - WINDOW // 2
    rows = slice(first, first + WINDOW)
    torch.testing.assert_close(cut[0], x[0, :, rows, rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(cut[1], x[0, :, first + 4 : first + 4 + WINDOW, rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(cut[2], x[1, :, rows, first - 2 : first - 2 + WINDOW], atol=1e-4, rtol=0)
    pictures, _ = energy.decode_targets(latents((MIDDLE, MIDDLE, REACH)))
    again = encoder.crop(pictures[:, 0], centre[:1], torch.full((1, 1), REACH))
    torch.testing.assert_close(again[0], pictures[0, 0, :, rows, rows], atol=1e-4, rtol=0)


def test_an_energy_of_fewer_pixels_is_compared_with_averages():
    encoder = made_comet().encoder
    energy = ce.load("comet-quadratic", size=16, latent=encoder.find.latent, filters=4)
    comet = Comet(encoder.find, energy)
    x = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    loss = Decomposition().loss(comet, Batch(x, {}, Noise(0, range(2), 1))).value
    torch.testing.assert_close(loss, (energy.minimum(encoder.find(x)) - F.avg_pool2d(x, 2)).square().mean())


def test_what_the_ground_explains_can_be_left_to_it():
    comet, x = made_comet(again=0), torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    batch = Batch(x, {}, Noise(0, range(2), 1))
    plain, covered = Decomposition().loss(comet, batch), Decomposition(cover=0.5).loss(comet, batch)
    share = 1 - comet.energy.decode_targets(comet.encoder(x))[1].softmax(1)[:, 0].mean()
    torch.testing.assert_close(covered.value, plain.value + 0.5 * share)
    torch.testing.assert_close(covered.scalars["error"], plain.value)
    refused(OptionError, "cover needs an energy with targets", Decomposition(cover=0.5).loss, ce.get("encoder", "comet", size=SIDE), batch)


def test_decomposed_pictures_have_the_further_windows():
    x = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    comet, plain = made_comet(), made_comet(again=0)
    assert (comet.components, plain.components, len(comet.decompose(x))) == (5, 3, 5)
    z = comet.encode(x)
    torch.testing.assert_close(z[:, :3], plain.encode(x))
    torch.testing.assert_close(plain.encode(x), plain.encoder(x).detach())
    errors = [(comet.energy.minimum(z[:, :k]) - x).square().flatten(1).mean(1) for k in (3, 4, 5)]
    assert (errors[1] < errors[0] + 1e-4).all() and (errors[2] < errors[1] + 1e-4).all()


CHECKS = sampler_checks(ce.samplers.InnerDescent(30, step_size=0.1, clamp=(-4.0, 4.0)), steps=30)
EXPECTED = {"seed": "it draws nothing", "noise": "it draws nothing", "moments": "it ends near the mode"}


@parametrize_with_checks(CHECKS, expected_failures=EXPECTED)
def test_the_inner_descent_keeps_what_samplers_keep(check: Check) -> None:
    check()


def test_a_start_that_is_given_is_taken() -> None:
    start = ce.samplers.InnerDescent(start_image=torch.full((3, 4, 4), 0.7)).start(torch.zeros(50, 3, 4, 4), Noise(0, range(50)))
    assert abs(float(start.mean()) - 0.7) < 4 * 0.1 / (50 * 48) ** 0.5 and abs(float(start.std()) - 0.1) < 4 * 0.1 / (2 * 50 * 48) ** 0.5
