"""Figures of `ce.viz`: what is drawn are the numbers and the negative gradients, nothing global changes, bad input is refused."""

import math
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch.distributions import Exponential, MultivariateNormal, Normal

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy_viz import PictureWarning
from tests.processes import run_code
from tests.refusals import refusals, refused

matplotlib = pytest.importorskip("matplotlib", reason="needs the extra viz")

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")


def plane(name: str = "plane") -> ce.Energy:
    return ce.as_energy(MultivariateNormal(torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 0.5], [0.5, 1.0]])), name=name)


def line(mean: float = 0.0, name: str = "line") -> ce.Energy:
    return ce.as_energy(Normal(torch.tensor([mean]), 1.0), name=name)


def run(energy: ce.Energy, **options):
    return energy.sample(40, sampler="mala", step_size=0.5, steps=30, seed=0, trace=1, **options)[1]


def axes_of(figure: Figure) -> Axes:
    (axes,) = figure.axes
    return axes


class TestShow:
    def test_the_colour_is_the_density(self):
        axes = axes_of(ce.viz.show(plane(), draws=0, window=((-2, 4), (-4, 2)), resolution=31))
        (image,) = axes.images
        shown = torch.as_tensor(image.get_array()).double()
        points = torch.cartesian_prod(torch.linspace(-4, 2, 31), torch.linspace(-2, 4, 31)).flip(1)
        torch.testing.assert_close(shown, (-plane()(points).view(31, 31)).exp().double() * 2 * math.pi * math.sqrt(0.75), atol=1e-5, rtol=0)
        assert (axes.get_xlim(), axes.get_ylim(), image.origin) == ((-2, 4), (-4, 2), "lower")
        assert image.get_extent() == pytest.approx([-2.1, 4.1, -4.1, 2.1])  # the centres of pixels are the points

    def test_given_points_are_the_dots(self):
        points = torch.cat([torch.randn(49, 2), torch.full((1, 2), math.nan)])
        (dots,) = axes_of(ce.viz.show(plane(), points.double().numpy())).collections
        torch.testing.assert_close(torch.as_tensor(dots.get_offsets()).double(), points[~points.isnan().any(1)].double())

    def test_named_variables_label_the_axes(self):
        energy = ce.as_energy(lambda a, b: (a - b).square() + a.square(), variables={"a": (), "b": ()})
        axes = axes_of(ce.viz.show(energy, {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([0.0, 0.5])}))
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("a", "b")
        assert axes.collections[0].get_offsets().tolist() == [[0.0, 1.0], [0.5, 2.0]]
        assert axes_of(ce.viz.show(energy.given(b=0.0))).get_xlabel() == "a"

    def test_chains_of_a_trace_are_paths(self):
        trace = run(plane())
        axes = axes_of(ce.viz.show(plane(), trace=trace, chains=3))
        assert len(axes.lines) == 9 and len(axes.lines[0].get_xdata()) == 30
        torch.testing.assert_close(torch.as_tensor(axes.lines[3].get_xdata()), trace.points[:, 1, 0].double())
        assert len(axes.collections[0].get_offsets()) == 40

    def test_a_line_is_the_normalised_density_over_a_histogram(self):
        far = ce.as_energy(Normal(torch.tensor([1e9], dtype=torch.float64), 1.0))  # float32 has one number in the window
        axes = axes_of(ce.viz.show(far, torch.randn(200, 1).double() + 1e9, window=(1e9 - 6, 1e9 + 6)))
        x, density = (torch.as_tensor(values).double() for values in axes.lines[0].get_data())
        torch.testing.assert_close(density, Normal(0.0, 1.0).log_prob(x - 1e9).exp(), atol=2e-3, rtol=0)
        assert sum(bar.get_height() * bar.get_width() for bar in axes.patches) == pytest.approx(1)
        single = ce.as_energy(Normal(0.0, 1.0))
        assert not axes_of(ce.viz.show(single, trace=run(single), window=(8, 9))).patches


def test_lines_are_chains_and_their_median():
    trace = run(plane(), burn_in=10)
    axes = axes_of(ce.viz.trace(trace, chains=2))
    first, _, median = axes.lines
    torch.testing.assert_close(torch.as_tensor(first.get_ydata()), trace.energies[:, 0].double())
    torch.testing.assert_close(torch.as_tensor(median.get_ydata()), trace.energies.double().quantile(0.5, 1))
    assert list(median.get_xdata()) == list(range(1, 31))
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"90 % of the chains", "median", "burn-in"}


