"""A run from the outside: what it leaves, and what it says when something is wrong."""

import contextlib
import gzip
import json
import math
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from support import RL, ROOT, environment, metrics_of

pytestmark = pytest.mark.slow


def test_a_run_leaves_everything_in_its_directory(tiny, rl, tmp_path):
    done = rl("run", tiny, "run.checkpoint_every=2", "--profile")
    run = tmp_path / "run"
    names = {p.name for p in run.iterdir()}
    assert {"config.yaml", "plugins.json", "metrics.jsonl", "samples.jsonl", "status.json", "logs"} <= names
    assert {"checkpoints", "export"} <= names
    rows = metrics_of(run)
    assert [(r["step"], r["stage"]) for r in rows] == [(i, "train") for i in range(1, 5)]
    assert all(math.isfinite(r["train/loss"]) and r["mismatch/max_abs_logprob_gap"] < 1e-5 for r in rows)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    assert "rl-core" in json.loads((run / "plugins.json").read_text())
    assert str(run) in done.stdout
    check_profile(run / "profile", done.stdout)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run / "export")
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    assert model.config.hidden_size == 32
    assert tokenizer.decode(tokenizer("47+85=")["input_ids"]) == "47+85="


def check_profile(folder, printed):
    """The second step is traced; the others are in the table."""
    traces = ["generate-0.trace.json.gz", "train-0.trace.json.gz"]
    assert sorted(p.name for p in folder.iterdir()) == [traces[0], "phases.json", "phases.md", traces[1]]
    found = json.loads((folder / "phases.json").read_text())
    assert (found["stage"], found["steps"], found["traced_steps"]) == ("train", 3, [2])
    assert (found["traces"], found["notes"]) == (traces, [])
    seconds = {phase["name"]: phase["step_s"] for phase in found["phases"]}
    assert sum(seconds.values()) == pytest.approx(found["step_s"], rel=1e-9)
    assert min(seconds.values()) > 0
    assert {"rollout", "reward", "forward_backward", "optimizer", "weights", "logging", "rest"} <= set(seconds)
    rows = [row for row in metrics_of(folder.parent) if row["step"] != 2]
    assert found["step_s"] >= np.mean([row["time/step_s"] for row in rows])
    assert seconds["rollout"] == pytest.approx(np.mean([row["time/rollout_s"] for row in rows]), rel=1e-6)
    assert seconds["forward_backward"] + seconds["optimizer"] < np.mean([row["time/train_s"] for row in rows])
    for trace, work in zip(traces, ("generate", "forward_backward"), strict=True):
        names = {e.get("name") for e in json.loads(gzip.decompress((folder / trace).read_bytes()))["traceEvents"]}
        assert {work, "aten::mm"} <= names, trace
    assert "Where the time of a step goes: stage 'train', mean of 3 steps" in printed
    assert "forward and backward" in printed


