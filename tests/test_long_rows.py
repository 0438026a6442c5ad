"""A row that is too long does not end a run late: it is counted before the first step, and left out or refused."""

from __future__ import annotations

import json
import re

import pytest
from rl_core.data.cursor import DataCursor
from support import metrics_of

pytestmark = pytest.mark.slow


@pytest.fixture
def long_row(tiny_sft, tmp_path):
    """A config whose data has one row that is too long, the 21st of 40."""
    data = tmp_path / "rows.jsonl"
    lines = data.read_text().splitlines()
    lines[20] = json.dumps({"prompt": "1+1=", "completion": "12" * 9})
    data.write_text("\n".join(lines) + "\n")
    return tiny_sft


def test_a_long_row_is_left_out_in_every_epoch_and_said_once(long_row, rl, tmp_path):
    done = rl("run", long_row, "run.steps=12")
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert said.count("1 of 40 rows is longer than model.max_length 16: skipped; longest 23") == 1
    assert len(metrics_of(tmp_path / "run")) == 12, "more than two epochs"


def test_as_an_error_a_long_row_stops_the_run_before_its_first_step(long_row, rl, tmp_path):
    done = rl("run", long_row, "run.steps=12", "algorithm.on_long_row=error", check=False)
    assert done.returncode not in (0, None)
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert "rows.jsonl:21 has 23 tokens" in said
    assert "Traceback" not in said
    path = tmp_path / "run" / "metrics.jsonl"
    assert not path.exists() or not path.read_text()


def test_a_resumed_run_counts_the_rows_that_it_will_draw(tiny_sft, rl, tmp_path):
    data = tmp_path / "rows.jsonl"
    lines = data.read_text().splitlines()
    drawn = DataCursor(size=40, seed=3).draw(17)
    for index in (drawn[0], drawn[16]):  # a step has 8 rows: with one left out, the second step ends with the 17th
        lines[index] = json.dumps({"prompt": "1+1=", "completion": "12" * 9})
    data.write_text("\n".join(lines) + "\n")
    said = []
    for command in (("run", tiny_sft, "run.seed=3", "run.steps=1"), ("resume", tmp_path / "run", "run.steps=2")):
        done = rl(*command)
        said.append(re.sub(r"\s+", " ", done.stdout + done.stderr))
    assert f"1 of 8 rows is longer than model.max_length 16: skipped; longest 23 ({data}:{drawn[0] + 1})" in said[0]
    assert f"1 of 8 rows is longer than model.max_length 16: skipped; longest 23 ({data}:{drawn[16] + 1})" in said[1]