class TestTerms:
    def test_bars_are_the_mean_energies(self):
        a, b = line(0.0, "a"), line(2.0, "b")
        found = ((a | b) & ~a).explain(torch.randn(30, 1))
        axes = axes_of(ce.viz.explanation(found))
        assert [bar.get_width() for bar in axes.patches] == pytest.approx([row.energy.double().mean().item() for _, row in found.rows()])
        assert [tick.get_text().strip() for tick in axes.get_yticklabels()] == [row.expression for _, row in found.rows()]
        assert axes.lines[0].get_xdata() == pytest.approx(found.energy.double().numpy())

    def test_energies_that_are_not_finite_are_text(self):
        wait, odd = ce.as_energy(Exponential(torch.ones(1))), ce.as_energy(lambda x: (1 - x[:, 0]).log())
        texts = axes_of(ce.viz.explanation((wait & odd).explain(torch.tensor([[-1.0], [2.0]])))).texts
        assert [text.get_text().removesuffix(" at 1 of 2 points") for text in texts] == ["not a number", "infinite", "not a number"]

    def test_a_dollar_in_a_name_is_text_and_files_are_written(self, tmp_path):
        ce.viz.explanation((line(name=r"$\bad{$") & line(1.0, "$")).explain(torch.zeros(2, 1)), path=tmp_path / "terms.svg")
        assert (tmp_path / "terms.svg").read_text().startswith("<?xml")
        ce.viz.show(line(), draws=0, window=(-3, 3), path=str(tmp_path / "c.pdf"))
        assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")

    def test_shares_are_means_with_standard_errors(self):
        found = (line(-2.0, "left") | line(2.0, "right")).explain(torch.randn(50, 1))
        axes = axes_of(ce.viz.shares(found))
        means = [term.share.mean().item() for term in found.terms]
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(means) and sum(means) == pytest.approx(1)
        assert axes.texts[0].get_text() == f"{means[0]:.3f} ± {found.terms[0].share.std() / math.sqrt(50):.3f}"
        assert "of densities with known constants" in axes.get_yticklabels()[0].get_text()

    def test_shares_of_a_trace_take_labels(self):
        trace = run(line(-2.0) | line(2.0))
        labels = [tick.get_text().strip() for tick in axes_of(ce.viz.shares(trace, labels=["left", "right"])).get_yticklabels()]
        assert labels == ["shares: known", "left", "right"]
        refused(ShapeError, "one for each of 2 branches, got 1", ce.viz.shares, trace, labels=["left"])


def towards(place: float, name: str) -> ce.Energy:
    return ce.as_energy(lambda x: (x - place).square().flatten(1).sum(1), name=name)


LEFT, RIGHT = towards(-1.0, "left"), towards(1.0, "right")


def arrows_of(figure):
    return figure.axes[0].collections


def tiles_of(figure, columns: int, size: int = 4):
    """Returns the drawn pictures, with shape (rows, columns, size, size, 3)."""
    sheet = torch.nn.functional.pad(torch.as_tensor(figure.axes[0].images[0].get_array()), (0, 0, 0, 1, 0, 1))
    return sheet.unflatten(1, (columns, size + 1)).unflatten(0, (-1, size + 1))[:, :size, :, :size].permute(0, 2, 1, 3, 4)


def test_arrows_are_the_negative_gradients_of_the_terms():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    arrows = arrows_of(ce.viz.forces(LEFT & RIGHT, x))
    assert [one.get_label() for one in arrows] == ["left", "right"]
    for one, place in zip(arrows, (-1.0, 1.0), strict=True):
        torch.testing.assert_close(torch.stack([torch.as_tensor(one.U), torch.as_tensor(one.V)], 1), (2 * (place - x)).double())
    assert arrows[0].scale == arrows[1].scale


def test_pictures_show_the_force_on_each_pixel_around_grey():
    x = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    tiles = tiles_of(ce.viz.forces([towards(0.0, "dark"), towards(1.0, "bright")], x), 3)
    torch.testing.assert_close(tiles[:, 0], x.permute(0, 2, 3, 1).double())
    assert (tiles[:, 1] <= 0.5).all() and (tiles[:, 2] >= 0.5).all()
    pulls = torch.stack([-2 * x, 2 - 2 * x]).permute(1, 0, 3, 4, 2).double()
    shown = (tiles[:, 1:] - 0.5).abs() < 0.499  # not clipped
    ratio = (tiles[:, 1:] - 0.5)[shown] / pulls[shown]
    assert shown.double().mean() > 0.9 and ratio.std() < 1e-6 * ratio.mean()


