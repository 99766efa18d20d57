"""Numbers, units and lists as text."""

from datetime import UTC, datetime

import pytest

from medar.report.blocks import Report, Section, Text
from medar.report.formatting import (
    format_count,
    format_difference,
    format_duration,
    format_fixed,
    format_measured,
    format_memory,
    format_number,
    format_percent,
    format_range,
    format_time,
    join_words,
    shorten,
)
from medar.report.render import to_html


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0, "0"), (0.0, "0"), (1, "1"), (12.345, "12.3"), (0.012345, "0.0123"),
        (-1000.0, "−1,000"), (2945.37, "2,945"), (125170.6, "125,171"), (-0.5, "−0.5"),
        (0.00001234, "1.23e−05"), (3.2e9, "3.20e+09"), (99.96, "100"), (999.6, "1,000"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(6.8, "6.80"), (0.51, "0.510"), (-2.0, "−2.00"), (99.96, "100"), (1234.0, "1,234"),
     (0.0, "0"), (None, "–"), (0.00001234, "1.23e−05")],
)  # fmt: skip
def test_measured_values_keep_their_last_zeros(value: float | None, text: str) -> None:
    assert format_measured(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.08213, "0.082 s"), (3.0, "3.0 s"), (12.4, "12 s"),
     (59.4, "59 s"), (59.6, "1 min"), (119.7, "2 min"), (61, "1 min 1 s"), (3599.8, "1 h"),
     (7290, "2 h 2 min")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


def test_other_formats() -> None:
    assert format_fixed(-1.005, 1) == "−1.0"
    assert format_percent(0.1234) == "12.3 %"
    assert format_difference(31.25, "HU") == ("31.2 HU", "")
    assert format_difference(0.0125, "fraction of the intensity window") == (
        "1.25 %",
        "of the intensity window",
    )
    assert format_difference(7.0, "units of the volume") == ("7", "units of the volume")
    assert format_range((0.5, 1500.0)) == "0.500 to 1,500"
    assert [format_memory(mib) for mib in (900.4, 1000, 1333, None)] == [
        "900 MiB", "1.0 GiB", "1.3 GiB", "–",
    ]  # fmt: skip
    assert format_time(datetime(2026, 3, 4, 9, 5, 59, tzinfo=UTC)) == "4 March 2026, 09:05"
    assert (format_count(1, "case"), format_count(1200, "case")) == ("1 case", "1,200 cases")
    assert [join_words(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "", "a", "a and b", "a, b and c",
    ]  # fmt: skip


def test_long_names_keep_their_ends() -> None:
    assert shorten("kidney_left", 11) == "kidney_left"
    assert shorten("kidney_left", 10) == "kidne…left"
    assert shorten("kidney_left", 7) == "kid…eft"
    assert len(shorten("x" * 100, 3)) == 3


def test_lines_of_the_page_do_not_break_before_signs() -> None:
    sections = [Section("one", "One", [Text("16.3 % at 2.1 × the floor, in % of all")])]
    page = to_html(Report(title="t", subtitle="s", warnings=[], sections=sections, missing=[]))
    assert "16.3\u00a0% at 2.1\u00a0× the floor, in % of all" in page
