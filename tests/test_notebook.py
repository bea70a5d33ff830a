"""HTML of expressions, explanations and traces for notebooks: complete, escaped, small."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
import torch
from torch.distributions import Normal, constraints

import composable_energy as ce
from composable_energy.tables import Html, escape, html_block, html_table, text_table
from tests.toys import Toys

EVIL = '<script>alert("x")</script>&'


class Cells(HTMLParser):
    """Collects tags, and the text of each row of tables; refuses tags that do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("polygon", "polyline"):
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag not in ("polygon", "polyline"):
            assert self._open.pop() == tag

    def handle_data(self, data):
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data


def gaussian(name: str, mean: float = 0.0) -> ce.Energy:
    return ce.as_energy(Normal(torch.tensor([mean]), 1.0), name=name)


class TestExpressions:
    def test_each_term_has_a_row_with_its_place_in_the_tree(self):
        a, b = gaussian("a"), gaussian("b", 2.0)
        page = Cells(((a | b) & ~a)._repr_html_())
        assert [row[0] for row in page.rows] == ["term", "(a | b) & ~a", "├─ a | b", "│  ├─ a", "│  └─ b", "└─ ~a", "   └─ a"]
        assert page.rows[1][1:3] == ["Conjunction", "(1,)"]

    def test_a_repeated_part_is_shown_once(self):
        twice = 2 * (gaussian("a") & gaussian("b"))
        rows = [row[0] for row in Cells(((twice & gaussian("c")) | twice)._repr_html_()).rows]
        assert sum("(as above)" in row for row in rows) == 1 and sum(row.endswith("─ a") for row in rows) == 1

    def test_sources_supports_bases_and_parameters_are_shown(self):
        with ce.register("energy", "toys", Toys):
            bright, dark = ce.load("toys/bright"), ce.load("toys/left=dark")
        page = Cells((bright & ~dark)._repr_html_())
        text = {row[0]: row for row in page.rows}
        assert "toys/bright, this session" in text["├─ bright"] and any(name.startswith("base ") for name in text)
        gamma = ce.as_energy(torch.distributions.Gamma(torch.ones(2), 1.0), name="rate")
        assert "positive" in Cells(gamma._repr_html_()).rows[1] or "nonnegative" in Cells(gamma._repr_html_()).rows[1]
        net = ce.as_energy(torch.nn.Sequential(torch.nn.Linear(2, 500), torch.nn.Flatten(0)), name="net")
        assert Cells((net & net)._repr_html_()).rows[0][-1] == "parameters" and "1,500" in net._repr_html_()

    def test_a_shared_base_counts_once(self):
        base = ce.as_energy(torch.nn.Linear(2, 1), name="base")
        right, left = (ce.ClassifierEnergy(torch.nn.Linear(2, 1), 1, base, name=name) for name in ("right", "left"))
        rows = {row[0]: row[-1] for row in Cells((right & left)._repr_html_()).rows}
        assert rows == {"term": "parameters", "right & left": "", "├─ right": "3", "└─ left": "3", "base base": "3"}

    def test_what_cannot_be_sampled_is_said(self):
        a = gaussian("a")
        assert "no lower bound" in (~a)._repr_html_() and "shares of densities with known constants" in (a | gaussian("b"))._repr_html_()
        positive, negative = (ce.as_energy(lambda x: x.sum(1), support=s) for s in (constraints.positive, constraints.less_than(0.0)))
        assert "no point fulfils it" in (positive & negative)._repr_html_() or "empty" in (positive & negative)._repr_html_()

    def test_very_large_expressions_stay_small(self):
        page = ce.all_of(*(gaussian(f"x{i}") | gaussian(f"y{i}") for i in range(200)))._repr_html_()
        assert len(Cells(page).rows) <= 102 and len(page) < 60_000 and "more than 100 more terms" in page


class TestEscaping:
    def test_names_are_text(self):
        evil, other = gaussian(EVIL), gaussian("other", 3.0)
        either = evil | other
        points, trace = either.sample(30, sampler="mala", step_size=0.5, steps=5, seed=0, trace=True, warn=False)
        for shown in (evil, either & ~other, either.explain(points), either.explain(points[:2])):
            page = shown._repr_html_()
            assert "script" not in Cells(page).tags and escape(EVIL) in page
        assert "script" not in Cells(trace._repr_html_()).tags
        trace.first_error, trace.errors = EVIL, 1
        assert escape(EVIL) in trace._repr_html_()

    def test_html_is_left_and_the_rest_escaped(self):
        table = html_table(("<a>", Html("<b>b</b>")), [(1, None), ("x & y", Html("<i>z</i>"))], right=(0,))
        assert Cells(table).rows == [["<a>", "b"], ["1", ""], ["x & y", "z"]] and escape(table) is table
        assert Cells(html_block(table, "", None, "a < b")).tags.count("div") == 3


class TestExplanations:
    def test_few_points_have_a_column_each(self):
        found = (gaussian("a") | gaussian("b", 2.0)).explain(torch.tensor([[0.0], [2.0]]))
        head, *rows = Cells(found._repr_html_()).rows
        assert head[:4] == ["energy of", "point 1", "point 2", "share"] and [row[0] for row in rows] == ["a | b", "a", "b"]
        assert [float(row[3]) for row in rows[1:]] == pytest.approx([0.5, 0.5], abs=1e-3)
        assert [float(value) for value in rows[1][1:3]] == pytest.approx([0.919, 2.919], abs=1e-3)

    def test_many_points_have_their_mean_and_range(self):
        head, whole = Cells(gaussian("a").explain(torch.linspace(-1, 1, 101)[:, None])._repr_html_()).rows
        assert head[1:4] == ["mean", "lowest", "highest"]
        assert [float(value) for value in whole[1:4]] == pytest.approx([0.919 + 0.17, 0.919, 1.419], abs=1e-3)


class TestTraces:
    def run(self, **options):
        return gaussian("a").sample(30, sampler="mala", step_size=0.5, seed=3, trace=True, warn=False, **options)[1]

    def test_facts_and_the_course_of_energies(self):
        trace = self.run(steps=40, burn_in=10)
        page = Cells(trace._repr_html_())
        facts = dict(page.rows)
        assert (facts["chains"], facts["steps"], facts["seed"]) == ("30", "40, the first 10 burn-in", "3")
        assert float(facts["acceptance"]) == pytest.approx(trace.acceptance.mean().item(), abs=0.006)
        assert "polyline" in page.tags and "currentColor" in trace._repr_html_()

    @pytest.mark.slow
    def test_a_summary_has_its_statistics_and_warnings(self):
        summary = self.run(steps=40, burn_in=10).summary()
        page = Cells(summary._repr_html_())
        assert page.rows[-1][0] == "energy" and float(page.rows[-1][1]) == pytest.approx(summary.rows[0].mean, rel=1e-3)
        assert len(page.rows) == len(summary.facts) + 1 + len(summary.rows)
        assert page.tags.count("li") == max(1, len(summary.warnings))

    def test_without_energies_there_is_no_picture(self):
        trace = self.run(steps=5)
        trace.energies = trace.energies[:0]
        assert "svg" not in Cells(trace._repr_html_()).tags

    def test_long_runs_stay_small(self):
        trace = self.run(steps=5)
        trace.energies = torch.randn(20_000, 600)
        assert len(trace._repr_html_()) < 12_000


def test_text_tables_are_aligned():
    assert text_table(("a", "bb"), [("long", 1), (None, 22)], right=(1,)) == "a     bb\nlong   1\n      22"