PICTURES, FIVE = ce.as_energy(lambda x: x.sum((1, 2, 3)), event_shape=(3, 8, 8)), ce.as_energy(Normal(torch.zeros(5), 1.0))
LOGARITHM, NOWHERE = ce.as_energy(lambda x: x.sum(1).log()), ce.as_energy(lambda x: torch.full((len(x),), torch.inf))
ODD = torch.tensor([0, math.nan, math.inf, 1]).view(4, 1, 1, 1).expand(4, 3, 8, 8)
BAD = [("columns", 0), ("scale", 0), ("scale", 1.5), ("path", "x.doc"), ("path", "no-folder/x.png")]
BAD += [("value_range", wrong) for wrong in ((1, 0), (0, math.inf), ("a", "b"), 1)]
SUM = ce.as_energy(lambda a, b: a + b, variables={"a": (), "b": ()})
STEEP, X, SMALL = ce.as_energy(lambda x: x.abs().sqrt().sum(1), name="steep"), torch.zeros(2, 2), {"draws": 0, "window": (0, 1)}


test_what_cannot_be_drawn_is_refused = refusals(
    (lambda: ce.viz.show(PICTURES), ShapeError, "draw its samples with `grid`"),
    (lambda: ce.viz.show(FIVE), ShapeError, r"takes points of shape \(5,\)"),
    (lambda: ce.viz.show(plane(), points=torch.rand(4, 3)), ShapeError, r"points must have the shape \(n, 2\)"),
    (lambda: ce.viz.show(plane(), points=torch.full((4, 2), math.nan)), OptionError, "None of the 4 points is finite"),
    (lambda: ce.viz.show(plane(), draws=0), OptionError, r"give window="),
    (lambda: ce.viz.show(LOGARITHM, draws=0, window=(-2, -1)), ExpressionError, "not a number"),
    (lambda: ce.viz.show(NOWHERE, **SMALL), OptionError, "0 in the whole window"),
    (lambda: ce.viz.show(plane(), ax="axes", **SMALL), OptionError, "ax takes axes of Matplotlib, .* got str"),
    (lambda: ce.viz.show(plane(), path="nowhere/x.png", **SMALL), OptionError, "there is no folder 'nowhere'"),
    (lambda: ce.viz.show(plane(), trace=replace(run(plane()), points=None)), OptionError, "trace=1"),
    (lambda: ce.viz.trace(replace(run(plane()), energies=torch.zeros(0, 0))), OptionError, "has no energies"),
    (lambda: ce.viz.shares(line().explain(torch.zeros(1, 1))), OptionError, "no mixture"),
    (lambda: ce.viz.shares((line() | line(1.0)).explain(X[:0, :1])), OptionError, "has no points: explain at least one"),
    (lambda: ce.viz.shares(run(line())), OptionError, "The trace has no shares"),
    (lambda: ce.viz.shares((line() | line(1.0)).explain(X[:, :1]), labels=["a", "b"]), OptionError, "leave out labels"),
    (lambda: ce.viz.explanation(line()), OptionError, r"the result of `E\.explain\(x\)`, got DistributionEnergy"),
    (lambda: ce.viz.forces(LEFT), OptionError, "give points, or window"),
    (lambda: ce.viz.forces(LEFT, window=(2, -2)), OptionError, r"window must be \(lowest, highest\), got \(2, -2\)"),
    (lambda: ce.viz.show(plane(), trace=3, **SMALL), OptionError, "trace must be a Trace, got 3"),
    (lambda: ce.viz.show(SUM, {"a": X[:, 0]}, window=(0, 1)), OptionError, "The variables are a, b; got a"),
    (lambda: ce.viz.forces([], X), ExpressionError, "no parts"),
    *((lambda x=x: ce.viz.forces(LEFT, x), ShapeError, "draws points of shape") for x in (X[:, :1], X[:0], X[None], [0.0, 0.0])),
    *((lambda a=a: ce.viz.forces(LEFT & RIGHT, X, labels=a), ShapeError, "one for each of 2 parts") for a in ("ab", ["a"])),
    (lambda: ce.viz.forces(STEEP, X), ExpressionError, "not finite at 2 of 2"),
    (lambda: ce.viz.grid(ODD), OptionError, "2 of 4 images have values that are not finite"),
    *((lambda options={name: value}: ce.viz.grid(torch.rand(2, 3, 8, 8), **options), OptionError, name) for name, value in BAD),
)


