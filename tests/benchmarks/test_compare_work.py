"""What the comparison's systems are given to do: rows, lengths, models; and watching them from outside."""

import json
import sys

import pytest
from support import ROOT


@pytest.fixture(autouse=True)
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_rows_have_the_lengths_of_their_workload():
    from compare.rows import make_rows
    from compare.workloads import WORKLOADS

    for name, low, high in (("sft-40-63", 40, 63), ("sft-10-200", 10, 200)):
        rows = make_rows(WORKLOADS[name], 20)
        lengths = {len(row["prompt"]) + len(row["completion"]) + 1 for row in rows}
        assert (min(lengths), max(lengths), len(rows)) == (low, high, 640)
    pairs = make_rows(WORKLOADS["dpo"], 20)
    lengths = {len(row["prompt"]) + len(row[answer]) + 1 for row in pairs for answer in ("chosen", "rejected")}
    assert (min(lengths), max(lengths), len(pairs)) == (40, 63, 320)


def test_the_first_steps_rows_do_not_depend_on_the_number_of_steps():
    from compare.rows import make_rows
    from compare.workloads import WORKLOADS

    for workload in WORKLOADS.values():
        assert make_rows(workload, 3)[: workload.rows] == make_rows(workload, 1)


def test_the_last_character_of_a_prompt_says_how_long_the_answer_is():
    from compare.rows import completion_lengths, level_of, make_rows
    from compare.workloads import WORKLOADS

    varied = WORKLOADS["grpo-varied"]
    rows = make_rows(varied, 1)
    assert sorted(level_of(row["prompt"][-1]) + 1 for row in rows) == completion_lengths(varied)
    assert (min(completion_lengths(varied)), max(completion_lengths(varied))) == (4, 32)
    assert all(16 <= len(row["prompt"]) <= 24 for row in rows)


def test_this_project_draws_its_rows_in_the_order_of_the_job(tmp_path):
    from compare import ours
    from compare.rows import make_rows, write_rows
    from compare.workloads import WORKLOADS, Job
    from rl_core.data.cursor import DataCursor

    rows = make_rows(WORKLOADS["sft-40-63"], 3)
    path = write_rows(rows, tmp_path / "rows.jsonl")
    job = Job("sft-40-63", "xs", "fp32", 1, 3, str(tmp_path), str(path), "")
    ours.command(job, tmp_path)
    written = [json.loads(line) for line in (tmp_path / "rows-shuffled.jsonl").read_text().splitlines()]
    assert written != rows
    cursor = DataCursor(size=len(rows), seed=0)
    assert [written[i] for _ in range(3) for i in cursor.draw(32)] == rows


def test_recorded_completions_are_handed_out_once_and_end_where_they_were_not_cut(tmp_path):
    from compare.replay import Replay

    samples = tmp_path / "samples.jsonl"
    recorded = [("a", "xy"), ("b", "xyz"), ("a", "z")]
    samples.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in recorded))
    replay = Replay(str(samples), lambda text: [ord(c) for c in text], max_tokens=3)
    assert replay.take("a") == [120, 121, 1]
    assert replay.take("b") == [120, 121, 122], "it was cut off, so it has no end token"
    assert replay.take("a") == [122, 1]


@pytest.mark.parametrize("ends", [True, False])
def test_a_countdown_model_writes_as_many_tokens_as_the_prompt_says(ends):
    import torch
    from compare.models import build
    from compare.workloads import CHARACTERS, EOS, SPECIAL_TOKENS

    torch.set_num_threads(1)
    model = build("xs", "countdown" if ends else "endless").eval()
    level = 6
    prompt = torch.tensor([[40, 50, 60, SPECIAL_TOKENS + 2 * level]] * 4)
    torch.manual_seed(0)
    written = model.generate(prompt, do_sample=True, top_k=0, max_new_tokens=12, eos_token_id=EOS, pad_token_id=0)
    levels = (written[:, 4:] - SPECIAL_TOKENS) // 2
    assert levels[:, :6].tolist() == [[5, 4, 3, 2, 1, 0]] * 4
    if ends:
        assert written[:, 10:].tolist() == [[EOS]] * 4
    else:
        top = CHARACTERS // 2 - 1
        assert levels[:, 6:].tolist() == [[top - i for i in range(6)]] * 4
    assert len({tuple(row) for row in written.tolist()}) == 4, "which of the two characters comes is chance"


def test_a_worker_writes_down_how_long_it_generates(tmp_path, monkeypatch):
    from compare.stopwatch import FILE, install, on_worker_start, seconds_by_part
    from rl_generation_hf.generator import HfGenerator

    for name, value in install(tmp_path).items():
        if name == FILE:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(HfGenerator, "generate", HfGenerator.generate)  # as it was, afterwards
    for _ in range(2):  # it is called again where a worker is used again
        on_worker_start(role="generate", rank=0)
    with pytest.raises(AttributeError):
        HfGenerator.generate(None, None, None)  # whatever comes of it, it took its time
    assert list(seconds_by_part(tmp_path, begin=0.0, end=float("inf"))) == ["generation"]
    assert (tmp_path / "stopwatch.txt").read_text().count("\n") == 1
    metadata = tmp_path / "stopwatch" / "compare_stopwatch-0.dist-info"
    assert "stopwatch = compare.stopwatch" in (metadata / "entry_points.txt").read_text()


CHILD = """
import subprocess, sys, time
work = "x = bytearray(80 << 20); print(flush=True)\\nwhile True: pass"
child = subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE)
child.stdout.readline()
for step in range(3):
    time.sleep(0.7)
    with open(sys.argv[1], "a") as file:
        print(step, file=file)
"""


def test_all_processes_of_a_system_are_watched_and_ended(tmp_path):
    import psutil
    from compare.watching import watch

    script, progress = tmp_path / "child.py", tmp_path / "progress"
    script.write_text(CHILD)
    command = [sys.executable, str(script), str(progress)]
    found = watch(command, environment={}, progress=progress, log=tmp_path / "log", steps=3, timeout_s=120)
    assert len(found.marks) == 3
    assert found.marks[0].wall < found.marks[1].wall < found.marks[2].wall
    assert found.marks[2].cpu > found.marks[0].cpu, "the child's work counts"
    assert found.peak_rss > 80 << 20, "and so does its memory"
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert [command for command in commands if "x = bytearray(80 << 20)" in command] == []


def test_a_system_that_fails_is_reported_with_the_end_of_its_log(tmp_path):
    from compare.watching import SystemFailed, watch

    script = tmp_path / "child.py"
    script.write_text("raise SystemExit('no further')")
    command = [sys.executable, str(script)]
    with pytest.raises(SystemFailed) as raised:
        watch(command, environment={}, progress=tmp_path / "p", log=tmp_path / "log", steps=1, timeout_s=120)
    assert str(raised.value) == f"{' '.join(command)}\n    ended with 1 after 0 of 1 steps\n    no further"
