"""What a process is said to be doing."""

from itertools import cycle
from types import SimpleNamespace

import pytest
from rl_ray import diagnosis


@pytest.mark.parametrize(
    ("statuses", "usual"),
    [
        (["running", "sleeping", "sleeping"], "sleeping"),
        (["running"], "running"),
        (["running", "running", "sleeping"], "running"),
        (["stopped"], "stopped"),
    ],
)
def test_one_look_is_not_taken_for_the_whole(monkeypatch, statuses, usual):
    monkeypatch.setattr(diagnosis, "_BETWEEN_LOOKS_S", 0.0)
    process = SimpleNamespace(status=cycle(statuses).__next__)
    assert diagnosis._usual_status(process) == usual
