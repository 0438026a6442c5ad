from __future__ import annotations

import gzip
import json
import logging

import pytest
import torch
from rl_torch.profiling import Profiler

torch.set_num_threads(1)


def test_sections_add_up_between_start_and_stop():
    profiler = Profiler()
    with profiler.section("before"):
        torch.ones(2).sum()
    profiler.start()
    for _ in range(2):
        with profiler.section("multiply"):
            torch.ones(64, 64) @ torch.ones(64, 64)
    with pytest.raises(ValueError, match=r"^wrong$"), profiler.section("fails"):
        raise ValueError("wrong")
    seconds = profiler.stop()
    assert sorted(seconds) == ["fails", "multiply"]
    assert min(seconds.values()) > 0
    profiler.start()
    assert profiler.stop() == {}


def test_the_trace_has_the_sections_and_what_torch_did_in_them(tmp_path):
    path = tmp_path / "train-0.trace.json.gz"
    profiler = Profiler()
    profiler.start(str(path))
    with profiler.section("multiply"):
        weight = torch.ones(8, 8, requires_grad=True)
        (weight @ torch.ones(8, 8)).sum().backward()
    profiler.stop()
    names = {event.get("name", "") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
    assert {"multiply", "aten::mm"} <= names
    assert any("MmBackward" in name for name in names)


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    profiler = Profiler()
    path = tmp_path / "gone" / "train-0.trace.json.gz"
    profiler.start(str(path))
    with profiler.section("work"):
        torch.ones(2).sum()
    with caplog.at_level(logging.WARNING, logger="rl_torch.profiling"):
        assert sorted(profiler.stop()) == ["work"]
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot write the trace {path}: No such file or directory"
    ]


def test_a_profile_has_one_beginning_and_one_end(tmp_path):
    profiler = Profiler()
    with pytest.raises(RuntimeError, match=r"^there is no profile to end; call start first$"):
        profiler.stop()
    profiler.start(str(tmp_path / "a.trace.json.gz"))
    with pytest.raises(RuntimeError, match=r"^the profile has begun already; call stop first$"):
        profiler.start()
    profiler.close()
    assert list(tmp_path.iterdir()) == []
    profiler.start()
    assert profiler.stop() == {}