def test_without_a_cluster_ray_starts_with_the_run_and_stops_with_it(tiny_sft, tmp_path):
    def left_over():
        """Processes of this run's Ray; whatever else runs on the machine has no such variable."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RUN_OF_THIS_TEST") == str(tmp_path):
                    yield process.name()

    alone = {k: v for k, v in environment("").items() if k != "RAY_ADDRESS"} | {"RUN_OF_THIS_TEST": str(tmp_path)}
    done = subprocess.run([RL, "run", tiny_sft], env=alone, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 120  # a raylet that was told to end does so a little later
    while "raylet" in left_over():
        assert time.monotonic() < deadline, list(left_over())
        time.sleep(0.1)
    logs = tmp_path / "run" / "logs"
    assert (logs / "ray").is_dir()
    assert not (logs / "ray").is_symlink(), "Ray's logs are kept with the run"
    assert (logs / "rl.log").stat().st_size
    assert (logs / "train-0.log").stat().st_size
    for noise in ("raylet", "Started a local Ray instance", "FutureWarning"):
        assert noise not in done.stderr + done.stdout


def test_every_metric_that_is_written_is_documented(tiny, tiny_sft, rl, tmp_path):
    documented = set(re.findall(r"`([a-z_]+/[a-z0-9_/]+)`", (ROOT / "docs" / "metrics.md").read_text()))
    evaluated = [f"eval_data={{name: python, function: {ROOT}/examples/add2x.py:questions}}"]
    accuracy = [*evaluated, "evaluators=[{name: accuracy, max_new_tokens: 4, limit: 8}]"]
    rl("run", tiny, *accuracy, "algorithm.kl.coefficient=0.1", "algorithm.minibatches=2", f"run.directory={tmp_path}/a")
    loss = [f"eval_data={{name: jsonl, path: {tmp_path}/rows.jsonl}}", "evaluators=[{name: loss}]"]
    rl("run", tiny_sft, *loss, f"run.directory={tmp_path}/b")
    written = {k for run in "ab" for row in metrics_of(tmp_path / run) for k in row} - {"step", "stage"}
    assert len(written) > 25
    assert written - documented == set()


def test_an_existing_run_directory_is_refused(tiny_sft, rl, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    done = rl("run", tiny_sft, check=False)
    assert done.returncode == 2
    assert f"error: the run directory {tmp_path}/run already exists" in done.stderr
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious"]


def test_a_malformed_row_stops_the_run_with_its_line(tiny_sft, rl, tmp_path):
    data = tmp_path / "rows.jsonl"
    lines = data.read_text().splitlines()
    lines[6] = '{"prompt": "7+1=", '
    data.write_text("\n".join(lines) + "\n")
    done = rl("run", tiny_sft, check=False)
    assert done.returncode == 1
    assert f"{data}:7: " in done.stderr
    assert "Traceback" not in done.stderr
    done = rl("run", tiny_sft, "data.on_bad_row=skip", f"run.directory={tmp_path}/second")
    assert "39 rows, 1 skipped" in done.stderr


def test_an_empty_dataset_is_an_error(tiny_sft, rl, tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    done = rl("run", tiny_sft, check=False)
    assert done.returncode == 1
    assert f"{tmp_path}/rows.jsonl" in done.stderr
    assert "no rows" in done.stderr


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(tiny_sft, rl, tmp_path):
    done = rl("run", tiny_sft, "algorithm.learning_rate=1e30", "algorithm.optimizer.max_grad_norm=null", check=False)
    assert done.returncode == 1
    saved = Path(re.search(r"saved for inspection in (\S+)", done.stderr).group(1))
    assert "Traceback" not in done.stderr
    with np.load(saved) as batch:
        assert batch["offsets"][-1] == len(batch["tokens"]) == len(batch["token.loss_mask"])


def test_an_unwritable_run_directory_is_an_environment_problem(tiny_sft, rl, tmp_path):
    (tmp_path / "file").write_text("")
    done = rl("run", tiny_sft, f"run.directory={tmp_path}/file/run", check=False)
    assert done.returncode == 3
    assert f"cannot write the run directory {tmp_path}/file/run: Not a directory" in done.stderr


def test_a_model_folder_without_tokenizer_is_explained(tiny_sft, rl, tmp_path):
    rl("run", tiny_sft)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((tmp_path / "run" / "export" / name).read_bytes())
    overrides = [f"model={{path: {bare}, max_length: 16}}", "tokenizer={name: hf}", f"run.directory={tmp_path}/next"]
    done = rl("run", tiny_sft, *overrides, check=False)
    assert done.returncode == 2
    assert str(bare) in done.stderr
    assert "tokenizer" in done.stderr
    assert "Traceback" not in done.stderr


def test_ranks_micro_batches_and_packing_do_not_change_the_run(tiny_sft, rl, tmp_path):
    variants = {
        "one": [],
        "two-ranks": ["backend.parallel.dp=2"],
        "small": ["backend.max_tokens_per_microbatch=16"],
        "packed": ["backend.packing=packed"],
        "padded": ["backend.packing=padded", "backend.max_tokens_per_microbatch=24"],
    }
    curves = {}
    for name, overrides in variants.items():
        rl("run", tiny_sft, *overrides, f"run.directory={tmp_path}/{name}")
        curves[name] = np.array([[r["train/loss"], r["train/grad_norm"]] for r in metrics_of(tmp_path / name)])
    for name, curve in curves.items():
        # The first step is the same mathematics; later ones go through AdamW, which amplifies rounding.
        np.testing.assert_allclose(curve[0], curves["one"][0], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(curve, curves["one"], rtol=1e-3, err_msg=name)
