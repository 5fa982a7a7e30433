"""Common parts of all pages: numbers, times and lists for readers, and escaping."""

from __future__ import annotations

import math

import pytest
from jinja2 import UndefinedError

from zoomseg.inference.html_page import duration, environment, number, p_value, page, readable, signed

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("value", "digits", "plain", "with_sign"),
    [
        (1234.56, 1, "1,234.6", "+1,234.6"),
        (-0.04, 1, "-0.0", "0.0"),
        (-2.0, 0, "-2", MINUS + "2"),
        (math.nan, 1, DASH, DASH),
        (math.inf, 1, "∞", "∞"),
    ],
)
def test_number_formats(value, digits, plain, with_sign):
    assert (number(value, digits), signed(value, digits)) == (plain, with_sign)


def test_p_values() -> None:
    assert (p_value(0.0004), p_value(0.04), p_value(math.nan)) == ("< 0.001", "0.040", DASH)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(9.44, "9.4 s"), (90, "2 min"), (2307.4, "38 min"), (3600, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_what_json_holds_is_said_line_by_line() -> None:
    trained = {"data_set": "BTCV", "date": "2026-11-29T08:43:57Z", "seconds": 2307.4, "seed": 0}
    assert readable(trained) == "data set: BTCV\ndate: 2026-11-29 08:43 UTC\nduration: 38 min\nseed: 0"
    assert readable(["a", "b", 3, None]) == "a, b, 3, null"
    assert readable({"seconds": True, "deep": [1, {"x": "T"}]}) == 'duration: true\ndeep: [1, {"x": "T"}]'


def test_a_page_says_what_made_it_and_escapes_it() -> None:
    text = page("zoomseg.inference", "base.html", {"<b>": ["<i>", "&"]})
    assert "made by" in text
    assert "<dt>&lt;b&gt;</dt><dd>&lt;i&gt;, &amp;</dd>" in text


def test_what_a_template_needs_must_be_given() -> None:
    with pytest.raises(UndefinedError):
        environment("zoomseg.inference").get_template("results.html").render(provenance={})
