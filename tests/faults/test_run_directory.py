"""A run whose directory is moved, removed, emptied or shared: it ends with an error that is true, or exactly."""

import json
import re
import shlex
import shutil
import signal

import pytest
from forked_runs import Drivers, assert_same
from rl_core.training.directory import read_status

pytestmark = pytest.mark.slow

STEPS = 8
CONFIG = """\
run: {{name: disturbed, steps: {steps}, cpus: 1, checkpoint_every: 2}}
model:
  init: {{architecture: qwen2, hidden_size: 16, layers: 1, heads: 2, ffn: 32}}
  max_length: 16
tokenizer: {{name: characters, vocab_size: 32}}
backend: {{name: fsdp2}}
algorithm: {{name: sft, sequences_per_step: 8, learning_rate: 1.0e-2}}
data: {{name: jsonl, path: {data}}}
"""


class Runs:
    """A folder for runs of one config, and a run that nothing disturbed."""

    def __init__(self, folder):
        self.folder = folder
        data, self.config = folder / "rows.jsonl", folder / "config.yaml"
        data.write_text("".join(json.dumps({"prompt": f"{i}+1=", "completion": str(i + 1)}) + "\n" for i in range(40)))
        self.config.write_text(CONFIG.format(data=data, steps=STEPS))
        self.drivers = Drivers(folder)
        self.whole = folder / "whole"
        assert self.run(self.whole)[0] == 0  # imports what a run needs, so that calls are counted without that
        code, said, self.counts = self.run(folder / "counted", count=True)
        assert code == 0, said

    def run(self, directory, *options, **disturbance):
        return self.drivers.rl("run", self.config, f"run.directory={directory}", *options, **disturbance)

    def at_step(self, step, shell):
        """The disturbance that runs a command line about ``step``."""
        return {"during": "loop", "after": int(self.counts["steps"] / STEPS * step), "shell": shell}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = Runs(tmp_path_factory.mktemp("runs"))
    yield made
    made.drivers.close()


def test_a_run_whose_directory_is_moved_ends_with_an_error_and_continues_from_there_exactly(runs):
    run, place = runs.folder / "a", runs.folder / "a moved"
    code, said, _ = runs.run(run, kill=runs.at_step(4.5, shlex.join(["mv", str(run), str(place)])))
    assert code == 1, said
    assert said.endswith(
        f"error: the run directory {run} was moved to {place} while the run was working in it\n"
        f"    continue it there: rl resume {place}\n"
    )
    assert not run.exists()
    assert read_status(place)["status"] == "failed"
    code, said, _ = runs.drivers.rl("resume", place)
    assert code == 0, said
    assert_same(place, runs.whole)


