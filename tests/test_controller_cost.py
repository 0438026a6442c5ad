"""The driver's work on a step grows with the sequences, not with their squares and not with their tokens."""

import json
import sys
import time

import pytest
from support import ROOT


@pytest.fixture
def controller(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return pytest.importorskip("controller")


@pytest.fixture
def calls_of(controller):
    """How many functions, Python's and C's, a GRPO step over 8 ranks calls."""

    def count(sequences, tokens):
        batch, algorithm = controller.rollouts(sequences, tokens), controller.grpo()
        models = {"policy": controller.model(8)}
        calls = 0

        def called(frame, event, argument):
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(called)
        try:
            algorithm.step(batch, models)
        finally:
            sys.setprofile(None)
        return calls

    return count


def test_a_step_calls_equally_many_functions_for_every_sequence_and_none_for_tokens(calls_of):
    few, more, many = (calls_of(sequences, 16) for sequences in (64, 512, 4096))
    assert (many - more) / (4096 - 512) == pytest.approx((more - few) / (512 - 64), rel=0.05)
    assert calls_of(512, 1000) == pytest.approx(more, rel=0.01)


def test_a_sequence_costs_no_more_among_many(controller):
    algorithm, models = controller.grpo(), {"policy": controller.model(8)}

    def per_sequence(sequences):
        batch = controller.rollouts(sequences, 16)
        seconds = []
        for _ in range(5):
            started = time.process_time()
            algorithm.step(batch, models)
            seconds.append(time.process_time() - started)
        return min(seconds) / sequences

    assert per_sequence(4096) < per_sequence(64)


def test_the_table_has_a_line_for_every_size(controller, tmp_path, capsys):
    report = tmp_path / "controller.json"
    options = ["--sequences", "8", "16", "--tokens", "4", "--ranks", "2", "--rounds", "1", "--output", str(report)]
    assert controller.main(options) == 0
    lines = json.loads(report.read_text())
    assert [(line["sequences"], line["tokens_per_sequence"]) for line in lines] == [(8, 4), (16, 4)]
    for line in lines:
        parts = line["seconds"]
        assert line["one_pass"] == pytest.approx(parts["split"] + parts["shard"] + parts["pack"] + parts["merge"])
    assert "CPU seconds of the driver" in capsys.readouterr().out
