"""Quantities such as 16M, 2ms or 20steps: read, written and refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcd_cli import quantities as q
from mcd_cli.errors import UserError

few = settings(max_examples=60, derandomize=True, database=None, deadline=None)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (q.count, "16M", 16_000_000),
        (q.count, "16m", 16_000_000),
        (q.count, " 16 M ", 16_000_000),
        (q.count, "2.5G", 2_500_000_000),
        (q.count, "320K", 320_000),
        (q.count, ".5K", 500),
        (q.count, "8008", 8008),
        (q.count, "1.6e7", 16_000_000),
        (q.count, 16e6, 16_000_000),
        (q.count, 2**59, 2**59),
        (q.count, "0.1K", 100),
        (q.size, "400KB", 400_000),
        (q.size, "400K", 400_000),
        (q.size, "1KiB", 1024),
        (q.size, "1.5MiB", 1_572_864),
        (q.size, "2GiB", 2_147_483_648),
        (q.size, "12B", 12),
        (q.size, "12", 12),
        (q.duration, "1.5ms", 1.5),
        (q.duration, "800us", 0.8),
        (q.duration, "800\u00b5s", 0.8),
        (q.duration, "2s", 2000.0),
        (q.duration, "3", 3.0),
        (q.duration, 0.25, 0.25),
        (q.accuracy, "0.72", 0.72),
        (q.accuracy, "72%", 0.72),
        (q.accuracy, "72.5 %", 0.725),
        (q.accuracy, "1", 1.0),
        (q.accuracy, "1%", 0.01),
        (q.accuracy, 0.5, 0.5),
        (q.interval, "20steps", q.Interval(steps=20)),
        (q.interval, "1step", q.Interval(steps=1)),
        (q.interval, "2min", q.Interval(seconds=120)),
        (q.interval, "0.5min", q.Interval(seconds=30)),
        (q.interval, "30s", q.Interval(seconds=30)),
    ],
)
def test_reads(parse: Callable[[object], object], text: object, value: object) -> None:
    assert parse(text) == value


NOTHING = [
    "",
    " ",
    ".",
    "M",
    "-1",
    "-16M",
    "+16M",
    "nan",
    "inf",
    "1e999",
    "1e99",
    "9" * 5000,
    "1,000",
    "1_000",
]
NOTHING += [
    "١٦",
    "1\u0665",
    "16M\n",
    "16\tM\n",
    "0x10",
    "1/2",
    "16 M M",
    "one",
    "1e",
    "1e+",
    "--",
    "1.2.3",
    "１６",
]


@pytest.mark.parametrize("parse", [q.count, q.size, q.duration, q.accuracy, q.interval])
@pytest.mark.parametrize(
    "text",
    [
        *NOTHING,
        float("nan"),
        float("inf"),
        pytest.param(10**5000, id="huge"),
        -1,
        -0.5,
        True,
        None,
        b"16M",
        [1],
    ],
)
def test_what_is_no_quantity_is_refused_in_one_line(parse: Callable[[object], object], text: object) -> None:
    with pytest.raises(UserError) as refused:
        parse(text)
    message = str(refused.value)
    assert "\n" not in message
    assert "write it like" in message
    assert len(message) < 200


@pytest.mark.parametrize(
    ("parse", "text", "why"),
    [
        (q.count, "16MB", "it has the unit 'MB'"),
        (q.count, "16MiB", "it has the unit 'MiB'"),
        (q.count, "16ms", "it has the unit 'ms'"),
        (q.count, "2%", "it has the unit '%'"),
        (q.count, "1.5", "not a whole number"),
        (q.count, "1e-3", "not a whole number"),
        (q.count, 1.5, "not a whole number"),
        (q.count, "2000000000G", "too large"),
        (q.size, "2ms", "it has the unit 'ms'"),
        (q.size, "0.5B", "not a whole number"),
        (q.duration, "2M", "it has the unit 'M'"),
        (q.accuracy, "72", "above 1; write it like 0.72 or 72%"),
        (q.accuracy, "1.01", "above 1"),
        (q.accuracy, "101%", "above 1"),
        (q.accuracy, "72K", "it has the unit 'K'"),
        (q.interval, "20", "it has no unit"),
        (q.interval, "0steps", "zero"),
        (q.interval, "0s", "zero"),
        (q.interval, "1.5steps", "not a whole number"),
        (q.interval, "20ms", "it has the unit 'ms'"),
    ],
)
def test_says_what_is_wrong(parse: Callable[[object], object], text: object, why: str) -> None:
    with pytest.raises(UserError, match=why):
        parse(text)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (q.show_count(16_180_000), "16.18M"),
        (q.show_count(0), "0"),
        (q.show_count(10), "10"),
        (q.show_count(996), "996"),
        (q.show_count(8008), "8.01K"),
        (q.show_count(320_436), "320.44K"),
        (q.show_count(100_000), "100K"),
        (q.show_count(999_999), "1M"),
        (q.show_count(1_159_450_000), "1.16G"),
        (q.show_count(2_000_000_000_000), "2000G"),
        (q.show_count(16_180_000, 3), "16.2M"),
        (q.show_count(320_436, 3), "320K"),
        (q.show_count(100_000, 3), "100K"),
        (q.show_count(999_600, 3), "1M"),
        (q.show_size(1_281_744), "1.28MB"),
        (q.show_size(999), "999B"),
        (q.show_ms(1.5), "1.5ms"),
        (q.show_ms(0.8), "800us"),
        (q.show_ms(2000), "2s"),
        (q.show_ms(0), "0us"),
    ],
)
def test_shows(shown: str, text: str) -> None:
    assert shown == text


@few
@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from(["", "K", "M", "G"]))
def test_a_count_is_exact_or_refused(whole: int, thousandths: int, unit: str) -> None:
    exact = (whole + Fraction(thousandths, 1000)) * 1000 ** ["", "K", "M", "G"].index(unit)
    text = f"{whole}.{thousandths:03d}{unit}"
    if exact.denominator == 1:
        assert q.count(text) == exact
    else:
        with pytest.raises(UserError, match="whole number"):
            q.count(text)


@few
@given(st.integers(0, 10**12))
def test_what_is_shown_reads_back_within_its_last_digit(value: int) -> None:
    assert abs(q.count(q.show_count(value)) - value) <= 0.0051 * max(value, 1)
    assert abs(q.size(q.show_size(value)) - value) <= 0.0051 * max(value, 1)
    assert abs(q.duration(q.show_ms(value / 1000)) - value / 1000) <= 0.0051 * max(value / 1000, 1)
    assert abs(q.count(q.show_count(value, 3)) - value) <= 0.0051 * value


@few
@given(st.floats(0, 1))
def test_an_accuracy_given_as_a_number_or_its_text_is_that_number(value: float) -> None:
    if value == 0 or value > 1e-9:
        assert q.accuracy(value) == value == q.accuracy(repr(value))


@few
@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (q.count, q.size, q.duration, q.accuracy, q.interval):
        with contextlib.suppress(UserError):
            parse(text)