def test_a_run_whose_directory_is_moved_while_a_checkpoint_is_written_does_not_make_another(runs):
    run, place = runs.folder / "b", runs.folder / "b moved"
    kill = {"during": "saving", "after": runs.counts["saving"] // runs.counts["saves"] // 2}
    code, said, _ = runs.run(run, kill=kill | {"shell": shlex.join(["mv", str(run), str(place)])})
    assert code == 1, said
    assert f"the run directory {run} was moved to {place}" in said
    assert not run.exists()


@pytest.mark.parametrize("phase", ["loop", "exporting"])
def test_a_run_whose_directory_is_removed_ends_with_an_error_and_does_not_make_it_again(runs, phase):
    run = runs.folder / f"removed {phase}"
    shell = shlex.join(["rm", "-rf", str(run)])
    kill = runs.at_step(3.5, shell) if phase == "loop" else {"during": "exporting", "after": 40, "shell": shell}
    code, said, _ = runs.run(run, kill=kill)
    assert code == 1, said
    assert f"error: the run directory {run} was removed while the run was working in it\n" in said
    assert not run.exists()


def test_a_run_whose_directory_is_replaced_writes_nothing_into_the_other(runs):
    run, other = runs.folder / "c", runs.folder / "other"
    (other / "checkpoints").mkdir(parents=True)
    (other / "config.yaml").write_text("run: {}\n")
    swap = f"mv {shlex.quote(str(run))} {shlex.quote(str(run))}-away && mv {shlex.quote(str(other))} {run}"
    code, said, _ = runs.run(run, kill=runs.at_step(3.5, swap))
    assert code == 1, said
    assert f"the run directory {run} was moved to {run}-away while the run was working in it" in said
    assert sorted(p.name for p in run.rglob("*")) == ["checkpoints", "config.yaml"]


def test_a_run_whose_directory_is_emptied_ends_with_an_error(runs):
    run = runs.folder / "d"
    code, said, _ = runs.run(run, kill=runs.at_step(5.5, f"rm -rf {run}/* {run}/.lock"))
    assert code == 1, said
    assert f"error: the run directory {run} was emptied while the run was working in it\n" in said


def stopped(runs, name, step=5.5):
    """A run that was killed in the step after a checkpoint."""
    run = runs.folder / name
    code, said, _ = runs.run(run, kill=runs.at_step(step, "true") | {"shell": 'kill -9 "$PPID"'})
    assert code == -signal.SIGKILL, said
    return run


@pytest.mark.parametrize("how", ["emptied", "removed"])
def test_a_run_that_lost_its_checkpoints_does_not_start_over_by_itself(runs, how):
    run = stopped(runs, f"lost {how}")
    last = max(int(p.name[5:]) for p in (run / "checkpoints").glob("step-*"))
    shutil.rmtree(run / "checkpoints")
    if how == "emptied":
        (run / "checkpoints").mkdir()
    before = (run / "metrics.jsonl").read_bytes()
    code, said, _ = runs.drivers.rl("resume", run)
    assert code == 1
    assert said.endswith(
        f"error: stage 'train' had saved step {last}, but there is no checkpoint in {run}/checkpoints\n"
        "    put it back, start a new run (run.name=NEW_NAME), or train this stage from its start again with:  "
        f"rl resume {run} --allow restart\n"
    )
    assert (run / "metrics.jsonl").read_bytes() == before
    code, said, _ = runs.drivers.rl("resume", run, "--allow", "restart")
    assert code == 0, said
    assert_same(run, runs.whole)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_over(runs):
    run = stopped(runs, "early", step=1.5)
    assert not list((run / "checkpoints").glob("step-*"))
    code, said, _ = runs.drivers.rl("resume", run)
    assert code == 0, said
    assert_same(run, runs.whole)


def test_swapped_checkpoints_are_refused(runs):
    run = stopped(runs, "swapped", step=7.5)
    older, newer = sorted((run / "checkpoints").glob("step-*"))
    older.rename(run / "aside")
    newer.rename(older)
    (run / "aside").rename(newer)
    for command in ("resume", "export"):
        code, said, _ = runs.drivers.rl(command, run)
        assert code == 1
        assert f"error: {newer} is the checkpoint of step {int(older.name[5:])}: the folder was renamed, or " in said


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_run_that_is_killed_after_its_last_stage_is_completed(runs, share):
    run = runs.folder / f"ended {share}"
    kill = {"during": "ending", "after": 1 + int(share * runs.counts["ending"]), "signal": signal.SIGKILL}
    code, said, _ = runs.run(run, kill=kill)
    assert code == -signal.SIGKILL, said
    assert read_status(run)["status"] == "running"
    assert runs.drivers.rl("resume", run)[0] == 0
    assert read_status(run)["status"] == "finished"
    assert_same(run, runs.whole)
    code, said, _ = runs.drivers.rl("resume", run)
    assert code == 1
    assert "nothing to do: every stage of" in said


@pytest.mark.parametrize("share", [0.3, 0.97])
def test_a_run_that_is_killed_while_it_exports_again_has_a_whole_model_or_none(runs, share):
    run = runs.folder / f"export {share}"
    assert runs.run(run, "run.steps=2")[0] == 0
    model = run / "export" / "model.safetensors"
    before = model.read_bytes()
    kill = {"during": "exporting", "after": int(share * runs.counts["exporting"]), "signal": signal.SIGKILL}
    code, said, _ = runs.drivers.rl("resume", run, f"run.steps={STEPS}", kill=kill)
    assert code == -signal.SIGKILL, said
    whole = {before, (runs.whole / "export" / "model.safetensors").read_bytes()}
    assert not (run / "export").exists() or model.read_bytes() in whole
    assert sorted(p.name for p in (run / "export").glob("*")) in (
        [],
        sorted(p.name for p in (runs.whole / "export").iterdir()),
    )
    assert runs.drivers.rl("resume", run)[0] == 0
    assert_same(run, runs.whole)


def test_of_two_starts_at_once_one_trains_and_the_other_says_so(runs):
    run = runs.folder / "twice"
    argv = ["run", str(runs.config), f"run.directory={run}"]
    answer = runs.drivers.ask(*argv, at_once=[argv, ["resume", str(run)], [*argv, "--resume"]])
    codes = [answer["returncode"], *(other["returncode"] for other in answer["at_once"])]
    texts = [answer["said"], *((runs.folder / f"output.txt.{n}").read_text() for n in range(3))]
    assert sorted(codes) == [0, 2, 2, 2], texts
    refused = re.compile(r"error: (another process is running in|the run directory .* already exists|.* is not a run )")
    assert all(refused.search(text) for code, text in zip(codes, texts, strict=True) if code)
    assert_same(run, runs.whole)


def test_two_resumes_at_once_do_not_mix(runs):
    run = stopped(runs, "resumed twice")
    argv = ["resume", str(run)]
    answer = runs.drivers.ask(*argv, at_once=[argv])
    codes = [answer["returncode"], answer["at_once"][0]["returncode"]]
    texts = [answer["said"], (runs.folder / "output.txt.0").read_text()]
    assert sorted(codes) == [0, 2], texts
    assert f"error: another process is running in {run}\n" in texts[codes.index(2)]
    assert_same(run, runs.whole)
