import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.units import bill_lines, format_bytes, format_count, format_seconds, parse_seconds

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (64 * 2**20, "64.0 MiB"),
        (80 * 2**30, "80.0 GiB"),
        (2**40, "1.0 TiB"),
        (5000 * 2**40, "5000.0 TiB"),
        (-1536, "-1.5 KiB"),
    ],
)
def test_bytes_carry_a_binary_unit(size_bytes, text):
    assert format_bytes(size_bytes) == text


@quiet
@given(st.integers(0, 2**55))
def test_formatted_bytes_keep_the_size(size_bytes):
    number, unit = format_bytes(size_bytes).split()
    assert float(number) * _BYTES[unit] == pytest.approx(size_bytes, rel=0.06, abs=0.5)


def test_a_bill_is_written_largest_first_without_what_is_nothing():
    items = {"parameters": 1536, "optimizer_state": 3 * 2**20, "buffers": 0, "context": 430 * 2**20}
    assert bill_lines(items) == [
        "   430.0 MiB  context",
        "     3.0 MiB  optimizer state",
        "     1.5 KiB  parameters",
    ]
    assert bill_lines({}) == bill_lines({"buffers": 0}) == []


@quiet
@given(st.dictionaries(st.text("abc_", min_size=1), st.integers(0, 2**50)))
def test_a_bills_names_stand_in_one_column(items):
    lines = bill_lines(items)
    assert len(lines) == sum(size > 0 for size in items.values())
    assert {line[:14] == f"  {line[2:12].strip():>10}  " for line in lines} <= {True}
    assert sorted(line[14:] for line in lines) == sorted(
        name.replace("_", " ") for name, size in items.items() if size
    )


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (0, "0 us"),
        (250e-6, "250 us"),
        (0.0042, "4.2 ms"),
        (0.25, "250 ms"),
        (1, "1 s"),
        (12.34, "12.3 s"),
        (60, "1m00s"),
        (90, "1m30s"),
        (3599.6, "1h00m"),
        (3600, "1h00m"),
        (5400, "1h30m"),
        (90_000, "25h00m"),
    ],
)
def test_seconds_carry_the_unit_that_suits(duration_s, text):
    assert format_seconds(duration_s) == text


@quiet
@given(st.floats(1e-6, 59.9))
def test_formatted_short_durations_keep_three_digits(duration_s):
    text = format_seconds(duration_s)
    assert "e" not in text
    number, unit = text.split()
    assert float(number) * _SECONDS[unit] == pytest.approx(duration_s, rel=0.006, abs=0.5e-6)


@quiet
@given(st.floats(60, 1e8))
def test_formatted_long_durations_parse_back(duration_s):
    resolution_s = 1 if duration_s < 3599 else 60
    assert abs(parse_seconds(format_seconds(duration_s)) - duration_s) <= resolution_s


def test_a_duration_is_never_written_with_an_exponent():
    assert format_seconds(0.9996) in ("1 s", "1.00 s", "1000 ms")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1437.2, "1,437"),
        (100, "100"),
        (1_000_000, "1,000,000"),
        (-1437, "-1,437"),
        (12.345, "12.3"),
        (0, "0"),
    ],
)
def test_counts_have_thousands_separators(value, text):
    assert format_count(value) == text


@quiet
@given(st.integers(-(10**12), 10**12))
def test_whole_counts_are_written_exactly(value):
    text = format_count(value)
    assert int(text.replace(",", "")) == value
    assert re.fullmatch(r"-?\d{1,3}(,\d{3})*", text)


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        ("90", 90),
        (90, 90),
        (1.5, 1.5),
        ("90s", 90),
        ("20m", 1200),
        ("1h30m", 5400),
        ("1d2h3m4s", 93_784),
        ("0.5h", 1800),
        (" 20M ", 1200),
        ("1e3", 1000),
    ],
)
def test_durations_are_read(text, duration_s):
    assert parse_seconds(text) == duration_s


@quiet
@given(
    st.dictionaries(st.sampled_from("dhms"), st.integers(0, 10_000), min_size=1).filter(
        lambda parts: any(parts.values())
    )
)
def test_every_sum_of_units_is_read(parts):
    unit_s = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
    text = "".join(f"{number}{unit}" for unit, number in parts.items())
    assert parse_seconds(text) == sum(number * unit_s[unit] for unit, number in parts.items())


@quiet
@given(st.floats(1e-300, 1e300))
def test_plain_numbers_are_seconds(duration_s):
    assert parse_seconds(duration_s) == parse_seconds(str(duration_s)) == duration_s


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "soon", "20 minutes", "m", "20x", "20m!", "1h-30m", "-5", "-5m", "0", "0s", "0h0m",
        "nan", "inf", "-inf", "1e999", "9" * 400 + "s", "1.2.3s", "None", None, True,
    ],
)  # fmt: skip
def test_a_bad_duration_is_refused_by_name(text):
    with pytest.raises(ValueError, match="duration") as caught:
        parse_seconds(text)
    assert repr(text) in str(caught.value)


@quiet
@given(st.text(max_size=12))
def test_any_text_is_a_positive_duration_or_refused(text):
    try:
        duration_s = parse_seconds(text)
    except ValueError as error:
        assert "duration" in str(error)
    else:
        assert 0 < duration_s < float("inf")