@pytest.mark.slow
def test_notebooks_show_what_is_returned_and_pyplot_is_not_touched():
    before = "matplotlib.pyplot" in sys.modules
    assert ce.viz.show(line(), draws=0, window=(-3, 3))._repr_png_().startswith(b"\x89PNG")
    if before:
        import matplotlib.pyplot as plt

        assert plt.get_fignums() == []
    else:
        assert "matplotlib.pyplot" not in sys.modules


def steps(n: int, channels: int = 3, size: int = 8) -> torch.Tensor:
    """Images of one value each, which differ by more than rounding."""
    return (torch.arange(n) / max(1, n - 1)).view(n, 1, 1, 1).expand(n, channels, size, size)


def middle(sheet: Image.Image, row: int, column: int, tile: int, gap: int = 4) -> int:
    pixel = sheet.getpixel((column * (tile + gap) + tile // 2, row * (tile + gap) + tile // 2))
    assert isinstance(pixel, tuple) and len(set(pixel)) == 1
    return int(pixel[0])


class TestLayout:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_images_are_in_reading_order(self, channels):
        sheet = ce.viz.grid(steps(6, channels), columns=3, scale=2)
        assert sheet.size == (3 * 16 + 8, 2 * 16 + 4)
        assert [middle(sheet, i // 3, i % 3, 16) for i in range(6)] == [round(255 * i / 5) for i in range(6)]

    def test_one_image_a_list_and_an_array_are_images(self):
        images = steps(3)
        wanted = ce.viz.grid(images).tobytes()
        assert ce.viz.grid(list(images)).tobytes() == ce.viz.grid(images.numpy()).tobytes() == wanted
        assert ce.viz.grid((images * 255).round().byte()).tobytes() == wanted
        assert ce.viz.grid(images > 0.5).tobytes() == ce.viz.grid((images > 0.5).float()).tobytes()
        assert ce.viz.grid(images[1], scale=1).size == (8, 8)

    def test_labels_stand_below_their_images(self):
        plain, labelled = ce.viz.grid(torch.ones(4, 1, 8, 8)), ce.viz.grid(torch.ones(4, 1, 8, 8), labels=["a\nb", "", "long " * 99, 7])
        assert labelled.width == plain.width and labelled.height == plain.height + 2 * 18
        tile = (plain.width - 4) // 2
        strips = [np.asarray(labelled)[tile : tile + 18, x : x + tile] for x in (0, tile + 4)]
        assert strips[0].min() < 100 and strips[1].min() == 255

    def test_the_range_is_mapped_to_black_and_white(self):
        sheet = ce.viz.grid(torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 8, 8), value_range=(-1, 1), columns=3, scale=1)
        assert [middle(sheet, 0, i, 8) for i in range(3)] == [0, 128, 255]


def test_another_range_warns_with_the_values():
    with pytest.warns(PictureWarning, match="from (-1 to 1: give|400 to 400: give floats and) value_range="):
        ce.viz.grid(torch.linspace(-1, 1, 192).view(1, 3, 8, 8)), ce.viz.grid(torch.full((1, 1, 8, 8), 400).to(torch.uint16))


test_other_shapes_and_labels_say_what_to_do = refusals(
    (torch.rand(4, 2), None, "For points on the plane use `show`"),
    (torch.rand(4, 8, 8), None, r"`images\.unsqueeze\(1\)`"),
    (torch.rand(4, 8, 8, 3), None, "channels seem to be last"),
    (torch.rand(0, 3, 8, 8), None, r"got \(0, 3, 8, 8\)"),
    ([torch.rand(3, 8, 8), torch.rand(3, 4, 4)], None, "images must"),
    ("images", None, "images must"),
    (torch.rand(2, 3, 8, 8), ["one"], "one for each of 2 images"),
    (torch.rand(2, 3, 8, 8), "text", "one for each of 2 images"),
    call=lambda images, labels: ce.viz.grid(images, labels=labels),
    error=ShapeError,
)


@pytest.mark.full
def test_grids_need_no_matplotlib_and_figures_name_the_extra(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import torch, composable_energy as ce\n"
        "ce.viz.grid(torch.rand(2, 3, 8, 8))\n"
        "ce.viz.show(lambda x: x.square().sum(1), window=(-1, 1), draws=0)\n"
    )
    assert re.search(r"ExtraNotInstalled: .*pip install 'composable-energy\[viz\]'", run_code(code, tmp_path).stderr)
