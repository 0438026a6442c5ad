"""A run that is killed twenty times, stopped, starved of disk and given a broken file ends as if nothing had been."""

import json
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import environment, metrics_of

pytestmark = pytest.mark.slow

STEPS = 44
KILLS = 20
CONFIG = """\
run: {{name: killed, directory: {run}, steps: {steps}, cpus: 1, checkpoint_every: 2}}
model:
  init: {{architecture: qwen2, hidden_size: 16, layers: 1, heads: 2, ffn: 32}}
  max_length: 16
tokenizer: {{name: characters, vocab_size: 32}}
backend: {{name: fsdp2}}
algorithm: {{name: sft, sequences_per_step: 8, learning_rate: 1.0e-2}}
data: {{name: jsonl, path: {data}}}
"""


class Drivers:
    """`rl` in forks of a process that has imported everything (see drivers.py)."""

    def __init__(self, folder):
        self._log = folder / "output.txt"
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("drivers.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(""),
            text=True,
        )

    def rl(self, *argv, **disturbance):
        command = {"argv": [str(a) for a in argv], "log": str(self._log), **disturbance}
        self._server.stdin.write(json.dumps(command) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return answer["returncode"], self._log.read_text(), answer["counts"]

    def close(self):
        self._server.stdin.close()
        self._server.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that nothing disturbs, another that everything does, and what each resume of it said."""
    folder = tmp_path_factory.mktemp("runs")
    data, config = folder / "rows.jsonl", folder / "config.yaml"
    data.write_text("".join(json.dumps({"prompt": f"{i}+1=", "completion": str(i + 1)}) + "\n" for i in range(40)))
    config.write_text(CONFIG.format(run=folder / "broken", data=data, steps=STEPS))
    drivers = Drivers(folder)
    found = {"whole": folder / "whole", "broken": folder / "broken", "said": {}, "returned": {}}
    try:
        code, said, counts = drivers.rl("run", config, f"run.directory={folder}/whole", count=True)
        assert code == 0, said
        disturb(drivers, config, found, per_step=counts["loop"] // STEPS, per_save=counts["saving"] // counts["saves"])
    finally:
        drivers.close()
    return found


def disturb(drivers, config, found, *, per_step, per_save):
    run = found["broken"]

    def resume(name, *options, **disturbance):
        code, said, _ = drivers.rl("resume", run, *options, **disturbance)
        found["returned"][name], found["said"][name] = code, said

    for index, kill in enumerate(schedule(per_step, per_save)):
        # Half of the checkpoints are written by a thread, while training goes on.
        changed = f"backend.async_save={'true' if index % 4 < 2 else 'false'}"
        start = ["resume", run, changed] if run.exists() else ["run", config, changed]
        code, said, _ = drivers.rl(*start, kill=kill)
        found["returned"][f"kill {index}"], found["said"][f"kill {index}"] = code, said
    found["steps when last killed"] = len(metrics_of(run))
    resume("terminated", kill={"during": "loop", "after": per_step * 3, "signal": signal.SIGTERM})
    resume("out of time", "run.save_before_timeout=0.001")
    newest = max((run / "checkpoints").glob("step-*"))
    flip_a_bit(newest / "policy" / "shards" / "rank-00000-000.safetensors")
    found["broken checkpoint"], found["one before"] = newest, sorted((run / "checkpoints").glob("step-*"))[-2]
    resume("broken", "run.save_before_timeout=0.001")
    resume("full disk", "run.save_before_timeout=null", full_disk_for=1)
    resume("nothing left")
    resume("fewer steps", "run.steps=4")


def schedule(per_step, per_save):
    """Where to strike: in turns anywhere in the first steps after the start, and anywhere in the first save."""
    dice = random.Random(7)
    for index in range(KILLS):
        if index % 2:
            yield {"during": "saving", "after": dice.randint(1, per_save), "signal": signal.SIGKILL}
        else:
            yield {"during": "loop", "after": dice.randint(1, 4 * per_step), "signal": signal.SIGKILL}


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def without_times(rows):
    return [{k: v for k, v in r.items() if not k.startswith("time/") and "per_second" not in k} for r in rows]


def test_twenty_kills_change_neither_weights_nor_metrics(runs):
    kills = [code for name, code in runs["returned"].items() if name.startswith("kill")]
    assert kills == [-signal.SIGKILL] * KILLS, runs["said"]
    assert 0 < runs["steps when last killed"] < STEPS
    assert runs["returned"]["full disk"] == 0, runs["said"]["full disk"]
    whole, broken = metrics_of(runs["whole"]), metrics_of(runs["broken"])
    assert [row["step"] for row in whole] == list(range(1, STEPS + 1))
    assert without_times(broken) == without_times(whole)
    weights = [(runs[which] / "export" / "model.safetensors").read_bytes() for which in ("whole", "broken")]
    assert weights[0] == weights[1]


def test_a_resume_says_where_it_continues_and_what_is_lost(runs):
    pattern = r"train: continuing from .*/(step-\d{6}); (?:nothing is lost|steps? .* lost and will be run again)"
    continued = [re.findall(pattern, said) for name, said in runs["said"].items() if name.startswith("kill")]
    assert sum(map(len, continued)) > KILLS // 2
    lost = [said for said in runs["said"].values() if "lost and will be run again" in said]
    assert lost
    torn = [said for said in runs["said"].values() if "is not complete: the run ended while it was written" in said]
    assert torn


def test_a_terminated_run_saves_its_step_and_exits_with_143(runs):
    said = runs["said"]["terminated"]
    assert runs["returned"]["terminated"] == 143
    stopped = re.search(r"SIGTERM: stopped after step (\d+) of stage 'train'; a checkpoint is saved\n    (.*)", said)
    assert stopped.group(2) == f"continue with: rl resume {runs['broken']}"
    assert (
        f"continuing from {runs['broken']}/checkpoints/step-{int(stopped.group(1)):06d}; nothing is lost"
        in (runs["said"]["out of time"])
    )


def test_a_run_that_is_out_of_time_saves_and_exits_with_143(runs):
    assert runs["returned"]["out of time"] == 143
    assert re.search(
        r"run\.save_before_timeout: stopped after step \d+ of stage 'train'; a checkpoint is saved\n",
        runs["said"]["out of time"],
    )


def test_a_broken_newest_checkpoint_is_named_and_the_one_before_is_used(runs):
    said = runs["said"]["broken"]
    file = "policy/shards/rank-00000-000.safetensors"
    assert (
        f"checkpoint {runs['broken checkpoint']} is damaged ({file} does not match its checksum); trying the one before"
    ) in said
    first, last = (int(runs[which].name[5:]) for which in ("one before", "broken checkpoint"))
    steps = f"step {last} is" if last == first + 1 else f"steps {first + 1} to {last} are"
    assert f"train: continuing from {runs['one before']}; {steps} lost and will be run again" in said


def test_a_full_disk_pauses_saving_and_training_goes_on(runs):
    said = runs["said"]["full disk"]
    assert runs["returned"]["full disk"] == 0
    assert re.search(
        r"cannot write .*/rank-00000-000\.safetensors: No space left on device; training goes on, step-\d{6} is kept, "
        r"and saving is tried again when the next checkpoint is due",
        said,
    )
    assert (runs["broken"] / "checkpoints" / f"step-{STEPS:06d}").is_dir()
    assert not list((runs["broken"] / "checkpoints").glob(".*"))


def test_a_resume_that_would_train_nothing_says_so_and_fails(runs):
    run = runs["broken"]
    assert runs["returned"]["nothing left"] == runs["returned"]["fewer steps"] == 1
    expected = (
        f"error: nothing to do: every stage of {run} has finished\n"
        "    train on with: rl resume RUN_DIR run.steps=MORE (see also rl eval, rl export)\n"
    )
    assert runs["said"]["nothing left"].endswith(expected)
    assert runs["said"]["fewer steps"].endswith(expected)


def test_checkpoints_hold_nothing_but_json_and_safetensors(runs):
    files = [p for p in (runs["broken"] / "checkpoints").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".safetensors"}


def test_a_checkpoint_knows_the_metrics_of_its_step(runs):
    state = json.loads((runs["broken"] / "checkpoints" / f"step-{STEPS:06d}" / "state.json").read_text())
    last = metrics_of(runs["whole"])[-1]
    assert state["metrics"]["train/loss"] == last["train/loss"]
    assert state["metrics"].keys() <= last.keys()
