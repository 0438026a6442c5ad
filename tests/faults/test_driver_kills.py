"""A run that is killed twenty times, stopped, starved of disk and given a broken file ends as if nothing had been."""

import json
import random
import re
import signal

import pytest
from forked_runs import Drivers, assert_same
from support import metrics_of

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
    resume("to the end", "run.save_before_timeout=null")
    resume("nothing left")
    resume("fewer steps", "run.steps=4")
    fill_disks(drivers, config, found)


def fill_disks(drivers, config, found):
    """The whole run, on a disk that is full for a while and then has room for some files of a checkpoint only."""
    found["seen"], found["disk"] = {}, found["broken"].with_name("disk")
    found["disk"].mkdir()

    def run(how, *options, **filled):
        found[how] = found["disk"].with_name(f"disk {how}")
        disk = {"folder": str(found["disk"]), "copy": str(found[how]), "size": 2 * 2**20, **filled}
        answer = drivers.ask("run", config, f"run.directory={found['disk']}/run", *options, disk=disk)
        found["returned"][how], found["seen"][how] = answer["returncode"], answer.get("seen")
        found["said"][how] = answer.get("no_disk") or answer["said"]

    for how, later in (("at once", "false"), ("in the background", "true")):
        run(how, f"backend.async_save={later}", full=[12, 30], short=[32, 34])
    run("at the export", "run.steps=2", at_export=True)


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


def test_twenty_kills_change_neither_weights_nor_metrics(runs):
    kills = [code for name, code in runs["returned"].items() if name.startswith("kill")]
    assert kills == [-signal.SIGKILL] * KILLS, runs["said"]
    assert 0 < runs["steps when last killed"] < STEPS
    assert runs["returned"]["to the end"] == 0, runs["said"]["to the end"]
    assert [row["step"] for row in metrics_of(runs["whole"])] == list(range(1, STEPS + 1))
    assert_same(runs["broken"], runs["whole"])


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


def skip_without_a_disk(runs, how):
    if runs["seen"][how] is None:
        said = runs["said"][how]
        pytest.skip(f"a small disk can be mounted neither as root nor in a user namespace here: {said}")


@pytest.mark.parametrize("how", ["at once", "in the background"])
def test_a_full_disk_pauses_saving_and_training_continues(runs, how):
    skip_without_a_disk(runs, how)
    said, seen = runs["said"][how], runs["seen"][how]
    assert runs["returned"][how] == 0, said
    assert [seen[str(step)] for step in range(12, 38, 2)] == [["step-000008", "step-000010"]] * 13
    assert seen["38"] == ["step-000010", "step-000036"]
    and_then = r"training goes on, step-000010 is kept, and saving is tried again when the next checkpoint is due"
    refused = rf"the checkpoint of step (\d+) needs about [\d.]+ kB, \S+/checkpoints has 0 B left; {and_then}"
    assert re.findall(refused, said) == [str(step) for step in range(12, 32, 2)]
    begun = rf"cannot write .*: No space left on device.*; {and_then}"
    assert len(re.findall(begun, said)) == 2
    # The rows of those steps waited in memory; their file's last page had room for some.
    metrics = f"{runs['disk']}/run/metrics.jsonl"
    assert said.count(f"{metrics}: No space left on device; new lines are kept in memory, and written when ") == 1
    assert said.count(f"{metrics}: there is room again; nothing is missing\n") == 1
    folder = runs[how] / "run"
    assert_same(folder, runs["whole"])
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-000042", "step-000044"]


def test_a_model_that_does_not_fit_is_told_and_its_half_is_removed(runs):
    how = "at the export"
    skip_without_a_disk(runs, how)
    run = runs["disk"] / "run"
    assert runs["returned"][how] == 1
    assert (
        f"error: {run}/export cannot be written: No space left on device; the checkpoint that it is made of is kept\n"
        "    make room, then make it with: rl resume RUN_DIR (or rl export RUN_DIR)\n"
    ) in runs["said"][how]
    assert [path.name for path in (runs[how] / "run" / "checkpoints").iterdir()] == ["step-000002"]
    assert not list((runs[how] / "run").glob("*export*"))


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
