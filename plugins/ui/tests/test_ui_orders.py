"""Orders: limits, weights written out, and the same samples by the command line and by Python; the energies of the plane."""

import re
import shlex

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, OptionError
from composable_energy_cli import main
from composable_energy_cli.parsing import ParseError
from composable_energy_ui.drawing import draw
from composable_energy_ui.orders import Edit, Order, read_order
from tests.refusals import refusals, refused
from tests.third_party import At

WEIGHTS = st.floats(0.1, 5).map(lambda value: round(value, 2))


def carry_out(*orders, start=None):
    """Returns the points and the result of the last order."""
    events = []
    draw(orders, start, (0.0, 1.0), events.append)
    found = {event["kind"]: event for event in events}
    return found["points"]["points"], found["result"]


def order(expression="ring & ~right", **fields):
    return Order(expression, family="plane", **{"n": 8, "steps": 20, "sampler": "mala", **fields})


class Letters(float):
    """A number where `&` is a sum and `~` a change of sign."""

    def __and__(self, other):
        return Letters(float(self) + other)

    def __invert__(self):
        return Letters(-float(self))

    def __rmul__(self, weight):
        return Letters(weight * float(self))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(WEIGHTS, min_size=3, max_size=3), WEIGHTS)
def test_weights_and_temperature_are_written_into_the_expression(weights, temperature):
    text = Order("ring & 2 * bar & ~right", weights=tuple(weights), temperature=temperature).text
    expected = sum(w * part for w, part in zip(weights, (4, 6, -5), strict=True)) / temperature
    assert eval(re.sub("[a-z]+", lambda name: f"Letters({len(name[0])})", text)) == pytest.approx(expected)


def test_an_expression_that_is_no_conjunction_has_one_weight():
    assert Order("ring | bar", weights=(2.0,)).text == "2 * (ring | bar)" and Order("ring | bar").terms == ("ring | bar",)


test_what_is_out_of_limits_is_refused = refusals(
    ({"n": 65}, "at most 64"),
    ({"steps": 3000}, "at most 2000 steps"),
    ({"temperature": 0}, "temperature must be a positive number"),
    ({"sampler": "chess"}, "Did you mean 'chees'"),
    ({"sharpen": "1"}, "sharpen must be"),
    ({"sharpen": -(10**400)}, "sharpen must be"),
    ({"family": "a" * 300}, "No plug-in offers"),
    ({"colour": 1}, "not one of this page"),
    ({"edit": {"job": "a", "index": -1}}, "index must be"),
    ({"expression": 3}, "texts"),
    ({"expression": "right & ~rimg"}, r"(?m)did you mean `ring`.*\n.*\n {11}\^{4}$"),
    ({"given": {"y": "red"}}, "Conditions take a number, or several as 0.2, 0.5: .* got 'y=red'"),
    ({"expression": "a" * 501}, "at most 500 characters"),
    call=lambda fields: read_order({"expression": "ring", "family": "plane", **fields}, None, True),
    error=ComposableEnergyError,
)


@pytest.mark.parametrize(
    ("expression", "family"), [("./saved", "plane"), ("hf:owner/name", "plane"), ("plane/mine", "plane"), ("male", "."), ("male", "/tmp")]
)
def test_users_of_other_computers_name_no_folders_and_locations(expression, family, tmp_path, monkeypatch):
    """Nor do they learn from an error which folders there are."""
    monkeypatch.chdir(tmp_path)
    for folder in ("saves", "plane/mine"):
        ce.load("plane/ring").save(folder)
    told = r"only be named on the computer|folders are named by|did you mean `plane`"
    with pytest.raises((OptionError, ParseError), match=told) as caught:
        read_order({"expression": expression, "family": family}, None, False)
    assert "saves" not in str(caught.value)


def test_users_of_other_computers_are_reported_the_nearest_name():
    refused(ParseError, "did you mean `ring` or `right`", read_order, {"expression": "rimg", "family": "plane"}, None, False)
    assert read_order({"expression": "right & faces/male", "family": "plane"}, None, False).family == "plane"


@pytest.fixture
def at():
    with ce.register("energy", "at", At):
        yield


@pytest.mark.full
@pytest.mark.usefixtures("at")
@pytest.mark.parametrize(
    "fields",
    [
        {"expression": "at", "given": {"y": "1, 2"}},
        {"expression": "at & ring", "given": {"y": "1"}},
        {"weights": (0.5, 2.0), "temperature": 2.0},
        {"expression": "right", "sharpen": 2.0, "sampler": "mala"},
    ],
)
def test_the_command_line_and_python_draw_the_same_points(fields, tmp_path, monkeypatch, capsys):
    points, result = carry_out(order(**fields, seed=3))
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(result["command"])[1:]) == 0 and np.array_equal(np.load("samples.npy"), points)
    names = {}
    exec(result["python"], names)
    assert np.array_equal(names["samples"].numpy(), points)


@pytest.mark.slow
def test_a_network_with_random_weights_is_sampled_on_request_only():
    refused(OptionError, r'not trained.* or check "Untrained networks" to sample this one', carry_out, Order("igebm-mnist"))
    _, result = carry_out(Order("igebm-mnist", n=1, steps=1, sampler="descent", untrained=True))
    assert "--untrained" in result["command"]


@pytest.mark.full
@pytest.mark.usefixtures("at")
def test_conditions_are_reported_and_must_have_values():
    events = []
    refused(OptionError, 'depends on y: give it a value under "Conditions"', draw, [order("at")], None, (0.0, 1.0), events.append)
    assert events == [{"kind": "conditions", "conditions": [{"name": "y", "required": True}]}]
    points, result = carry_out(order("ring", given={"y": "3"}))  # a value that stayed from another expression
    assert "--given" not in result["command"]
    points, _ = carry_out(order("at", given={"y": "-3, 4"}, n=64, sampler=None, steps=None))
    assert np.allclose(points.mean(0), (-3, 4), atol=0.5)


@pytest.mark.full
def test_python_draws_the_same_edited_faces():
    first = Order("male & ~smiling", n=2, steps=10)
    points, result = carry_out(first)
    assert result["view"] == "pictures" and "--option levels=10" in result["command"]
    edited, result = carry_out(first, Order("glasses", n=3, seed=5, steps=8, edit=Edit("job", 1, 0.5)), start=points[1])
    names = {}
    exec(result["python"], names)
    assert result["command"] == ""
    with torch.no_grad():
        shown = ce.load("faces").decoder(torch.from_numpy(edited))  # pyright: ignore
    torch.testing.assert_close(names["samples"], shown, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_result_has_terms_shares_traces_and_statistics():
    _, result = carry_out(order("ring | bar", n=6, steps=30))
    assert [row["expression"] for row in result["terms"]] == ["ring | bar", "ring", "bar"]
    shares = np.array([row["share"] for row in result["terms"][1:]])
    assert np.allclose(shares.sum(0), 1, atol=1e-3) and shares.shape == (2, 6)
    assert len(result["trace"]["mid"]) == 30 and len(result["paths"]) == 30
    assert {row["name"] for row in result["summary"]["rows"]} == {"energy", "x[0]", "x[1]"}
    assert any("calibrate" in text for text in result["warnings"])
    _, result = carry_out(order("ring & right"))
    assert [row["expression"] for row in result["terms"] if row["probability"] is not None] == ["right"]  # the only event
