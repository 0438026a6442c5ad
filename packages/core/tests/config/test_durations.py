import pytest
from pydantic import TypeAdapter, ValidationError
from rl_core.config.durations import Duration, seconds


@pytest.mark.parametrize(
    ("text", "expected"), [("3h50m", 13800.0), ("90s", 90.0), ("1d 2h", 93600.0), ("1.5h", 5400.0), ("45m", 2700.0)]
)
def test_durations_are_read_in_days_hours_minutes_and_seconds(text, expected):
    assert seconds(text) == expected
    assert TypeAdapter(Duration).validate_python(text) == expected


@pytest.mark.parametrize("text", ["", "3", "3x", "h", "-3h", "3h50", "3:50:00"])
def test_what_is_no_duration_is_explained(text):
    with pytest.raises(ValueError, match="must be a time") as caught:
        seconds(text)
    assert str(caught.value) == f"must be a time such as 3h50m, 45m or 90s, or a number of seconds; found {text!r}"


def test_numbers_are_seconds_and_positive():
    adapter = TypeAdapter(Duration)
    assert adapter.validate_python(60) == 60.0
    with pytest.raises(ValidationError):
        adapter.validate_python("0s")
