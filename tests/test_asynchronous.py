"""Runs that sample ahead of training."""

import pytest
from support import metrics_of

pytestmark = pytest.mark.slow


def test_a_run_prefetches_rollouts_and_continues_where_it_was(tiny, rl, tmp_path):
    options = ["run.max_staleness=2", "run.steps=6", "data.limit=40"]
    rl("run", tiny, *options, "run.checkpoint_every=3")
    rows = metrics_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["data/epoch"] for row in rows] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert rows[0]["rollout/staleness_max"] == 0
    assert 1 <= max(row["rollout/staleness_max"] for row in rows) <= 2
    assert all(0 <= row["rollout/staleness_mean"] <= row["rollout/staleness_max"] for row in rows)
    # Training again from the middle: the rows sampled ahead are drawn again, none is left out.
    # This time by broadcast, which reaches generators while they sample as the object store does.
    again, options = tmp_path / "again", [*options, "generator.weight_transport=collective"]
    rl("run", tiny, *options, "run.steps=3", f"run.directory={again}")
    rl("run", tiny, *options, f"run.directory={again}", "--resume")
    again_rows = metrics_of(again)
    assert [row["data/epoch"] for row in again_rows] == [row["data/epoch"] for row in rows]
    assert all(0 <= row["rollout/staleness_max"] <= 2 for row in again_rows)
    assert "as rank 1 of 2" in (again / "logs" / "generate-0.log").read_text()
    assert "weights take the object store" not in (again / "logs" / "rl.log").read_text()
